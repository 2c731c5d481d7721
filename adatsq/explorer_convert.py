"""Explorer data of format 1 as format 2, from files that the benchmark wrote of the same model:

    python -m adatsq.explorer_convert OLD.json --policy NAME-policy-X.json --facts FACTS.csv --out NEW.json

The policy file gives the layers' shapes, the exact timesteps and the guidance; the facts give bytes. What
format 1 never had, errors of single roundings, is left out: the explorer then predicts nothing.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from adatsq.files import write_text
from adatsq.policy import Policy

# How `sweep` made every file of format 1.
FIXED = {"method": "ladder", "beam": 4}
A_BITS, CALIBRATION = [3, 4, 8], 16


def convert(old: dict, policy: Policy, facts: pd.DataFrame) -> dict:
    """ValueError for another format, or a policy and facts that are not of the model of `old`."""
    if old.get("format_version") != 1:
        raise ValueError(f"format_version is {old.get('format_version')}, only 1 can be converted")
    names = [layer.name for layer in policy.layers]
    same_steps = len(old["timesteps"]) == len(policy.timesteps)
    if policy.model != old["model"] or names != old["layers"] or not same_steps:
        raise ValueError(f"the policy is of {policy.model}, the explorer data of {old['model']}")
    if not np.allclose(policy.timesteps, old["timesteps"], rtol=1e-3):
        raise ValueError("the policy has other timesteps than the explorer data")
    for setting in old["settings"]:
        for choice in setting["choices"]:
            bits = np.array([[int(digit) for digit in row] for row in choice["bits"]])
            found = Policy(policy.timesteps, policy.layers, bits, policy.model)
            if abs(found.flop_weighted - choice["flop_weighted_bits"]) > 1e-4:
                raise ValueError(
                    f"a stored policy averages {choice['flop_weighted_bits']} bits by multiplications, with "
                    f"the layers of the policy file {found.flop_weighted:.4f}: they are of different models"
                )
    pairs = [(setting["w_bits"], setting["tau"]) for setting in old["settings"]]
    new = {
        "format_version": 2,
        "timesteps": list(policy.timesteps),
        "branches": policy.branches,
        "layers": [list(layer) for layer in policy.layers],
        "a_bits": A_BITS,
        "calibration": CALIBRATION,
        "weights": [
            {"w_bits": w_bits, "tau": tau, **_memory(facts, old["name"], w_bits), "errors": None}
            for w_bits, tau in pairs
        ],
        "settings": [{**FIXED, **setting} for setting in old["settings"]],
    }
    return {**old, **new}


def _memory(facts: pd.DataFrame, model: str, w_bits: int) -> dict:
    """Bytes and bits of these weights, whose size is the same for every tau."""
    rows = facts[(facts.model == model) & (facts.method == "adatsq-weights") & (facts.w_bits == w_bits)]
    if rows.empty:
        raise ValueError(f"the facts have no row of {model}, adatsq-weights, {w_bits} bits")
    row = rows.iloc[0]
    return {
        "transformer_bytes": int(row.transformer_bytes),
        "effective_bits": float(row.effective_bits),
    }


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("old", type=Path)
    parser.add_argument("--policy", type=Path, required=True, help="any policy of the model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    old = json.loads(args.old.read_text(encoding="utf-8"))
    new = convert(old, Policy.load(args.policy), pd.read_csv(args.facts))
    write_text(args.out, json.dumps(new, separators=(",", ":")) + "\n")
    print(f"{args.out}: format 2")


if __name__ == "__main__":
    main()
