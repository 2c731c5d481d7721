"""The run at full size, in small: all its phases, and that what it builds is the real models' shape."""

import numpy as np
import pandas as pd
import pytest
import torch

import adatsq
from adatsq.cuda import full_size
from adatsq.cuda.full_size_models import MODELS, PROMPTS, build, transformer
from adatsq.cuda.linear import PackedLinear
from adatsq.cuda.measuring import Rows, call_seconds, steady, tensor_bytes

METRICS = {
    "fp": {"parameters", "build_s", "disk_bytes", "save_s", "load_s", "generate_s", "step_s"},
    "adatsq": {
        "record_s",
        "fisher_s",
        "quantize_s",
        "search_s",
        "search_calls",
        "save_s",
        "disk_bytes",
        "load_s",
    }
    | {"generate_s", "step_s", "transformer_memory_bytes", "transformer_disk_bytes"},
}


@pytest.mark.parametrize("model", MODELS)
def test_all_phases_run_and_write_their_rows(model, tmp_path, capsys):
    folder, file = tmp_path / "model", tmp_path / "full-size.csv"
    command = ["--model", model, "--folder", str(folder), "--device", "cpu", "--tiny", "--output", str(file)]
    full_size.main([*command, "--steps", "5", "--every", "2"])
    table = pd.read_csv(file)
    for method, metrics in METRICS.items():
        rows = table[table["method"] == method]
        assert metrics <= set(rows["metric"]) and not rows["metric"].duplicated().any()
        assert (rows["value"] > 0).all()
    assert table[["device", "torch", "commit", "diffusers", "seed", "size"]].notna().all(axis=None)
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()  # shards
    pipe = adatsq.load(f"{folder}-w4a4", packed=True)
    assert any(isinstance(module, PackedLinear) for module in pipe.transformer.modules())
    assert len(pipe.transformer._adatsq_policy.timesteps) == 5
    said = capsys.readouterr().out
    full_size.main([*command, "--steps", "5", "--every", "2", "--packed"])
    again = capsys.readouterr().out
    assert "generate ..." in again and "quantize ..." not in again and "policy of 5 timesteps" in again
    assert len(pd.read_csv(file)) == len(table)
    assert all(
        f"{phase} ..." in said for phase in ("build", "load", "fisher", "quantize", "search", "generate")
    )


def test_what_cannot_run_is_said_before_anything_is_built(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in (
        ([], "no CUDA device: --device cpu --tiny runs a toy"),
        (["--device", "cpu", "--tiny", "--prompts", "3"], "--prompts must be 1 to 2, got 3"),
    ):
        with pytest.raises(SystemExit):
            full_size.main(["--model", "flux-dev", "--folder", str(tmp_path / "model"), *options])
        assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


# Of the published checkpoints: blocks, width of a token, of a feed-forward layer.
SHAPES = {"flux-dev": (57, 3072, 12288), "z-image": (34, 3840, 10240), "wan2.1-1.3b": (30, 1536, 8960)}


@pytest.mark.parametrize(("model", "shape"), SHAPES.items())
def test_the_transformers_are_those_of_the_real_models(model, shape):
    from adatsq.models import block_names, quantizable

    with torch.device("meta"):
        module = transformer(model)
    layers = [layer for layer in quantizable(module) if layer.role == "act"]
    assert len(block_names(module)) == shape[0]
    assert min(layer.in_features for layer in layers) == shape[1]
    assert shape[2] in {layer.out_features for layer in layers}


def test_the_same_seed_builds_the_same_weights():
    states = [build("flux-dev", "cpu", tiny=True, seed=seed).transformer.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    assert not all(torch.equal(t, states[2][name]) for name, t in states[0].items())
    assert torch.get_default_dtype() == torch.float32


def test_thinned_traces_and_checkpointing_leave_the_numbers_alone(tiny_pipe):
    trace = adatsq.record(tiny_pipe, PROMPTS[:1], num_inference_steps=5, progress=False)
    few = full_size.thinned(trace, 2)
    assert few.timesteps == trace.timesteps[::2] and len(few.latents) == 4
    whole = adatsq.temporal_fisher(tiny_pipe, trace, progress=False).values
    plain = adatsq.temporal_fisher(tiny_pipe, few, progress=False)
    tiny_pipe.transformer.enable_gradient_checkpointing()
    fisher = adatsq.temporal_fisher(tiny_pipe, few, progress=False)
    np.testing.assert_allclose(fisher.values, plain.values, rtol=1e-5)
    np.testing.assert_allclose(fisher.values.iloc[0], whole.iloc[0], rtol=1e-5)  # the same probe
    spread = full_size.at_all_steps(fisher, trace, 2).values
    assert spread.index.tolist() == trace.timesteps
    assert np.array_equal(spread.to_numpy(), fisher.values.to_numpy()[[0, 0, 1, 1, 2]])


def test_a_row_replaces_an_older_one_of_the_same(tmp_path):
    file = tmp_path / "rows.csv"
    for value in (1.0, 2.0):
        fixed = {"model": "m", "device": "cpu", "a_bits": 4.0}
        rows = Rows(file, fixed, keys=("model", "metric", "device", "a_bits"))
        rows.add(metric="a", value=value)
    rows.add(metric="b", value=3.0)
    assert pd.read_csv(file)["value"].tolist() == [2.0, 3.0]


def test_bytes_and_seconds():
    linear = torch.nn.Linear(4, 2)
    linear.again = linear.weight
    assert tensor_bytes(linear) == 4 * (8 + 2)
    with call_seconds(linear, torch.device("cpu")) as times:
        for _ in range(3):
            linear(torch.ones(1, 4))
    assert len(times) == 3 and steady([9.0, 1.0, 2.0, 3.0]) == 2.0 and steady([9.0]) == 9.0
