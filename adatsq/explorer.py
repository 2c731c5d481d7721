"""The bit-budget explorer: a widget in JupyterLab, and the same figure in a page that has no kernel.

Both run one ES module, explorer.js. In Lab it is an anywidget. For a page, its mime bundle also holds
text/html: the module, the data, and a few lines that stand in for the kernel's model.
"""

import html
import json
import math
import uuid
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets
from matplotlib.colors import to_hex

from adatsq.plots import BIT_COLORS
from adatsq.sweep import FORMAT_VERSION

MODULE = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")

# What a page has instead of the kernel's model.
STAND_IN = """
const state = JSON.parse(document.getElementById("ID-state").textContent), listeners = {};
const model = {
  get: (name) => state[name],
  set: (name, value) => {
    if (state[name] === value) return;
    state[name] = value;
    (listeners[name] || []).forEach((listener) => listener());
  },
  save_changes: () => {},
  on: (event, listener) => (listeners[event.replace("change:", "")] ??= []).push(listener),
};
const source = new Blob([document.getElementById("ID-module").textContent], { type: "text/javascript" });
const el = document.getElementById("ID");
import(URL.createObjectURL(source)).then((module) => module.default.render({ model, el }));
"""

# (w_bits, tau, budget, prompt) -> data in the form of the sweep's, for this one point
Live = Callable[[int, float, float, str], dict]


class BitBudgetExplorer(anywidget.AnyWidget):
    """data: what `adatsq.sweep` wrote. budget, tau, w_bits, prompt: positions in the lists of `data`.

    live: with a kernel, a function that computes one more point; the widget then has a button for it.
    """

    _esm = MODULE
    data = traitlets.Dict().tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)
    budget = traitlets.Int(0, min=0).tag(sync=True)
    tau = traitlets.Int(0, min=0).tag(sync=True)
    w_bits = traitlets.Int(0, min=0).tag(sync=True)
    prompt = traitlets.Int(0, min=0).tag(sync=True)
    can_run = traitlets.Bool(False).tag(sync=True)
    request = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    live = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)

    def __init__(self, data: dict, live: Live | None = None, **positions: int) -> None:
        self._live = live
        colors = {str(bits): to_hex(color) for bits, color in BIT_COLORS.items()}
        super().__init__(data=data, colors=colors, can_run=live is not None, **positions)
        self.observe(self._run, "request")

    @property
    def choice(self) -> dict:
        """What the stored data holds for the present positions: average_bits, error, psnr, bits, images."""
        wanted = self.data["w_bits"][self.w_bits], self.data["taus"][self.tau]
        setting = next(s for s in self.data["settings"] if (s["w_bits"], s["tau"]) == wanted)
        return setting["choices"][self.budget]

    def _run(self, change: dict) -> None:
        """Compute the point that the page asked for; whatever goes wrong is told there."""
        tau, text = self.data["taus"][self.tau], change["new"]["text"]
        self.status = "running ..."
        try:
            w_bits, budget = self.data["w_bits"][self.w_bits], self.data["budgets"][self.budget]
            self.live = self._live(w_bits, math.inf if tau is None else tau, budget, text)
            self.status = "done"
        except Exception as error:  # the button has no other place to show it
            self.status = f"{type(error).__name__}: {error}"

    def to_html(self) -> str:
        """The explorer for a page: no kernel, no network, so without the live button."""
        name = f"adatsq-explorer-{uuid.uuid4().hex[:8]}"
        synced = ("data", "colors", "budget", "tau", "w_bits", "prompt")
        state = {trait: getattr(self, trait) for trait in synced}
        state.update(can_run=False, request={}, status="", live=None)
        return (
            f'<div id="{name}">{html.escape("This figure needs JavaScript.")}</div>\n'
            f'<script type="application/json" id="{name}-state">{_inside(json.dumps(state))}</script>\n'
            f'<script type="text/plain" id="{name}-module">{_inside(MODULE)}</script>\n'
            f'<script type="module">{STAND_IN.replace("ID", name)}</script>'
        )

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/html": self.to_html()}, metadata


def load_data(path: str | Path) -> dict:
    """Read what `python -m adatsq.sweep` wrote. FileNotFoundError, or ValueError if it is something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no explorer data {path}: write it with python -m adatsq.sweep --out {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"explorer data {path} is damaged: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"explorer data {path} has format_version {version}, this adatsq reads {FORMAT_VERSION}"
        )
    return data


def _inside(text: str) -> str:
    """Text that does not end the script element around it."""
    return text.replace("</", "<\\/")
