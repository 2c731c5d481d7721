"""Diffusers' `from_pretrained` of a saved transformer: the same model as `adatsq.load` gives."""

import json
import subprocess
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import adatsq
from adatsq import baselines, hf_quantizer, io
from adatsq.cuda.linear import PackedLinear
from adatsq.linear import QuantLinear


@pytest.fixture
def saved(family_folders, tmp_path, family):
    pipe = adatsq.load_pipeline(family_folders(family))
    trace = adatsq.record(pipe, ["a red circle", "a ring"], num_inference_steps=2, progress=False)
    adatsq.quantize(pipe, trace, 4, 4, progress=False)
    adatsq.save(pipe, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def flux(tiny_folder, tmp_path):
    pipe = adatsq.load_pipeline(tiny_folder)
    adatsq.save(adatsq.quantize(pipe, solver="rtn", w_bits=3), tmp_path / "saved")
    return tmp_path / "saved"


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("a ring", generator=generator, output_type="np", **adatsq.sampling(pipe))[0]


def test_a_transformer_of_every_family_is_the_saved_one(saved):
    pipe = adatsq.load(saved, packed=torch.cuda.is_available())
    kind = type(pipe.transformer)
    transformer = kind.from_pretrained(saved, subfolder="transformer")
    expected = pipe.transformer.state_dict()
    found = transformer.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    config = json.loads((saved / "transformer" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "adatsq" and config["format_version"] == 3
    pictures = draw(pipe)
    pipe.transformer = transformer
    assert (draw(pipe) == pictures).all()


def test_a_whole_pipeline_comes_by_diffusers_alone(saved):
    kind = type(adatsq.load(saved))
    pipe = kind.from_pretrained(saved)
    assert any(isinstance(module, QuantLinear) for module in pipe.transformer.modules())
    assert (draw(pipe) == draw(adatsq.load(saved, packed=torch.cuda.is_available()))).all()


def test_importing_the_package_is_enough(flux):
    code = (
        "import adatsq, sys; from diffusers import FluxTransformer2DModel as F;"
        "print(F.from_pretrained(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(flux / "transformer")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "w_bits=3" in said and "adatsq: " in said


def test_in_bfloat16_scales_stay_as_they_are(flux):
    model = diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer", torch_dtype=torch.bfloat16)
    layer = model.get_submodule("transformer_blocks.0.attn.to_q")
    assert layer.scale.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16
    assert model.proj_out.weight.dtype == torch.bfloat16
    assert torch.equal(layer.codes, adatsq.load(flux).transformer.get_submodule(layer.name).codes)


def test_with_a_cuda_device_weights_stay_packed(flux, monkeypatch):
    monkeypatch.setattr(hf_quantizer.torch.cuda, "is_available", lambda: True)
    model = diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")
    monkeypatch.undo()
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    assert layers and all(isinstance(layer, PackedLinear) for layer in layers)
    expected = adatsq.load(flux, packed=True).transformer.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_what_is_printed(flux, tiny_pipe):
    transformer = adatsq.load(flux).transformer
    said = repr(transformer)
    layers = sum(isinstance(m, QuantLinear) and m.w_bits == 3 for m in transformer.modules())
    assert f"{layers} linears W3 A3 per channel" in said and "no policy of activation bits" in said
    assert "QuantLinear(32, 32, w_bits=3, a_bits=3)" in said
    pipe = adatsq.quantize(tiny_pipe, solver="rtn", group_size=16)
    trace = adatsq.record(pipe, ["a ring"], num_inference_steps=2, progress=False)
    adatsq.apply(pipe, adatsq.Policy.of(trace, 4))
    said = repr(adatsq.accelerate(pipe, verbose=False).transformer)
    assert "W4 A4 groups of 16 packed" in said and "group_size=16" in said
    assert "activation bits by a policy of 2 timesteps, 4 on average" in said


def test_saving_what_diffusers_loaded(flux, tmp_path):
    pipe = adatsq.load(flux)
    pipe.transformer = diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")
    adatsq.save(pipe, tmp_path / "again")
    for name in (io.WEIGHTS_FILE, "transformer/config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (flux / name).read_bytes()
    with pytest.raises(ValueError, match="not serializable"):
        pipe.transformer.save_pretrained(tmp_path / "other")


NAME = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{NAME}.codes"), f"layer {NAME} has no codes in the file"),
        (
            lambda tensors: tensors.update({f"{NAME}.codes": torch.zeros(3, 7, dtype=torch.uint8)}),
            rf"layer {NAME}: 1024 codes of 3 bits take uint8 planes \(3, 128\), got torch.uint8 \(3, 7\)",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.scale": torch.ones(7, 1)}),
            rf"layer {NAME}: its scale has shape \(7, 1\) instead of \(32, 1\)",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.bias": torch.ones(7)}),
            rf"layer {NAME}: its bias has shape \(7,\) instead of \(32,\)",
        ),
        (lambda tensors: tensors.pop(f"{NAME}.bias"), f"layer {NAME} has no bias in the file"),
        (
            lambda tensors: tensors.update(
                {f"{NAME}.down": torch.zeros(2, 32), f"{NAME}.up": torch.zeros(32, 3)}
            ),
            rf"layer {NAME}: its up has shape \(32, 3\) instead of \(32, 2\)",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}.down": torch.zeros(2, 32)}),
            f"layer {NAME}: its up are missing",
        ),
        (
            lambda tensors: tensors.pop("transformer_blocks.0.attn.norm_k.weight"),
            "the files are incomplete: 1 of the transformer's tensors are in none of them, the first is "
            "transformer_blocks.0.attn.norm_k.weight",
        ),
    ],
)
def test_missing_and_wrong_tensors_are_named(change, message, flux):
    file = flux / io.WEIGHTS_FILE
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")


def change_config(flux, change):
    file = flux / "transformer" / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "message"),
    [("codes", f"layer {NAME}: its codes are missing"), ("bias", "has no bias in the file")],
)
def test_files_from_before_tensors_were_listed_are_checked_too(part, message, flux):
    change_config(flux, lambda config: [said.pop("tensors") for said in config["layers"].values()])
    diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")
    tensors = load_file(flux / io.WEIGHTS_FILE)
    tensors.pop(f"{NAME}.{part}")
    save_file(tensors, flux / io.WEIGHTS_FILE)
    with pytest.raises(ValueError, match=message):
        diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")


@pytest.mark.parametrize("part", ["smoothing", "down", "up"])
def test_what_a_method_adds_to_a_layer_is_missed(part, tiny_folder, tmp_path):
    """Without it the pictures would be others, and nothing would say so."""
    pipe = adatsq.load_pipeline(tiny_folder)
    trace = adatsq.record(pipe, ["a red circle"], num_inference_steps=2, progress=False)
    adatsq.save(baselines.svdquant(pipe, trace, progress=False), tmp_path / "saved")
    file = tmp_path / "saved" / io.WEIGHTS_FILE
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(f".{part}"))
    tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"layer {name.removesuffix('.' + part)} has no {part} in the file"):
        diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "saved" / "transformer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.pop("layers"),
            "quantization_config of this transformer's config.json names no",
        ),
        (
            lambda config: [config["layers"][NAME].pop(key) for key in ("w_bits", "scale_shape")],
            f"the description of layer {NAME} has no w_bits and no scale_shape",
        ),
        (
            lambda config: config["layers"].update({"no.such.layer": config["layers"][NAME]}),
            "layer no.such.layer is in the description, but not in the transformer",
        ),
    ],
)
def test_a_description_that_does_not_fit_is_named(change, message, flux):
    change_config(flux, change)
    with pytest.raises(ValueError, match=message):
        diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")


def test_a_newer_format_is_refused(flux):
    change_config(flux, lambda config: config.update(format_version=4))
    with pytest.raises(
        ValueError, match=r"config\.json has format_version 4, this adatsq reads 3: update it"
    ):
        diffusers.FluxTransformer2DModel.from_pretrained(flux / "transformer")
