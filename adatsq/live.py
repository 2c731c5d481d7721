"""The model behind the explorer in JupyterLab: runs any policy on any prompt, on this machine."""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from adatsq.bench import Bench, picture, prepare
from adatsq.evaluate import psnr
from adatsq.explorer import policy_of
from adatsq.judging import task_of
from adatsq.lagrangian import follow
from adatsq.models import load_pipeline


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
        """request: text, seed and bits. Gives both pictures, the PSNR, and the policy's error on the
        calibration prompts. ValueError if the policy is of another model than the folder's.
        """
        bench, pipe = self._bench(data)
        tau = float("inf") if setting["tau"] is None else setting["tau"]
        key = data["name"], setting["w_bits"], tau
        if key not in self.pipes:
            self.pipes[key] = bench.quantized(setting["w_bits"], tau)
        policy = policy_of(data, request["bits"])
        images = range(min(4, len(bench.trace)))
        asked = [request["text"]], [request["seed"]]
        reference, image = bench.draw(pipe, *asked), bench.draw(self.pipes[key], *asked, policy)
        _, errors = follow(self.pipes[key], bench.trace, {"asked": policy.bits}, images)
        return {
            "text": request["text"],
            "full": picture(reference[0]),
            "image": picture(image[0]),
            "psnr": round(float(psnr(image, reference)[0]), 2),
            "error": errors["asked"],
        }

    def _bench(self, data: dict) -> tuple[Bench, DiffusionPipeline]:
        name = data["name"]
        if name not in self.benches:
            model, steps = str(self.folder / name), len(data["timesteps"])
            task = task_of(load_pipeline(model))
            texts = [p.text for p in task.load(self.prompts / task.files[1])[: self.count]]
            self.benches[name] = prepare(model, texts, steps, self.device, progress=False)
        return self.benches[name]
