import copy

import pytest
import torch

from adatsq.cuda.accelerate import accelerate
from adatsq.marginals import marginal_errors, step_coefficients
from adatsq.policy import act_layers
from adatsq.recipes import quantize
from adatsq.trace import record, step, velocity

PROMPTS = ["a red circle", "two blue stars"]
STEPS = 3


@pytest.fixture
def run(family_pipe):
    """(pipeline, trace): activations can be rounded, weights are as they were, so the trace is its own."""
    trace = record(family_pipe, PROMPTS, num_inference_steps=STEPS, progress=False)
    return quantize(family_pipe, w_bits=16, a_bits=4, solver="rtn"), trace


def moved(pipe, trace, first, module, change):
    """Last latents of a copy of image 0 per row of `change` (rows, out), added to that row of module's output
    at step `first`."""
    copies = len(change)
    index, scheduler = [0] * copies, copy.deepcopy(trace.scheduler)
    latents = trace.latents[0][index]

    def hook(module, args, y):
        rows = y.clone().reshape(trace.branches, copies, -1, y.shape[-1])
        rows = rows.transpose(0, 1).reshape(copies, copies, -1)
        rows[range(copies), range(copies)] += change
        rows = rows.reshape(copies, trace.branches, -1, y.shape[-1]).transpose(0, 1)
        return rows.reshape(y.shape)

    with torch.inference_mode():
        for t in range(STEPS):
            handle = module.register_forward_hook(hook) if t == first else None
            latents = step(scheduler, velocity(pipe.transformer, trace, t, latents, index), t, latents)
            if handle is not None:
                handle.remove()
    return latents.double()


def rounding_change(pipe, trace, t, module, bits):
    """(rows, out): what rounding the module's input does to its output, for image 0 at step t."""
    seen = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        velocity(pipe.transformer, trace, t, trace.latents[t][:1], [0])
        handle.remove()
        module.a_bits = bits
        rounded = module(seen[0])
        module.a_bits = 16
        return (rounded - module(seen[0])).flatten(0, -2)


@pytest.mark.parametrize("family", ["flux", "zimage", "wan"], indirect=True)
def test_the_error_is_that_of_moving_each_row_by_its_rounding_error(run):
    """Central differences through the rest of the trajectory, without any backward pass."""
    pipe, trace = run
    layer, t = 3, 0
    found = marginal_errors(pipe, trace, (3, 8), images=[0], probes=16, progress=False)
    for name in [layer.name for layer in act_layers(trace)]:
        assert pipe.transformer.get_submodule(name).a_bits == 4  # put back
        pipe.transformer.get_submodule(name).a_bits = 16
    module = pipe.transformer.get_submodule(act_layers(trace)[layer].name)
    for b, bits in enumerate((3, 8)):
        change = rounding_change(pipe, trace, t, module, bits)
        size = 1e-3 / change.abs().max()
        difference = [moved(pipe, trace, t, module, sign * size * change) for sign in (1, -1)]
        carried = ((difference[0] - difference[1]) / (2 * size)).square().flatten(1).mean(1).sum()
        assert found[t, layer, b] == pytest.approx(float(carried), rel=0.4)


@pytest.mark.parametrize("family", ["flux", "zimage", "wan"], indirect=True)
def test_packed_layers_that_make_their_activations_have_the_same_errors(family_pipe):
    trace = record(family_pipe, PROMPTS, num_inference_steps=STEPS, progress=False)
    pipe = quantize(family_pipe, w_bits=4, a_bits=4, solver="rtn")
    expected = marginal_errors(pipe, trace, (3, 8), progress=False)
    found = marginal_errors(accelerate(pipe, verbose=False), trace, (3, 8), progress=False)
    assert found == pytest.approx(expected, rel=1e-3)


def test_shape_order_and_batches(run):
    pipe, trace = run
    whole = marginal_errors(pipe, trace, (3, 4, 8), progress=False)
    assert whole.shape == (STEPS, len(act_layers(trace)), 3) and (whole >= 0).all()
    assert whole[..., 0].sum() > whole[..., 1].sum() > whole[..., 2].sum() > 0
    parts = [marginal_errors(pipe, trace, (3, 4, 8), images=[i], progress=False) for i in (0, 1)]
    torch.testing.assert_close(
        torch.tensor(whole), torch.tensor(sum(parts) / 2), rtol=0.05, atol=1e-3 * whole.max()
    )


def test_coefficients_are_the_schedulers(run):
    _, trace = run
    coefficients = step_coefficients(trace)
    assert (torch.triu(coefficients) == 0).all()  # a step knows of earlier velocities alone
    if "FlowMatchEuler" in type(trace.scheduler).__name__:
        sizes = torch.as_tensor(trace.scheduler.sigmas).double().diff()
        torch.testing.assert_close(coefficients[-1], sizes, rtol=1e-5, atol=1e-7)


def test_a_scheduler_that_is_not_linear_is_refused(run):
    _, trace = run
    trace.latents[1] += 1
    with pytest.raises(ValueError, match="not linear"):
        step_coefficients(trace)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_coefficients_of_a_run_on_a_gpu(tiny_pipe):
    """The scheduler's numbers stay on the device of the run, the trace's do not."""
    on_cpu = step_coefficients(record(tiny_pipe, ["a red circle"], 3, progress=False))
    on_gpu = step_coefficients(record(tiny_pipe.to("cuda"), ["a red circle"], 3, progress=False))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)
