"""Made-up data of the explorer, as the sweep writes it."""

import base64
import io
import itertools

import numpy as np
from PIL import Image

from adatsq.bench import coded

LAYERS = [
    ["transformer_blocks.0.attn.to_q", 8, 8, 16],
    ["transformer_blocks.0.ff", 8, 32, 16],
    ["context_refiner.0.attention.to_q", 40, 8, 20],
]
STEPS = [1.0, 0.7, 0.00004, 3e-7]  # some that Python and JavaScript write differently


def picture(color, frames=1):
    """One colour; in each frame of a clip a white dot elsewhere, but in no corner."""
    image, buffer = np.full((8, 8 * frames, 3), color, dtype=np.uint8), io.BytesIO()
    if frames > 1:
        image[4, [8 * f + 2 + f for f in range(frames)]] = 255
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def made_up(name="made-up", seed=0, errors=True, frames=1):
    """Data as the sweep writes it: 2 weight bits x 2 tau x (2 beams, fixed bits), 4 steps, 3 layers."""
    rng = np.random.default_rng(seed)
    measured = rng.uniform(0.1, 1, (2, 2, 4, 3, 3))
    measured = np.sort(measured, axis=-1)[..., ::-1]

    policies = {(w_bits, tau): [] for w_bits, tau in itertools.product((4, 3), (0.25, None))}

    def setting(method, w_bits, tau, beam):
        made = []
        for budget in (3.0, 4.0, 5.0):
            bits = np.full((4, 3), 3) if budget == 3 else rng.choice([3, 4, 8], (4, 3), p=[0.6, 0.3, 0.1])
            weights = [l[1] * l[2] * l[3] for l in LAYERS]
            made.append(
                {
                    "average_bits": round(float(bits.mean()), 4),
                    "flop_weighted_bits": round(float(np.average(bits.mean(0), weights=weights)), 4),
                    "error": round(float(rng.uniform(0.1, 1)), 3),
                    "bits": ["".join(map(str, row)) for row in bits],
                    "psnr": rng.uniform(20, 40, 2).round(2).tolist(),
                    "mean_psnr": 30.0,
                    "images": [picture(rng.integers(150, 200, 3), frames) for _ in range(2)],
                    "score": {"value": 0.9, "ci_low": 0.875, "ci_high": 0.925, "n": 12},
                }
            )
        stored, places = policies[w_bits, tau], []
        for policy in sorted(made, key=lambda policy: policy["average_bits"]):
            bits = [other["bits"] for other in stored]
            places.append(bits.index(policy["bits"]) if policy["bits"] in bits else len(bits))
            stored += [policy] * (places[-1] == len(bits))
        points = [[stored[i]["average_bits"], stored[i]["error"]] for i in places]
        choices = [{"budget": b, "policy": i} for b, i in zip((3.0, 4.0, 5.0), places)]
        return {
            "method": method,
            "w_bits": w_bits,
            "tau": tau,
            "beam": beam,
            "paths": points,
            "front": sorted(points),
            "uniform": [[3.0, 1.1], [4.0, 0.5]],
            "choices": choices if method == "ladder" else choices[:2],
        }

    settings = [
        setting(*kind[:1], w_bits, tau, kind[1])
        for kind in (("ladder", 1), ("ladder", 4), ("uniform", None))
        for w_bits, tau in itertools.product((4, 3), (0.25, None))
    ]
    return {
        "format_version": 3,
        "name": name,
        "model": "none",
        "timesteps": STEPS,
        "branches": 1,
        "layers": LAYERS,
        "a_bits": [3, 4, 8],
        "calibration": 2,
        "search": 1,
        "frames": frames,
        "fisher": rng.uniform(1, 9, (4, 3)).round(2).tolist(),
        "prompts": [
            {"text": text, "seed": 0, "image": picture(3 * [grey], frames)}
            for text, grey in (("a star</script><b>", 200 + seed), ("a ring", 210 + seed))
        ],
        "drawn": 12,
        "score": {"value": 0.95, "ci_low": 0.9, "ci_high": 1.0, "n": 12},
        "w_bits": [4, 3],
        "taus": [0.25, None],
        "effective_timesteps": [1.5, 4.0],
        "budgets": [3.0, 4.0, 5.0],
        "beams": [1, 4],
        "weights": [
            {
                "w_bits": w_bits,
                "tau": tau,
                "transformer_bytes": w_bits * 10**6,
                "effective_bits": w_bits + 0.5,
                "policies": policies[w_bits, tau],
                "errors": coded(measured[i, j]) if errors else None,
                "agreement": {"rank_correlation": 0.75, "policies": 5} if errors else None,
            }
            for (i, w_bits), (j, tau) in itertools.product(enumerate((4, 3)), enumerate((0.25, None)))
        ],
        "settings": settings,
    }
