"""What a user would pick instead today: other libraries on the same layers, prompts, seeds and judge.

    pip install -e ".[peers]"
    python -m adatsq.peers --model data/models/flux-dev-mini --out data/results

Rows land in the files of `adatsq.benchmark`; rows already written are skipped. w_bits and a_bits are the bits
that the library is asked for, 16 for activations left as they are. Block linears get both, modulation linears
weights alone (bnb-int8: both), of at least 4 bits, as ours do; a layer that a library cannot take stays in 16
bit. Libraries that calibrate see the benchmark's calibration prompts, all steps of them. Effective bits are
counted from what the layers really store (`stored`).
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import adatsq
from adatsq.benchmark import attempt, command
from adatsq.models import quantizable
from adatsq.peers import bitsandbytes, hqq, modelopt, quanto, sdnq, stored, torchao
from adatsq.results import tidy_tables
from adatsq.rows import Setting, score, scored, timed


@dataclass(frozen=True)
class Peer:
    """quantize(pipe, layers, w_bits, a_bits, trace): in place; trace() records the calibration run.
    Returns the average activation bits of layers of role "act" where these are not a_bits, else None.

    distribution, module: what to install, and to import. bits: (w_bits, a_bits) of its rows.
    """

    distribution: str
    module: str
    quantize: Callable
    bits: tuple[tuple[int, int], ...]


PEERS = {
    # first: after some of the others, in the same process, its backward pass fails
    "modelopt": Peer("nvidia-modelopt", "modelopt", modelopt.modelopt, ((5, 16), (5, 8))),
    "quanto": Peer(
        "optimum-quanto", "optimum.quanto", quanto.quanto, ((8, 16), (4, 16), (2, 16), (8, 8), (4, 8))
    ),
    "torchao": Peer("torchao", "torchao", torchao.torchao, ((8, 16), (4, 16), (8, 8), (4, 8))),
    "hqq": Peer("hqq", "hqq", hqq.hqq, ((4, 16), (3, 16), (2, 16))),
    "bnb-nf4": Peer("bitsandbytes", "bitsandbytes", bitsandbytes.nf4, ((4, 16),)),
    "bnb-int8": Peer("bitsandbytes", "bitsandbytes", bitsandbytes.int8, ((8, 8),)),
    "sdnq": Peer("sdnq", "sdnq", sdnq.sdnq, ((8, 16), (4, 16), (3, 16), (2, 16), (8, 8), (4, 8))),
}


def main(arguments: Sequence[str] | None = None) -> None:
    command(arguments, __doc__, tuple(PEERS), run)


def run(setting: Setting, pipe, calibration: list[str], seed: int) -> list[str]:
    """All rows that are wanted, whose library is here and which are not yet written, then the tables.

    pipe: the full-precision one. Returns the names of rows that failed.
    """
    failed: list[str] = []
    todo = []
    for method in setting.methods:
        if why := missing(method):
            print(why, flush=True)
            continue
        todo += [(method, *bits) for bits in PEERS[method].bits if not scored(setting, method, *bits)]
    if not todo:
        return failed
    reference = setting.draw(pipe, setting.evaluation, setting.pictures)
    if not scored(setting, "fp", 16, 16.0):
        said = score(setting, reference, reference, "fp", 16, 16.0, {"average_bits": 16.0})
        print(f"fp: {said}", flush=True)

    @functools.cache
    def trace() -> adatsq.Trace:
        return adatsq.record(pipe, calibration, setting.steps, seed, 32, progress=False)

    for method, w_bits, a_bits in todo:
        attempt(
            failed, f"{method} W{w_bits}A{a_bits}", row, setting, reference, method, w_bits, a_bits, trace
        )
    if setting.path("-images.csv").exists():
        tidy_tables(setting.path(""))
    return failed


def row(setting: Setting, reference, method: str, w_bits: int, a_bits: int, trace: Callable) -> str:
    """Quantize, draw, judge, write; say the score and the bits that are really stored."""
    pipe = setting.load()
    layers = quantizable(pipe.transformer)
    rest = stored.kept(pipe.transformer, layers)
    if method in CALIBRATED:
        trace()  # recorded once for all, so not in the seconds of the first
    average, seconds = timed(PEERS[method].quantize, pipe, layers, w_bits, a_bits, trace)
    facts = {"quantize_s": seconds, **stored.size(pipe.transformer, layers, rest)}
    facts["average_bits"] = a_bits if average is None else average
    images = setting.draw(pipe, setting.evaluation, setting.pictures)
    said = score(setting, images, reference, method, w_bits, a_bits, facts)
    bits, short = facts["effective_w_bits"], facts["effective_w_bits_16_bit_scales"]
    return f"{said}, {bits:.2f} bits per weight stored ({short:.2f} with scales of 16 bits)"


CALIBRATED = ("quanto", "modelopt")


def missing(method: str) -> str | None:
    """Why a method cannot run here, if its library is not installed."""
    peer = PEERS[method]
    try:
        found = importlib.util.find_spec(peer.module)
    except ModuleNotFoundError:  # not even the package around it
        found = None
    if found is None:
        return f'{method}: not run, {peer.distribution} is not installed (pip install -e ".[peers]")'
    return None
