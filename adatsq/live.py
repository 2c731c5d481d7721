"""The model behind the explorer in JupyterLab: runs policies and searches for them, on this machine."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from adatsq.bench import Bench, digits, picture, prepare
from adatsq.evaluate import psnr
from adatsq.explorer import policy_of
from adatsq.judging import task_of
from adatsq.lagrangian import follow, lagrangian_search
from adatsq.models import load_pipeline
from adatsq.policy import Policy
from adatsq.search import beam_search
from adatsq.sweep_part import A_BITS, SEARCH, shares_of


class LiveModels:
    """live(data, setting, request): what the explorer asks of a kernel. A model's run and its Fisher scores
    are computed at its first request, its weights at the first one of their w_bits and tau; both are kept.

    folder: where the models are, under the names in the explorer's data. prompts: folder of prompt files, of
    which the first `count` calibration prompts are used: where the sweep had more, weights and errors differ
    from the stored ones.
    """

    def __init__(self, folder: str | Path, prompts: str | Path, count: int = 4, device: str | None = None):
        self.folder, self.prompts, self.count = Path(folder), Path(prompts), count
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.benches: dict[str, tuple[Bench, DiffusionPipeline]] = {}
        self.pipes: dict[tuple, DiffusionPipeline] = {}

    def __call__(self, data: dict, setting: dict, request: dict) -> dict:
        """request: text, seed and bits; or instead of bits budget and beam, for a search by the setting's
        method. Gives the policy's bits, both pictures, the PSNR, and the error on the calibration prompts.
        ValueError if the policy is of another model than the folder's, and as from the searches.
        """
        bench, pipe = self._bench(data)
        tau = float("inf") if setting["tau"] is None else setting["tau"]
        key = data["name"], setting["w_bits"], tau
        if key not in self.pipes:
            self.pipes[key] = bench.quantized(setting["w_bits"], tau)
        quantized, images = self.pipes[key], range(min(SEARCH, len(bench.trace)))
        if "bits" in request:
            policy = policy_of(data, request["bits"])
        else:
            policy = searched(bench, quantized, setting, request["budget"], request["beam"], images)
        asked = [request["text"]], [request["seed"]]
        reference, image = bench.draw(pipe, *asked), bench.draw(quantized, *asked, policy)
        _, errors = follow(quantized, bench.trace, {"asked": policy.bits}, images)
        return {
            "text": request["text"],
            "full": picture(reference[0]),
            "image": picture(image[0]),
            "psnr": round(float(psnr(image, reference)[0]), 2),
            "error": errors["asked"],
            "bits": digits(policy.bits),
        }

    def _bench(self, data: dict) -> tuple[Bench, DiffusionPipeline]:
        name = data["name"]
        if name not in self.benches:
            model, steps = str(self.folder / name), len(data["timesteps"])
            task = task_of(load_pipeline(model))
            texts = [p.text for p in task.load(self.prompts / task.files[1])[: self.count]]
            self.benches[name] = prepare(model, texts, steps, self.device, progress=False)
        return self.benches[name]


def searched(
    bench: Bench, pipe: DiffusionPipeline, setting: dict, budget: float, beam: int, images: Sequence[int]
) -> Policy:
    """What the setting's method finds for this budget. ValueError for fixed bits, which are not searched."""
    method, given = setting["method"], {"images": images, "budget": budget, "progress": False}
    if method == "uniform":
        raise ValueError("fixed bits are not searched: choose another method")
    if method == "lagrangian":
        return lagrangian_search(pipe, bench.trace, bench.fisher, a_bits=A_BITS, **given).pick(budget)
    options = {"beam": beam, "shares": shares_of(method, setting["w_bits"]), "a_bits": A_BITS}
    return beam_search(pipe, bench.trace, bench.fisher, **options, **given).pick(budget)
