"""The whole method at the real models' size, with random weights: seconds, peak memory and bytes on disk.

python -m adatsq.cuda.full_size --model flux-dev --folder FOLDER --device cuda
python -m adatsq.cuda.full_size --model wan2.1-1.3b --folder FOLDER --device cpu --tiny      that it runs

builds the pipeline on the device and saves it in shards (`full_size_models`; skipped if FOLDER has it), loads
it as a hub model is loaded, records a calibration run, finds Fisher information and weights on every
--every-th timestep of it, block by block, searches a policy, saves, loads the packed weights again, and
generates to the end. Each result is a row of data/results/full-size.csv as soon as it is there.
Pictures of random weights say nothing of quality: that is measured on the models in data/models.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline

import adatsq
from adatsq.cuda import devices
from adatsq.cuda.full_size_models import MODELS, PROMPTS, build
from adatsq.cuda.graphs import record_calls
from adatsq.cuda.measuring import COLUMNS, Rows, call_seconds, phase, steady, tensor_bytes, versions
from adatsq.models import SAMPLING_FILE
from adatsq.trace import Trace


def thinned(trace: Trace, every: int) -> Trace:
    """The trace at every so many timesteps, from the first: for sums over timesteps, not for a search."""
    steps = range(0, len(trace.timesteps), every)
    return replace(
        trace,
        timesteps=[trace.timesteps[t] for t in steps],
        latents=trace.latents[[*steps, -1]],
        velocity=trace.velocity[list(steps)],
    )


def at_all_steps(fisher: adatsq.Fisher, trace: Trace, every: int) -> adatsq.Fisher:
    """Fisher information of a thinned trace, each timestep's also for those that were left out after it."""
    per_image = fisher.per_image.repeat(every, axis=0)[: len(trace.timesteps)]
    return replace(fisher, per_image=per_image, timesteps=trace.timesteps)


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class Run:
    """The phases of one model; each writes its rows when it is done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.model = MODELS[args.model]
        self.settings = self.model.tiny_settings if args.tiny else self.model.settings
        name = f"{args.model}{'-tiny' if args.tiny else ''}, random weights"
        size = "x".join(
            str(self.settings[k]) for k in ("height", "width", "num_frames") if k in self.settings
        )
        self.rows = Rows(
            args.output,
            {
                **dict.fromkeys(COLUMNS, np.nan),
                "model": name,
                "n": 1,
                "seed": args.seed,
                "size": size,
                "steps": args.steps,
                "calibration_steps": len(range(0, args.steps, args.every)),
                **versions(self.device, args.commit),
            },
        )
        self.full = {"method": "fp", "w_bits": 16, "a_bits": 16}
        self.ours = {"method": "adatsq", "w_bits": args.w_bits, "a_bits": args.budget}

    def write(self, method: dict, found: dict) -> None:
        for metric, value in found.items():
            self.rows.add(**method, metric=metric, value=value)

    def build(self, folder: Path) -> None:
        """A sharded folder of the full-precision pipeline, unless it is there."""
        if (folder / "model_index.json").exists():
            print(f"{folder} is there already", flush=True)
            return
        with phase("build", self.device) as found:
            pipe = build(self.args.model, self.device, self.args.tiny, self.args.seed)
            found["parameters"] = sum(p.numel() for p in pipe.transformer.parameters())
        self.write(self.full, found)
        with phase("save", self.device) as found:
            pipe.save_pretrained(folder, max_shard_size="40KB" if self.args.tiny else "5GB")
            (folder / SAMPLING_FILE).write_text(json.dumps(self.settings))
            found["disk_bytes"] = disk_bytes(folder)
        self.write(self.full, found)

    def load(self, folder: Path) -> DiffusionPipeline:
        with phase("load", self.device) as found:
            pipe = adatsq.load_pipeline(folder, torch.bfloat16, self.device)
            found["transformer_memory_bytes"] = tensor_bytes(pipe.transformer)
        self.write(self.full, found)
        return pipe

    def generate(self, pipe: DiffusionPipeline, method: dict, name: str = "generate", step: str = "step_s"):
        with phase(name, self.device) as found, call_seconds(pipe.transformer, self.device) as times:
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator("cpu").manual_seed(self.args.seed)
            pictures = pipe(
                PROMPTS[0],
                generator=generator,
                output_type="np",
                num_inference_steps=self.args.steps,
                **adatsq.sampling(pipe),
            )[0]
        found[step] = steady(times)
        print(f"{name}: {len(times)} steps, {found[step]:.4g} s each; {np.shape(pictures)}", flush=True)
        if not np.isfinite(pictures).all():
            raise FloatingPointError(f"{name}: NaN or infinity in the pictures")
        self.write(method, found)

    def compiled(self, pipe: DiffusionPipeline, method: dict) -> None:
        """Compiled, then with each step a CUDA graph: recorded in one run, replayed in the next."""
        pipe.transformer.compile_repeated_blocks()
        self.generate(pipe, method, "generate_compiled", "step_compiled_s")
        if self.device.type == "cuda":
            record_calls(pipe.transformer)
            self.generate(pipe, method, "record_graphs", "step_recorded_s")
            self.generate(pipe, method, "generate_graphs", "step_graphs_s")

    def quantize(self, pipe: DiffusionPipeline) -> None:
        args, start = self.args, time.perf_counter()
        with phase("record", self.device) as found:
            trace = adatsq.record(pipe, PROMPTS[: args.prompts], args.steps, args.seed, 1, progress=False)
        self.write(self.ours, found)
        few = thinned(trace, args.every)
        with phase("fisher", self.device) as found:
            pipe.transformer.enable_gradient_checkpointing()  # else all blocks' activations exist at once
            fisher = adatsq.temporal_fisher(pipe, few, batch_size=1)
            pipe.transformer.disable_gradient_checkpointing()
        self.write(self.ours, found)
        with phase("quantize", self.device) as found:
            alpha = fisher.alpha(tau=1.0)
            adatsq.adatsq_weights(pipe, few, args.w_bits, 4, alpha, stream=True, batch_size=1)
            found["transformer_memory_bytes"] = tensor_bytes(pipe.transformer)
        found["calibration_s"] = time.perf_counter() - start
        print(f"record, fisher, quantize: {found['calibration_s']:.4g} s in all", flush=True)
        self.write(self.ours, found)
        fisher = at_all_steps(fisher, trace, args.every)
        with phase("search", self.device) as found:
            shares = adatsq.SHARES[4 if args.budget >= 3.8 else 3]
            result = adatsq.beam_search(
                pipe, trace, fisher, args.beam, shares, budget=args.budget, images=[0], progress=False
            )
            found["search_calls"] = result.calls
        self.write(self.ours, found)
        adatsq.apply(pipe, result.pick(args.budget))

    def run(self) -> None:
        """All phases, or with --packed the last ones alone, on what an earlier run saved."""
        print(devices.note(self.device), flush=True)
        full = Path(self.args.folder)  # and beside it the packed one, with its bits
        packed = full.with_name(f"{full.name}-w{self.args.w_bits}a{self.args.budget:g}")
        if not self.args.packed:
            self.build(full)
            pipe = self.load(full)
            self.generate(pipe, self.full)
            self.quantize(pipe)
            with phase("save", self.device) as found:
                adatsq.save(pipe, packed)
                found["disk_bytes"] = disk_bytes(packed)
                found["transformer_disk_bytes"] = disk_bytes(packed / "transformer")
            self.write(self.ours, found)
            del pipe
        with phase("load", self.device) as found:
            pipe = adatsq.load(packed, self.device, packed=True)
            found["transformer_memory_bytes"] = tensor_bytes(pipe.transformer)
        print(pipe.transformer.extra_repr(), flush=True)
        self.write(self.ours, found)
        self.generate(pipe, self.ours)
        if self.args.compile:
            self.compiled(pipe, self.ours)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument(
        "--folder", required=True, help="of the full-precision pipeline; -wBITS is put behind"
    )
    parser.add_argument("--device", default="cuda", help="cuda (by default), or cpu, for toys")
    parser.add_argument("--tiny", action="store_true", help="a toy of the same classes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=5, help="calibrate on every so many timesteps")
    parser.add_argument("--prompts", type=int, default=1, help="calibration prompts, at most 2")
    parser.add_argument("--w-bits", type=int, default=4)
    parser.add_argument("--budget", type=float, default=4.0, help="average activation bits")
    parser.add_argument("--beam", type=int, default=2, help="paths that the search keeps")
    parser.add_argument("--packed", action="store_true", help="only load what was saved, and generate")
    parser.add_argument("--compile", action="store_true", help="generate again compiled, and as CUDA graphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("data/results/full-size.csv"))
    parser.add_argument("--commit", help="recorded with each row; by default what git says")
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device: --device cpu --tiny runs a toy of the same classes")
    if args.prompts not in range(1, len(PROMPTS) + 1):
        parser.error(f"--prompts must be 1 to {len(PROMPTS)}, got {args.prompts}")
    Run(args).run()


if __name__ == "__main__":
    main()
