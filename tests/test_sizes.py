"""Sizes counted from shapes agree with the published counts and with what a quantized model stores."""

import pytest

import adatsq
from adatsq import fits, sizes


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("black-forest-labs/FLUX.1-schnell", (11.9, 0.123, 4.76, 0.084)),
        ("Tongyi-MAI/Z-Image-Turbo", (6.15, 4.02, 0.084)),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (1.42, 5.68, 0.127)),
    ],
)
def test_parameters_are_the_published_ones(model, billions):
    table = sizes.memory(model)
    *parts, whole = table.parameters
    assert [count / 1e9 for count in parts] == pytest.approx(billions, rel=0.01)
    assert whole == sum(parts)
    assert table["16 bit, GB"].iloc[0] == pytest.approx(2 * billions[0], rel=0.01)
    assert table.at["transformer", "W3, GB"] < table.at["transformer", "W4, GB"] < 2 * billions[0] / 3


@pytest.mark.parametrize("w_bits", [4, 3])
def test_saved_bytes_are_those_of_a_quantized_model(tiny_pipe, w_bits):
    saved = sizes._saved_bytes(tiny_pipe.transformer, w_bits)
    parameters = sum(p.numel() for p in tiny_pipe.transformer.parameters())
    table = adatsq.summary(adatsq.rtn(tiny_pipe, w_bits=w_bits, a_bits=w_bits))
    quantized = table.loc[["weights and activations", "weights only (adaLN)"]]
    assert 2 * quantized.parameters.sum() - saved == pytest.approx(quantized.bytes.sum(), abs=1)
    assert parameters == table.at["transformer", "parameters"]


def test_hessians_of_the_largest_block():
    # Flux's double block: per stream q, k, v, out, modulation and one MLP layer of 3072 inputs, one of 12288
    expected = 4 * 2 * (6 * 3072**2 + (4 * 3072) ** 2)
    assert sizes.hessian_bytes("black-forest-labs/FLUX.1-schnell") == expected


def test_rotations_are_counted_as_operations_in_16_bits():
    """FLUX.1's layers, by hand: (inputs, outputs, how many), in blocks of 1024 (3072, 15360) or 4096."""
    double = [(3072, 3072, 8), (3072, 12288, 2), (12288, 3072, 2)]
    single = [(3072, 3072, 3), (3072, 12288, 1), (15360, 3072, 1)]
    layers = [(i, o, 19 * n) for i, o, n in double] + [(i, o, 38 * n) for i, o, n in single]
    weights = sum(i * o * n for i, o, n in layers)
    cost = {3072: (10, 64), 15360: (10, 64), 12288: (12, 128)}
    expected = [sum(16 * i * cost[i][k] * n for i, _, n in layers) / weights for k in (0, 1)]
    assert sizes.rotation_bits("black-forest-labs/FLUX.1-dev") == pytest.approx(expected)


def test_room_is_what_loading_asks_for_and_what_quantizing_holds():
    real = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    whole = 2e-9 * sizes.memory(real).parameters["all"]
    needed = sizes.room(real)
    assert needed["load"] == pytest.approx(fits.ROOM * whole)
    # Wan's block: 8 linears of 1536 x 1536 (two attentions), 1536 -> 8960 -> 1536; one Hessian per linear
    weights = 30 * (8 * 1536**2 + 2 * 1536 * 8960)
    hessians = 4 * (9 * 1536**2 + 8960**2)
    assert needed["quantize"] == pytest.approx(whole + 1e-9 * (weights + hessians))
    said = sizes.room_needed(real)
    assert f"{needed['load']:.1f} GB free" in said and f": {needed['quantize']:.1f} GB" in said


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match="no configuration of 'x/y'"):
        sizes.memory("x/y")
