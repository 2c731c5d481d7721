import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adatsq import files, io, models, recipes, storage
from adatsq.gptq import round_to_nearest
from adatsq.linear import QuantLinear
from adatsq.policy import Policy, apply
from adatsq.trace import record


def quantized(tiny_folder, w_bits=4, a_bits=4, dtype=None, **options):
    pipe = models.load_pipeline(tiny_folder, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return recipes.quantize(pipe, None, w_bits, a_bits, solver="rtn", **options)


def loaded(folder):
    pipe = io.load(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def everything(folder):
    """All files under a folder with their bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{}, {"w_bits": 3, "group_size": 16}, {"w_bits": 16}, {"rotation": False}]
)
def test_loading_gives_bit_identical_images(options, dtype, tiny_folder, tiny_images, tmp_path):
    pipe = quantized(tiny_folder, dtype=dtype, **options)
    prompts = ["a red circle", "two blue squares"]
    before = pipe.transformer.state_dict()
    expected = tiny_images(pipe, prompts)
    io.save(pipe, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    np.testing.assert_array_equal(tiny_images(again, prompts), expected)
    after = again.transformer.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype and torch.equal(after[name], tensor)
    assert models.sampling(again) == models.sampling(pipe)
    assert storage.summary(again).equals(storage.summary(pipe))


def test_an_applied_policy_comes_along(tiny_folder, tiny_images, tmp_path):
    pipe = quantized(tiny_folder)
    trace = record(pipe, ["a red circle"], num_inference_steps=3, progress=False)
    bits = np.random.default_rng(0).choice(
        [3, 4, 8], size=(3, sum(layer.role == "act" for layer in trace.layers))
    )
    apply(pipe, Policy.of(trace, bits))
    expected = tiny_images(pipe, num_inference_steps=3)
    io.save(pipe, tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    np.testing.assert_array_equal(again.transformer._adatsq_policy.bits, bits)
    np.testing.assert_array_equal(tiny_images(again, num_inference_steps=3), expected)
    with pytest.raises(ValueError, match="policy is for 3 steps"):
        tiny_images(again, num_inference_steps=4)
    again.transformer._adatsq_applied.remove()
    assert {m.a_bits for m in again.transformer.modules() if isinstance(m, QuantLinear)} == {4, 16}


def test_w4_takes_a_quarter_of_bfloat16_plus_scales(tiny_folder, tmp_path):
    pipe = quantized(tiny_folder, w_bits=16, modulation_bits=16)
    wide = torch.nn.Linear(1024, 512)
    pipe.transformer.transformer_blocks[0].ff.net[2] = QuantLinear(
        *round_to_nearest(wide.weight.detach(), 4), wide.bias.detach(), 4
    )
    tensors = tmp_path / "w.safetensors"
    io.save(pipe, tmp_path / "saved")
    name = "transformer_blocks.0.ff.net.2"
    stored = load_file(tmp_path / "saved" / io.WEIGHTS_FILE)
    save_file({part: stored[f"{name}.{part}"] for part in ("codes", "scale")}, tensors)
    payload = 512 * 1024 * 4 // 8 + 512 * 2  # codes, and one 16-bit scale per output channel
    assert payload <= tensors.stat().st_size <= payload + 200  # a header
    assert tensors.stat().st_size / (512 * 1024 * 2) == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize("w_bits", [2, 3, 4, 8])
def test_size_report_is_what_the_files_take(w_bits, tiny_folder, tmp_path):
    pipe = quantized(tiny_folder, w_bits=w_bits, dtype=torch.bfloat16)
    table = io.save(pipe, tmp_path / "saved")
    assert table.equals(io.size_report(tmp_path / "saved"))
    assert not any(
        str(tiny_folder).encode() in content for content in everything(tmp_path / "saved").values()
    )
    parts = ["transformer: quantized weights", "transformer: rest"]
    size = (tmp_path / "saved" / io.WEIGHTS_FILE).stat().st_size
    assert (
        0 < size - table.loc[parts, "bytes"].sum() < 0.2 * size
    )  # the header, which is long beside tiny layers
    summary = storage.summary(pipe)
    assert table.loc[parts, "bytes"].sum() == summary.at["transformer", "bytes"]
    assert table.loc[parts, "parameters"].sum() == summary.at["transformer", "parameters"]
    assert table.at["vae", "parameters"] == sum(p.numel() for p in pipe.vae.parameters())
    kinds = summary.loc[["weights and activations", "weights only (adaLN)"]]
    expected = 8 * kinds["bytes"].sum() / kinds["parameters"].sum()
    assert table.at["transformer: quantized weights", "bits_per_parameter"] == pytest.approx(expected)


def test_save_replaces_an_older_save_and_nothing_else(tiny_folder, tmp_path):
    pipe = quantized(tiny_folder)
    io.save(pipe, tmp_path / "saved")
    (tmp_path / "saved" / "stale").write_text("from the older save")
    io.save(pipe, tmp_path / "saved")
    assert [p.name for p in tmp_path.iterdir()] == ["saved"] and not (tmp_path / "saved" / "stale").exists()
    other = tmp_path / "notes"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("notes", "file"):
        with pytest.raises(FileExistsError, match="holds something else"):
            io.save(pipe, tmp_path / name)
    assert (other / "mine.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_save_wants_a_quantized_pipeline(tiny_pipe, tmp_path):
    with pytest.raises(ValueError, match="not quantized"):
        io.save(tiny_pipe, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["save_file", "replace"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_half_written(
    where, tiny_folder, tmp_path, monkeypatch
):
    io.save(quantized(tiny_folder, w_bits=4), tmp_path / "saved")
    before = everything(tmp_path)
    replace, calls = os.replace, []

    def full(*args):
        calls.append(args)
        if where == "save_file":
            args[1].write_bytes(b"the first half")
        elif len(calls) != 2:  # moving the old folder away and back works, moving the new one in does not
            return replace(*args)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((io, "save_file") if where == "save_file" else (os, "replace")), full)
    with pytest.raises(
        OSError, match=r"could not save to .*saved \(\d+ MB free\), nothing was written.*No space"
    ):
        io.save(quantized(tiny_folder, w_bits=3), tmp_path / "saved")
    assert calls and everything(tmp_path) == before
    monkeypatch.undo()
    with pytest.raises(OSError, match="nothing was written"):
        io.save(quantized(tiny_folder), tmp_path / "saved" / "adatsq.json" / "below a file")
    assert everything(tmp_path) == before


@pytest.fixture
def saved(tiny_folder, tmp_path):
    io.save(quantized(tiny_folder), tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("missing", ["adatsq.json", "transformer/diffusion_pytorch_model.safetensors"])
def test_missing_files_are_named(missing, saved):
    (saved / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        io.load(saved)
    with pytest.raises(FileNotFoundError, match="no/where"):
        io.load("no/where")


def test_truncated_and_edited_weights_are_refused(saved):
    file = saved / io.WEIGHTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"has {len(whole) - 100} bytes instead of {len(whole)}"):
        io.load(saved)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="was edited or damaged: its sha256"):
        io.load(saved)
    file.write_bytes(whole)
    io.load(saved)


def edit(saved, change, sign=True):
    """Change adatsq.json and, unless told not to, its sha256 too, as a faulty program would."""
    manifest = json.loads((saved / "adatsq.json").read_text())
    signature = manifest.pop("sha256")
    change(manifest)
    manifest["sha256"] = files.checksum(manifest) if sign else signature
    (saved / "adatsq.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(format_version=4), "format_version 4, this adatsq reads 3"),
        (lambda m: m.pop("files"), "adatsq.json is damaged: 'files'"),
        (lambda m: m.pop("layers"), "is damaged: KeyError: 'layers'"),
        (lambda m: m["layers"]["transformer_blocks.0.attn.to_q"].update(shape=[32, 64]), r"shape \[32, 64\]"),
        (
            lambda m: m["layers"]["transformer_blocks.0.attn.to_q"].update(w_bits=3),
            "saved is damaged: layer transformer_blocks.0.attn.to_q: .* codes of 3 bits",
        ),
        (lambda m: m["layers"].pop("transformer_blocks.0.attn.to_q"), "is damaged: RuntimeError"),
        (lambda m: m["dtypes"].update({"proj_out.bias": "float33"}), "is damaged: AttributeError"),
    ],
)
def test_an_edited_description_is_refused(change, message, saved):
    edit(saved, change)
    with pytest.raises(ValueError, match=message):
        io.load(saved)


@pytest.mark.parametrize("edited", [{"rotation": False}, {"a_bits": 8}, {"w_bits": 3}, {"a_clip": False}])
def test_adatsq_json_knows_that_it_was_edited(edited, saved):
    layer = "transformer_blocks.0.attn.to_q"
    edit(saved, lambda m: None, sign=False)  # written anew, with the same content
    io.load(saved)
    edit(saved, lambda m: m["layers"][layer].update(edited), sign=False)
    with pytest.raises(ValueError, match="adatsq.json was edited or damaged"):
        io.load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "transformer/config.json",
        "vae/config.json",
    ],
)
def test_every_file_of_the_folder_is_checked(name, saved):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=f"{name} was edited or damaged: its sha256"):
        io.load(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        io.load(saved)


def test_other_damage_is_named(saved):
    name = "transformer/config.json"
    config = json.loads((saved / name).read_text())
    (saved / name).write_text(json.dumps({**config, "num_attention_heads": 4}))
    edit(saved, lambda m: m["files"].pop(name))
    with pytest.raises(ValueError, match="but .* in the transformer's config"):
        io.load(saved)
    (saved / name).unlink()
    with pytest.raises(ValueError, match="is damaged: OSError"):
        io.load(saved)
    (saved / "adatsq.json").write_text("{")
    with pytest.raises(ValueError, match="adatsq.json is damaged"):
        io.load(saved)
    (saved / "adatsq.json").write_text("[]")
    with pytest.raises(ValueError, match="adatsq.json is damaged"):
        io.load(saved)
