"""AdaTSQ (arXiv:2602.09883): post-training quantization of diffusion transformers along denoising time.

    record -> temporal_fisher -> quantize -> beam_search -> pick -> apply -> pipe(prompt) as always

Everything a notebook needs is imported from here; `adatsq.world` (the shapes world of the mini models),
`adatsq.evaluate` and `adatsq.plots` are separate rooms.
"""

from adatsq.candidates import SHARES
from adatsq.cuda.accelerate import accelerate
from adatsq.fisher import Fisher, temporal_fisher
from adatsq.io import load, save, size_report
from adatsq.lagrangian import lagrangian_search, search_policies
from adatsq.models import kept, load_pipeline, quantizable, sampling
from adatsq.policy import Policy, apply
from adatsq.recipes import adatsq_weights, hadamard, hadamard_gptq, rtn
from adatsq.replacement import quantize
from adatsq.search import SearchResult, beam_search, brute_force, hypervolume_share
from adatsq.storage import summary
from adatsq.trace import Trace, record

__version__ = "0.1.0"

__all__ = [
    "SHARES",
    "Fisher",
    "Policy",
    "SearchResult",
    "Trace",
    "accelerate",
    "adatsq_weights",
    "apply",
    "beam_search",
    "brute_force",
    "hadamard",
    "hadamard_gptq",
    "hypervolume_share",
    "kept",
    "lagrangian_search",
    "load",
    "load_pipeline",
    "quantizable",
    "quantize",
    "record",
    "rtn",
    "sampling",
    "save",
    "search_policies",
    "size_report",
    "summary",
    "temporal_fisher",
]
