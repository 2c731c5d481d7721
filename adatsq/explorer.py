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
import traitlets
from matplotlib.colors import to_hex
from scipy.stats import spearmanr

from adatsq.plots import BIT_COLORS
from adatsq.policy import Policy
from adatsq.sweep import FORMAT_VERSION

PARTS = ("explorer_policy.js", "explorer_figures.js", "explorer.js")
MODULE = "\n".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in PARTS)

# What a page has instead of the kernel's model. Data of a model are read when it is chosen: from the element,
# or from the script that its data-src names, which puts them there (book/ext/light_explorer.py).
STAND_IN = """
async function unpack(id) {
  const element = document.getElementById(id);
  if (element.dataset.src && !element.textContent) {
    const src = element.dataset.src, script = Object.assign(document.createElement("script"), { src });
    await new Promise((done, failed) => {
      [script.onload, script.onerror] = [done, () => failed(new Error(`${src} is not there`))];
      document.head.append(script);
    });
  }
  const packed = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).json();
}
const state = await unpack("ID-state");
state.data = state.data.map((name, i) => ({ name, load: () => unpack(`ID-data-${i}`) }));
state.data[state.model] = await state.data[state.model].load();
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

# (data of a model, its setting, request) -> the picture and its numbers; see `adatsq.live`
Live = Callable[[dict, dict, dict], dict]


class BitBudgetExplorer(anywidget.AnyWidget):
    """data: what `load_data` gives, of one model or several. model, setting, budget, prompt: positions in the
    lists of `data`, its settings, their choices, its prompts. painted: a policy of the reader's own, a string
    per step with a digit per layer; empty for the stored one.

    live: with a kernel, a function that runs the policy shown, or searches for one; the widget then has a
    button for each.
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
        """What the stored data holds for the present positions: a budget, and its policy."""
        return choices_of(self.shown, self.shown["settings"][self.setting])[self.budget]

    @property
    def policy(self) -> Policy:
        """The policy in the heat map: the reader's own, or the stored one."""
        return policy_of(self.shown, self.painted or self.choice["bits"])

    def _run(self, change: dict) -> None:
        """Run what the page asked for; whatever goes wrong is told there."""
        self.status = "running ..." if "bits" in change["new"] else "searching ..."
        try:
            answer = self._live(self.shown, self.shown["settings"][self.setting], change["new"])
            if "bits" not in change["new"]:  # a search: what it found is shown as the reader's own
                self.painted = answer["bits"]
            self.live = answer
            self.status = "done"
        except Exception as error:  # the button has no other place to show it
            self.status = f"{type(error).__name__}: {error}"

    def to_html(self) -> str:
        """The explorer for a page: no kernel, no network, so without the live button."""
        name = f"adatsq-explorer-{uuid.uuid4().hex[:8]}"
        synced = ("colors", "model", "setting", "budget", "prompt", "painted")
        state = {trait: getattr(self, trait) for trait in synced}
        state |= {"data": [one["name"] for one in self.data]}
        state |= {"can_run": False, "request": {}, "status": "", "live": None}
        texts = {"state": state} | {f"data-{i}": one for i, one in enumerate(self.data)}
        packed = [f'<script type="text/plain" id="{name}-{i}">{_pack(x)}</script>' for i, x in texts.items()]
        module = MODULE.replace("</", "<\\/")  # so that it does not end the script element around it
        return "\n".join(
            [
                f'<div id="{name}">{html.escape("This figure needs JavaScript.")}</div>',
                *packed,
                f'<script type="text/plain" id="{name}-module">{module}</script>',
                f'<script type="module">{STAND_IN.replace("ID", name)}</script>',
            ]
        )

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**(data or {}), "text/html": self.to_html()}, metadata


def _pack(value: dict) -> str:
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), mtime=0)).decode()


def policy_of(data: dict, bits: Sequence[str]) -> Policy:
    """Rows of digits as a policy of this model."""
    rows = np.array([[int(digit) for digit in row] for row in bits])
    return Policy(data["timesteps"], data["layers"], rows, data["model"], data["branches"])


def load_data(path: str | Path) -> dict:
    """Read what `python -m adatsq.sweep` wrote; add how well the stored errors predict. FileNotFoundError, or
    ValueError if it is something else."""
    path, how = Path(path), "write it with python -m adatsq.sweep"
    if not path.is_file():
        raise FileNotFoundError(f"no explorer data {path}: {how}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"explorer data {path} is damaged: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"explorer data {path} has format_version {version}, this adatsq reads {FORMAT_VERSION}: {how}"
        )
    for weights in data["weights"]:
        weights["agreement"] = agreement(data, weights)
    return data


def weights_of(data: dict, setting: dict) -> dict:
    """The weights that a setting's policies were searched on."""
    return next(w for w in data["weights"] if (w["w_bits"], w["tau"]) == (setting["w_bits"], setting["tau"]))


def choices_of(data: dict, setting: dict) -> list[dict]:
    """A setting's choices by rising budget: the budget, and of the policy chosen for it all that is told."""
    policies = weights_of(data, setting)["policies"]
    return [{"budget": choice["budget"], **policies[choice["policy"]]} for choice in setting["choices"]]


def place_of(data: dict, budget: float | None = None, **kind: object) -> dict[str, int]:
    """Where a choice is, as positions of the explorer: `place_of(data, 3.6, method="paper", w_bits=3,
    tau=1.0, beam=4)`. Of the settings that agree in the most of these, named first counts most, the first;
    of its budgets the nearest, or the last."""
    names = list(kind)
    likeness = [tuple(setting[name] == kind[name] for name in names) for setting in data["settings"]]
    setting = likeness.index(max(likeness))
    budgets = [choice["budget"] for choice in data["settings"][setting]["choices"]]
    wanted = budgets[-1] if budget is None else budget
    return {"setting": setting, "budget": min(range(len(budgets)), key=lambda i: abs(budgets[i] - wanted))}


def agreement(data: dict, weights: dict) -> dict | None:
    """Rank correlation of predicted and measured error over the different policies stored for these weights.
    None if there are no predictions, or fewer than three policies."""
    if not weights["errors"]:
        return None
    rows = len(data["timesteps"]), len(data["layers"])
    measured = {tuple(policy["bits"]): policy["error"] for policy in weights["policies"]}
    for setting in data["settings"]:
        if weights_of(data, setting) is weights:
            measured |= {(f"{b:g}" * rows[1],) * rows[0]: error for b, error in setting["uniform"]}
    if len(measured) < 3:
        return None
    predict = predictions(data, weights)
    value = spearmanr([predict(bits) for bits in measured], list(measured.values())).statistic
    return {"rank_correlation": float(value), "policies": len(measured)} if math.isfinite(value) else None


def predictions(data: dict, weights: dict) -> Callable[[Sequence[str]], float]:
    """bits -> sum of the stored errors of its roundings, as `bench.coded` keeps them."""
    errors, shape = weights["errors"], (len(data["timesteps"]), len(data["layers"]), len(data["a_bits"]))
    codes = np.frombuffer(base64.b64decode(errors["codes"]), np.uint8).reshape(shape)
    values = np.exp(errors["low"] + codes / 255 * (errors["high"] - errors["low"]))

    def predict(bits: Sequence[str]) -> float:
        index = np.array([[data["a_bits"].index(int(digit)) for digit in row] for row in bits])
        return float(np.take_along_axis(values, index[..., None], -1).sum())

    return predict
