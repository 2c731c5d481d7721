"""The bit-budget explorer: a widget in JupyterLab, and the same figure in a page that has no kernel.

Both run one ES module, joined from three files. In Lab it is an anywidget. For a page, its mime bundle also
holds text/html: the module, the data (gzip in base64), and a few lines that stand in for the kernel's model.
"""

import base64
import gzip
import html
import json
import math
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import anywidget
import numpy as np
import pandas as pd
import traitlets
from matplotlib.colors import to_hex
from scipy.stats import spearmanr

from adatsq.plots import BIT_COLORS
from adatsq.policy import Policy
from adatsq.sweep import FORMAT_VERSION

PARTS = ("explorer_policy.js", "explorer_figures.js", "explorer.js")
MODULE = "\n".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in PARTS)

# What a page has instead of the kernel's model.
STAND_IN = """
const packed = Uint8Array.from(atob(document.getElementById("ID-state").textContent), (c) => c.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const state = await new Response(unpacked).json();
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; },
  save_changes: () => {},
  on: () => {},
};
const source = new Blob([document.getElementById("ID-module").textContent], { type: "text/javascript" });
const el = document.getElementById("ID");
const module = await import(URL.createObjectURL(source));
el.replaceChildren();
module.default.render({ model, el });
"""

# What the benchmark calls what it did at (method, tau), with beam 4.
ROWS = {
    ("ladder", 1.0): "adatsq+ladder",
    ("paper", 1.0): "adatsq",
    ("paper", None): "hadamard+gptq+search",
    ("lagrangian", 1.0): "adatsq+lagrangian",
    ("uniform", 1.0): "adatsq-weights",
    ("uniform", None): "hadamard+gptq",
}
# (data of a model, its setting, request) -> the picture and its numbers; see `adatsq.live`
Live = Callable[[dict, dict, dict], dict]


class BitBudgetExplorer(anywidget.AnyWidget):
    """data: what `load_data` gives, of one model or several. model, setting, budget, prompt: positions in the
    lists of `data`, its settings, their choices, its prompts. painted: a policy of the reader's own, a string
    per step with a digit per layer; empty for the stored one.

    live: with a kernel, a function that runs the policy shown; the widget then has a button for it.
    ValueError for a position that is not there.
    """

    _esm = MODULE
    data = traitlets.List().tag(sync=True)
    colors = traitlets.Dict().tag(sync=True)
    model = traitlets.Int(0, min=0).tag(sync=True)
    setting = traitlets.Int(0, min=0).tag(sync=True)
    budget = traitlets.Int(0, min=0).tag(sync=True)
    prompt = traitlets.Int(0, min=0).tag(sync=True)
    painted = traitlets.List(traitlets.Unicode()).tag(sync=True)
    can_run = traitlets.Bool(False).tag(sync=True)
    request = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    live = traitlets.Dict(default_value=None, allow_none=True).tag(sync=True)

    def __init__(self, data: dict | Sequence[dict], live: Live | None = None, **positions: int) -> None:
        self._live = live
        colors = {str(bits): to_hex(color) for bits, color in BIT_COLORS.items()}
        data = [data] if isinstance(data, dict) else list(data)
        super().__init__(data=data, colors=colors, can_run=live is not None, **positions)
        try:
            self.choice, self.shown["prompts"][self.prompt]
        except IndexError:
            raise ValueError(f"no such point in the stored data: {positions}") from None
        self.observe(self._run, "request")

    @property
    def shown(self) -> dict:
        """The data of the model that is shown."""
        return self.data[self.model]

    @property
    def choice(self) -> dict:
        """What the stored data holds for the present positions: average_bits, error, psnr, bits, images."""
        return self.shown["settings"][self.setting]["choices"][self.budget]

    @property
    def policy(self) -> Policy:
        """The policy in the heat map: the reader's own, or the stored one."""
        return policy_of(self.shown, self.painted or self.choice["bits"])

    def _run(self, change: dict) -> None:
        """Run what the page asked for; whatever goes wrong is told there."""
        self.status = "running ..."
        try:
            self.live = self._live(self.shown, self.shown["settings"][self.setting], change["new"])
            self.status = "done"
        except Exception as error:  # the button has no other place to show it
            self.status = f"{type(error).__name__}: {error}"

    def to_html(self) -> str:
        """The explorer for a page: no kernel, no network, so without the live button."""
        name = f"adatsq-explorer-{uuid.uuid4().hex[:8]}"
        synced = ("data", "colors", "model", "setting", "budget", "prompt", "painted")
        state = {trait: getattr(self, trait) for trait in synced}
        state.update(can_run=False, request={}, status="", live=None)
        packed = gzip.compress(json.dumps(state).encode(), mtime=0)
        module = MODULE.replace("</", "<\\/")  # so that it does not end the script element around it
        return (
            f'<div id="{name}">{html.escape("This figure needs JavaScript.")}</div>\n'
            f'<script type="text/plain" id="{name}-state">{base64.b64encode(packed).decode()}</script>\n'
            f'<script type="text/plain" id="{name}-module">{module}</script>\n'
            f'<script type="module">{STAND_IN.replace("ID", name)}</script>'
        )

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/html": self.to_html()}, metadata


def policy_of(data: dict, bits: Sequence[str]) -> Policy:
    """Rows of digits as a policy of this model."""
    rows = np.array([[int(digit) for digit in row] for row in bits])
    return Policy(data["timesteps"], data["layers"], rows, data["model"], data["branches"])


def load_data(path: str | Path) -> dict:
    """Read what `python -m adatsq.sweep` wrote; add scores from NAME.csv beside it, if there is one, and how
    well the stored errors predict. FileNotFoundError, or ValueError if it is something else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no explorer data {path}: write it with python -m adatsq.sweep --out {path}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"explorer data {path} is damaged: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        how = ": write it again with python -m adatsq.sweep"
        raise ValueError(
            f"explorer data {path} has format_version {version}, this adatsq reads {FORMAT_VERSION}{how}"
        )
    table = path.with_name(f"{data['name']}.csv")
    add_scores(data, pd.read_csv(table) if table.is_file() else None)
    for weights in data["weights"]:
        weights["agreement"] = agreement(data, weights)
    return data


def add_scores(data: dict, table: pd.DataFrame | None) -> None:
    """Give a choice the total, with interval, that the benchmark measured for its method, bits and budget, if
    it did: of a policy of its own, from its own calibration."""
    if table is None:
        return
    totals = table[table.metric == "total"].set_index(["method", "w_bits", "a_bits"])
    for setting in data["settings"]:
        method = ROWS.get((setting["method"], setting["tau"]))
        for choice in setting["choices"] if setting["beam"] in (None, 4) else []:
            a_bits = choice["average_bits"] if setting["method"] == "uniform" else choice["budget"]
            if (method, setting["w_bits"], a_bits) in totals.index:
                row = totals.loc[(method, setting["w_bits"], a_bits)]
                numbers = {name: float(row[name]) for name in ("value", "ci_low", "ci_high")}
                choice["score"] = {**numbers, "row": f"{method} W{setting['w_bits']}A{a_bits:g}"}


def agreement(data: dict, weights: dict) -> dict | None:
    """Rank correlation of predicted and measured error over the different policies stored for these weights.
    None if there are no predictions, or fewer than three policies."""
    if not weights["errors"]:
        return None
    predict, measured = predictions(data, weights), {}
    for setting in data["settings"]:
        if (setting["w_bits"], setting["tau"]) == (weights["w_bits"], weights["tau"]):
            measured |= {tuple(choice["bits"]): choice["error"] for choice in setting["choices"]}
            rows = len(data["timesteps"]), len(data["layers"])
            measured |= {(f"{b:g}" * rows[1],) * rows[0]: error for b, error in setting["uniform"]}
    if len(measured) < 3:
        return None
    value = spearmanr([predict(bits) for bits in measured], list(measured.values())).statistic
    return {"rank_correlation": float(value), "policies": len(measured)} if math.isfinite(value) else None


def predictions(data: dict, weights: dict) -> Callable[[Sequence[str]], float]:
    """bits -> sum of the stored errors of its roundings, as `sweep.coded` keeps them."""
    errors, shape = weights["errors"], (len(data["timesteps"]), len(data["layers"]), len(data["a_bits"]))
    codes = np.frombuffer(base64.b64decode(errors["codes"]), np.uint8).reshape(shape)
    values = np.exp(errors["low"] + codes / 255 * (errors["high"] - errors["low"]))

    def predict(bits: Sequence[str]) -> float:
        index = np.array([[data["a_bits"].index(int(digit)) for digit in row] for row in bits])
        return float(np.take_along_axis(values, index[..., None], -1).sum())

    return predict
