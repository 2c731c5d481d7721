"""What the ablation measures: which weights, which activation bits, and what each is compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adatsq.candidates import LADDER, SHARES

TAUS = (math.inf, 0.25, 0.5, 1.0, 2.0)  # inf first: the others are compared with it
BEAMS = (4, 1, 2, 8)  # 4 first, the default
PROMPTS = (1, 2, 4, 8, 16, 32)
BUDGETS = {3: (3.1, 3.6), 4: (4.0,)}  # w_bits: average activation bits; sweeps are made at the last
LOSSES = ("gauss-newton", "flow-matching")
PARTS = ("2x2", "tau", "beam", "shares", "prompts", "loss", "picked")
CANDIDATES = {  # w_bits: name: shares of the layers at 8, 4 and 3 bits. "paper": our reading
    3: {
        "paper": SHARES[3],
        "half": {"high": (0.1, 0.1, 0.8), "mid": (0.05, 0.05, 0.9), "low": (0.0, 0.0, 1.0)},
        "twice": {"high": (0.4, 0.4, 0.2), "mid": (0.2, 0.2, 0.6), "low": (0.0, 0.0, 1.0)},
        "finer": {str(s): (s, s, 1 - 2 * s) for s in (0.2, 0.15, 0.1, 0.05, 0.0)},
        "ladder": LADDER,
    },
    4: {
        "paper": SHARES[4],
        "half": {"high": (0.05, 0.75, 0.2), "mid": (0.025, 0.775, 0.2), "low": (0.0, 0.8, 0.2)},
        "twice": {"high": (0.2, 0.6, 0.2), "mid": (0.1, 0.7, 0.2), "low": (0.0, 0.8, 0.2)},
        "finer": {str(s): (s, 0.8 - s, 0.2) for s in (0.1, 0.075, 0.05, 0.025, 0.0)},
        "ladder": LADDER,
    },
}


@dataclass(frozen=True)
class Weights:
    """Weights calibrated on the first `prompts` prompts: by the Fisher information of `loss`, or, for None,
    with all timesteps alike."""

    prompts: int
    loss: str | None = None
    tau: float = math.inf


@dataclass(frozen=True)
class Search:
    """kind: "paper", with a beam and the name of its candidates, or "lagrangian", with what a bit costs."""

    kind: str = "paper"
    beam: int = 4
    shares: str = "paper"
    cost: str = "layers"


@dataclass(frozen=True)
class Row:
    """One setting. a_bits: of all activations, or with a search the budget.

    baselines: (setting, a_bits) of rows before this one, of the same part. draw: whether it paints pictures.
    """

    part: str
    setting: str
    weights: Weights
    a_bits: float
    search: Search | None = None
    baselines: tuple[tuple[str, float], ...] = ()
    draw: bool = True

    @property
    def method(self) -> str:
        """As in the benchmark's tables."""
        uniform = self.weights.loss is None
        if self.search is None:
            return "hadamard+gptq" if uniform else "adatsq-weights"
        name = "hadamard+gptq+search" if uniform else "adatsq"
        return f"{name}+lagrangian" if self.search.kind == "lagrangian" else name


def plan(w_bits: int, calibration: int, parts: Sequence[str] = PARTS) -> list[Row]:
    """All rows of the parts; a row's baselines come before it, also when rows are taken by their weights."""
    uniform = Weights(calibration)
    fisher = Weights(calibration, "gauss-newton", 1.0)
    fixed, budgets, sweep = float(w_bits), BUDGETS[w_bits], BUDGETS[w_bits][-1]
    alone = (fixed, 8.0)  # at 8 bits of activations, what is lost is the weights' doing
    rows = []

    def add(part: str, setting: str, weights: Weights, a_bits: float, *baselines, **options) -> None:
        rows.append(Row(part, setting, weights, a_bits, baselines=baselines, **options))

    start = ("uniform, fixed", fixed)
    add("2x2", "uniform, fixed", uniform, fixed)
    add("2x2", "fisher, fixed", fisher, fixed, start)
    for b in budgets:
        add("2x2", "uniform, searched", uniform, b, start, search=Search())
        others = start, ("fisher, fixed", fixed), ("uniform, searched", b)
        add("2x2", "fisher, searched", fisher, b, *others, search=Search())
    for tau in TAUS:
        weights = uniform if math.isinf(tau) else Weights(calibration, "gauss-newton", tau)
        for a in alone:
            add("tau", f"tau {tau:g}", weights, a, *[("tau inf", a)] * (tau < math.inf))
    for beam in BEAMS:
        others = [("beam 4", sweep)] * (beam != 4)
        add("beam", f"beam {beam}", fisher, sweep, *others, search=Search(beam=beam))
    for name in CANDIDATES[w_bits]:
        others = [("paper", sweep)] * (name != "paper")
        add("shares", name, fisher, sweep, *others, search=Search(shares=name))
    sizes = sorted({n for n in PROMPTS if n < calibration} | {calibration}, reverse=True)
    for n in sizes:
        for a in alone:
            others = [(f"uniform {calibration}", a)] * (n != calibration)
            add("prompts", f"uniform {n}", Weights(n), a, *others)
    for n in sizes:
        for a in alone:
            weights = Weights(n, "gauss-newton", 1.0)
            add("prompts", f"fisher {n}", weights, a, (f"uniform {n}", a))
    for a in alone:
        add("loss", "none", uniform, a)
    for loss in LOSSES:
        weights = Weights(calibration, loss, 1.0)
        for a in alone:
            add("loss", loss, weights, a, ("none", a))
        others = [(f"{LOSSES[0]}, searched", sweep)] * (loss != LOSSES[0])
        add("loss", f"{loss}, searched", weights, sweep, *others, search=Search())  # candidates go by it too
    for b in budgets:
        for name, search in (
            ("paper", Search()),
            ("ladder", Search(shares="ladder")),
            ("lagrangian", Search("lagrangian")),
            ("lagrangian, flops", Search("lagrangian", cost="flops")),
        ):
            add("picked", name, fisher, b, search=search, draw=False)
    return [row for row in rows if row.part in parts]


def cost(rows: Sequence[Row], w_bits: int, steps: int, held: int, searched: int = 4) -> dict[str, int]:
    """About how many transformer calls, counted per picture, the rows take: an upper bound for searches."""
    drawn = {(row.weights, row.a_bits, row.search) for row in rows if row.draw}
    searches = {(row.weights, row.a_bits, row.search) for row in rows if row.search}
    paths = 0
    for _, _, search in searches:
        one = search.beam * len(CANDIDATES[w_bits][search.shares]) if search.kind == "paper" else 10
        paths += one
    fronts = sum(3 * row.search.beam for row in rows if row.part == "beam")
    losses = {row.weights.loss for row in rows} - {None}
    largest = max((row.weights.prompts for row in rows), default=0)
    return {
        "fisher": 3 * steps * len(losses) * largest,  # a backward pass counts as two
        "weights": steps * sum(w.prompts for w in {row.weights for row in rows}),
        "search": steps * searched * (paths + fronts),
        "pictures": steps * held * len(drawn),
    }
