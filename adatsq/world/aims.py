"""What the training of a mini model aimed at, and whether its stored full-precision score gets there."""

from pathlib import Path

import pandas as pd

from adatsq.evaluate import intervals

AT_LEAST = {"z-image-mini": 0.85}  # the total
BELOW_AT_MOST = {"flux-schnell-mini": ("flux-dev-mini", 0.03)}  # of the model that it was distilled from


def aim(name: str, results: str | Path) -> str:
    """In words, from NAME-images.csv of `results`: "" for a model without an aim or without a score.

    The score is the mean of the six categories' shares. A difference is over the same prompts and seeds, with
    its 95% interval (`evaluate.intervals`).
    """
    if name in AT_LEAST:
        wanted, passed = AT_LEAST[name], _passed(name, results)
        if passed is None:
            return ""
        score = intervals(*passed).value["total"]
        reached = "met" if score >= wanted else f"missed by {wanted - score:.4f}"
        said = f"The training aimed at a full-precision total of at least {wanted:g}. It is {score:.4f}"
        return f"{said}: {reached}."
    if name in BELOW_AT_MOST:
        teacher, wanted = BELOW_AT_MOST[name]
        passed, base = _passed(name, results), _passed(teacher, results)
        if passed is None or base is None:
            return ""
        total = intervals(*passed, base[0]).loc["total"]
        reached = "met" if -total.value <= wanted else f"missed by {-total.value - wanted:.4f}"
        return (
            f"The training aimed at a full-precision total at most {wanted:g} below that of {teacher}. It is "
            f"{intervals(*passed).value['total']:.4f} against {intervals(*base).value['total']:.4f}, a "
            f"difference of {total.value:+.4f} (95% interval {total.ci_low:+.4f} to {total.ci_high:+.4f}): "
            f"{reached}."
        )
    return ""


def _passed(name: str, results: str | Path) -> tuple | None:
    """(passed (prompts, pictures per prompt), categories (prompts,)), or None if there are none."""
    file = Path(results) / f"{name}-images.csv"
    if not file.exists():
        return None
    columns = ["method", "prompt", "picture", "category", "passed"]
    rows = pd.read_csv(file, usecols=columns).query("method == 'fp'")
    passed = rows.pivot(index="prompt", columns="picture", values="passed")
    return passed.to_numpy(), rows[rows.picture == 0].set_index("prompt").category[passed.index].tolist()
