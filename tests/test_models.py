import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn

from adatsq import models

MINI = Path(__file__).resolve().parents[1] / "data" / "models" / "flux-schnell-mini"


def test_quantizable_lists_block_linears_with_their_roles(tiny_pipe):
    layers = models.quantizable(tiny_pipe.transformer)
    inside = {
        n for n, m in tiny_pipe.transformer.named_modules() if isinstance(m, nn.Linear) and "blocks." in n
    }
    assert {layer.name for layer in layers} == inside
    modulation = [layer.name for layer in layers if layer.role == "weight"]
    assert modulation == [
        "transformer_blocks.0.norm1.linear",
        "transformer_blocks.0.norm1_context.linear",
        "transformer_blocks.1.norm1.linear",
        "transformer_blocks.1.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
        "single_transformer_blocks.1.norm.linear",
    ]
    for layer in layers:
        weight = tiny_pipe.transformer.get_submodule(layer.name).weight
        assert weight.shape == (layer.out_features, layer.in_features)
        assert layer.name.startswith(layer.block + ".")


def test_blocks_are_in_the_order_the_model_runs_them(tiny_pipe, tiny_images):
    seen = []
    for name in models.block_names(tiny_pipe.transformer):
        block = tiny_pipe.transformer.get_submodule(name)
        block.register_forward_hook(lambda *_, name=name: seen.append(name))
    tiny_images(tiny_pipe, num_inference_steps=1)
    assert seen == models.block_names(tiny_pipe.transformer)


def test_transformer_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential has no nn.ModuleList of blocks"):
        models.quantizable(nn.Sequential(nn.Linear(4, 4)))


def test_blocks_of_which_only_a_part_is_found_are_refused():
    config = FluxTransformer2DModel.load_config(MINI / "transformer")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    assert models.block_names(transformer)
    transformer.transformer_blocks = nn.Sequential(*transformer.transformer_blocks)
    with pytest.raises(ValueError, match=r"attention in transformer_blocks \(nn.Sequential\), and .* 16 bit"):
        models.quantizable(transformer)


def test_blocks_without_a_linear_are_refused():
    odd = nn.Module()
    odd.blocks = nn.ModuleList([nn.ModuleDict({"attention": nn.Conv1d(4, 4, 1)})])
    assert models.block_names(odd) == ["blocks.0"]
    with pytest.raises(ValueError, match="the blocks of Module hold no linear layer"):
        models.quantizable(odd)


def test_linears_that_others_have_quantized_are_not_taken_for_what_stays(tiny_pipe):
    """Some keep a weight in parts of their own names, below the layer's."""
    table = models.kept(tiny_pipe.transformer)
    for layer in models.quantizable(tiny_pipe.transformer):
        linear = tiny_pipe.transformer.get_submodule(layer.name)
        parts = {"_data": linear.weight.detach().to(torch.int8), "_scale": torch.ones(layer.out_features)}
        del linear.weight
        linear.weight = nn.ParameterDict({k: nn.Parameter(v, requires_grad=False) for k, v in parts.items()})
    assert models.kept(tiny_pipe.transformer).equals(table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models.warn_of_missed(tiny_pipe.transformer)


def test_load_pipeline_and_its_sampling(tiny_folder, tiny_images):
    pipe = models.load_pipeline(tiny_folder, torch_dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16
    assert models.sampling(pipe) == json.loads((tiny_folder / "sampling.json").read_text())
    assert tiny_images(pipe).shape == (1, 32, 32, 3)


def test_a_folder_in_bfloat16_loads_in_float32_throughout(tiny_folder, tmp_path, tiny_images):
    models.load_pipeline(tiny_folder, torch_dtype=torch.bfloat16).save_pretrained(tmp_path)
    pipe = models.load_pipeline(tmp_path)
    assert {m.dtype for m in pipe.components.values() if isinstance(m, nn.Module)} == {torch.float32}
    tiny_images(pipe)


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "tests/missing", "flux", "owner/name"])
def test_unknown_model_is_one_clear_error(name):
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        models.load_pipeline(name)


def test_a_tensor_that_no_file_has_is_no_random_one(tiny_folder, tmp_path):
    models.load_pipeline(tiny_folder).save_pretrained(tmp_path)
    file = next((tmp_path / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    for name in ("proj_out.weight", "proj_out.bias"):
        tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(
        ValueError, match=r"transformer is incomplete: 2 of the transformer's tensors .* first is proj_out\."
    ):
        models.load_pipeline(tmp_path)


def test_broken_folders_are_clear_errors(tmp_path, tiny_folder):
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        models.load_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text((tiny_folder / "model_index.json").read_text())
    with pytest.raises(ValueError, match="not a complete diffusers pipeline"):
        models.load_pipeline(tmp_path)
    (tmp_path / "adatsq.json").write_text("{}")
    with pytest.raises(ValueError, match="adatsq.load"):
        models.load_pipeline(tmp_path)


def test_sampling_of_a_bad_file(tiny_pipe, tmp_path):
    tiny_pipe.register_to_config(_name_or_path=str(tmp_path))
    assert models.sampling(tiny_pipe) == {}
    (tmp_path / "sampling.json").write_text('{"hight": 64}')
    with pytest.raises(ValueError, match="hight"):
        models.sampling(tiny_pipe)
    (tmp_path / "sampling.json").write_text('{"height": ')
    with pytest.raises(ValueError, match="not valid JSON"):
        models.sampling(tiny_pipe)
