import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

from adatsq import integer, recipes, storage
from adatsq.calibration import hessians
from adatsq.gptq import layer_error
from adatsq.linear import QuantLinear
from adatsq.models import load_pipeline, quantizable
from adatsq.rotation import rotate, unrotate
from adatsq.trace import record, velocity

RECIPES = [recipes.rtn, recipes.hadamard, recipes.hadamard_gptq, recipes.adatsq_weights]


@pytest.fixture(scope="module")
def trace(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    return record(pipe, ["a red circle", "two blue squares"], num_inference_steps=3, progress=False)


@pytest.fixture(scope="module")
def alpha(trace):
    """Weights over time that rise, differently for each layer."""
    names = [layer.name for layer in trace.layers]
    raw = np.arange(1.0, 4.0)[:, None] ** np.linspace(0.5, 2, len(names))
    return pd.DataFrame(raw / raw.sum(0), index=pd.Index(trace.timesteps), columns=names)


def quant_linears(pipe):
    return {n: m for n, m in pipe.transformer.named_modules() if isinstance(m, QuantLinear)}


def test_recipes_have_one_signature():
    first, *others = [inspect.signature(recipe) for recipe in RECIPES]
    assert all(other == first for other in others)
    assert list(first.parameters) == ["pipe", "trace", "w_bits", "a_bits", "alpha", "options"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_quantizes_the_same_layers(recipe, tiny_pipe, tiny_images, trace, alpha):
    layers = quantizable(tiny_pipe.transformer)
    weights = {layer.name: tiny_pipe.transformer.get_submodule(layer.name).weight for layer in layers}
    assert recipe(tiny_pipe, trace, 3, 5, alpha) is tiny_pipe
    found = quant_linears(tiny_pipe)
    assert list(found) == [layer.name for layer in layers] == [m.name for m in found.values()]
    rotated = recipe is not recipes.rtn
    for layer in layers:
        module = found[layer.name]
        act = layer.role == "act"
        assert (module.w_bits, module.a_bits) == ((3, 5) if act else (4, 16))
        assert (module.rotation, module.a_clip) == ((rotated, rotated) if act else (False, False))
        assert not any(tensor.requires_grad for tensor in module.state_dict().values())
        weight = unrotate(module.weight_matrix()) if module.rotation else module.weight_matrix()
        relative = (weight - weights[layer.name]).square().mean() / weights[layer.name].square().mean()
        assert relative < 0.2  # GPTQ moves weights further than rounding would
    assert tiny_images(tiny_pipe, num_inference_steps=2).shape == (1, 32, 32, 3)


def test_rtn_is_absmax_and_ignores_the_trace(tiny_pipe):
    weight = tiny_pipe.transformer.get_submodule("transformer_blocks.0.ff.net.2").weight.detach()
    recipes.rtn(tiny_pipe)
    module = tiny_pipe.transformer.get_submodule("transformer_blocks.0.ff.net.2")
    scale = (weight.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    assert torch.equal(module.scale, scale)
    assert torch.equal(module.codes, (weight / scale).round().clamp(-7, 7).to(torch.int8))


@pytest.mark.parametrize("rotation", [True, False])
def test_gptq_lowers_the_error_under_the_hessian_it_was_given(rotation, tiny_folder, trace, alpha):
    """Measured in the unrotated basis. With alpha or without, each is best at its own objective."""
    pipe = load_pipeline(tiny_folder)
    weights = {
        layer.name: pipe.transformer.get_submodule(layer.name).weight.detach() for layer in trace.layers
    }
    objective = {}
    for name, a in (("uniform", None), ("weighted", alpha)):
        objective[name] = {k: h for _, hs in hessians(pipe, trace, a, progress=False) for k, h in hs.items()}
    errors = {}
    for name, options in {
        "rtn": {"solver": "rtn"},
        "uniform": {},
        "weighted": {"alpha": alpha},
    }.items():
        done = recipes.quantize(
            load_pipeline(tiny_folder), trace, 3, rotation=rotation, progress=False, **options
        )
        for goal, hs in objective.items():
            errors[name, goal] = 0.0
            for layer, module in quant_linears(done).items():
                matrix = unrotate(module.weight_matrix()) if module.rotation else module.weight_matrix()
                ones = torch.ones(len(matrix), 1)
                scale = hs[layer].diag().mean()  # so that no layer outweighs the others
                errors[name, goal] += layer_error(weights[layer], matrix, ones, hs[layer] / scale)
    assert errors["uniform", "uniform"] < errors["weighted", "uniform"] < 0.7 * errors["rtn", "uniform"]
    assert errors["weighted", "weighted"] < errors["uniform", "weighted"] < 0.7 * errors["rtn", "weighted"]


def test_result_does_not_depend_on_blocks_per_pass(tiny_folder, trace, alpha):
    states = []
    for blocks_per_pass in (1, 3, None):
        pipe = load_pipeline(tiny_folder)
        recipes.quantize(pipe, trace, 4, alpha=alpha, blocks_per_pass=blocks_per_pass, progress=False)
        states.append(pipe.transformer.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], tensor) for name, tensor in states[0].items())


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_16_bit_at_16_bit_is_exactly_full_precision(solver, tiny_pipe, tiny_images):
    before = tiny_images(tiny_pipe)
    recipes.quantize(tiny_pipe, None, 16, 16, solver=solver)
    assert len(quant_linears(tiny_pipe)) == len(quantizable(tiny_pipe.transformer))
    np.testing.assert_array_equal(tiny_images(tiny_pipe), before)


def test_error_falls_with_bits_and_better_recipes(tiny_folder, trace, alpha):
    reference = torch.stack([trace.velocity[t] for t in range(3)])

    def error(recipe, w_bits, a_bits):
        pipe = recipe(load_pipeline(tiny_folder), trace, w_bits, a_bits, alpha)
        with torch.no_grad():
            answers = torch.stack([velocity(pipe.transformer, trace, t) for t in range(3)])
        return (answers - reference).square().mean().item()

    by_recipe = {recipe: [error(recipe, bits, bits) for bits in (3, 4, 8)] for recipe in RECIPES}
    for errors in by_recipe.values():
        assert errors == sorted(errors, reverse=True)
    for bits in range(3):
        assert by_recipe[recipes.hadamard_gptq][bits] < by_recipe[recipes.hadamard][bits]
    weights_only = error(recipes.hadamard_gptq, 3, 16), error(recipes.hadamard, 3, 16)
    assert weights_only[0] < 0.5 * weights_only[1]


def test_group_size_and_modulation_bits(tiny_pipe):
    recipes.quantize(tiny_pipe, w_bits=4, solver="rtn", group_size=16, modulation_bits=8)
    found = quant_linears(tiny_pipe)
    assert found["transformer_blocks.0.attn.to_q"].group_size == 16
    assert found["transformer_blocks.0.norm1.linear"].w_bits == 8


def test_modulation_weights_are_grouped_where_the_width_allows(tiny_pipe):
    wide = torch.nn.Linear(128, 192)
    tiny_pipe.transformer.transformer_blocks[0].norm1.linear = wide
    recipes.rtn(tiny_pipe)
    assert tiny_pipe.transformer.transformer_blocks[0].norm1.linear.group_size == 64


def test_bad_requests_name_the_value_and_change_nothing(tiny_pipe, trace, alpha):
    cases = [
        (dict(w_bits=9), "w_bits must be 16 or a whole number from 2 to 8, got 9"),
        (dict(w_bits=4, a_bits=1), "a_bits must .* got 1"),
        (dict(w_bits=4, modulation_bits=0), "modulation_bits must .* got 0"),
        (dict(w_bits="4"), "w_bits must .* got '4'"),
        (dict(w_bits=None), "w_bits must .* got None"),
        (dict(w_bits=4.5), "w_bits must .* got 4.5"),
        (dict(w_bits=4, a_bits="4"), "a_bits must .* got '4'"),
        (dict(w_bits=4, a_bits=16.5), "a_bits must .* got 16.5"),
        (dict(solver="magic"), "solver must be 'gptq' or 'rtn', got 'magic'"),
        (dict(solver="gptq"), "needs a trace"),
        (dict(solver="rtn", alpha=alpha), "cannot use alpha"),
        (dict(trace=trace, alpha=alpha.iloc[:2]), "alpha has 2 timesteps"),
        (
            dict(trace=trace, group_size=20),
            "layer transformer_blocks.0.attn.to_q: group size 20 does not divide rows of 32",
        ),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            recipes.quantize(tiny_pipe, progress=False, **options)
        assert not quant_linears(tiny_pipe)
    with pytest.raises(ValueError, match="needs alpha"):
        recipes.adatsq_weights(tiny_pipe, trace)
    recipes.rtn(tiny_pipe)
    with pytest.raises(ValueError, match="quantized already"):
        recipes.rtn(tiny_pipe)


def test_nan_weights_and_activations_are_named(tiny_pipe, tiny_images):
    linear = tiny_pipe.transformer.get_submodule("transformer_blocks.1.attn.to_k")
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer transformer_blocks.1.attn.to_k: NaN .* in a weight"):
        recipes.rtn(tiny_pipe)
    linear.weight.data[0, 0] = 0
    recipes.rtn(tiny_pipe)
    tiny_pipe.transformer.get_submodule("transformer_blocks.0.attn.to_out.0").bias[:] = float("inf")
    with pytest.raises(FloatingPointError, match="activations of layer transformer_blocks.0.ff.net.0.proj"):
        tiny_images(tiny_pipe)


def test_a_nan_hessian_is_named(tiny_pipe, trace):
    """A bias that is NaN: the first layer to see what it adds is the one whose Hessian is."""
    tiny_pipe.transformer.get_submodule("transformer_blocks.0.attn.to_out.0").bias.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="layer transformer_blocks.0.ff.net.0.proj: NaN .* Hessian"):
        recipes.hadamard_gptq(tiny_pipe, trace, progress=False)
    assert not quant_linears(tiny_pipe)


def test_summary_counts_every_parameter_and_bit(tiny_pipe):
    transformer = tiny_pipe.transformer
    total = sum(p.numel() for p in transformer.parameters())
    layers = quantizable(transformer)
    act = sum(layer.in_features * layer.out_features for layer in layers if layer.role == "act")
    scales = sum(layer.out_features for layer in layers if layer.role == "act")
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter)  # norms start as ones, which fit 16 bits
    before = storage.summary(tiny_pipe)
    assert before.at["transformer", "parameters"] == total and before.at["transformer", "bytes"] == 4 * total
    transformer.to(torch.bfloat16).float()
    assert storage.summary(tiny_pipe).at["transformer", "bytes"] == 2 * total

    table = storage.summary(recipes.rtn(tiny_pipe, None, 3, 4))
    assert table.at["transformer", "parameters"] == total
    row = table.loc["weights and activations"]
    assert (row["w_bits"], row["a_bits"], row["parameters"]) == (3, 4, act)
    assert row["effective_bits"] == pytest.approx(3 + 16 * scales / act)
    assert row["share"] == act / total
    assert table.loc["weights only (adaLN)", ["w_bits", "a_bits"]].tolist() == [4, 16]
    names = ["weights and activations", "weights only (adaLN)", "kept"]
    assert math.isclose(table.loc[names, "share"].sum(), 1)
    assert table.loc[names, "bytes"].sum() == table.at["transformer", "bytes"]


def test_effective_bits_agree_with_the_formula(tiny_pipe):
    recipes.quantize(tiny_pipe, w_bits=4, solver="rtn", group_size=16)
    found = storage.summary(tiny_pipe).at["weights and activations", "effective_bits"]
    assert found == integer.effective_bits(4, 32, group_size=16)


def test_rotation_happens_in_the_weights_basis(tiny_pipe):
    weight = tiny_pipe.transformer.get_submodule("single_transformer_blocks.0.proj_out").weight.detach()
    recipes.quantize(tiny_pipe, w_bits=8, solver="rtn")
    module = tiny_pipe.transformer.get_submodule("single_transformer_blocks.0.proj_out")
    assert (module.weight_matrix() - rotate(weight)).abs().max() < 0.02 * weight.abs().max()
