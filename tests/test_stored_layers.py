"""Saved folders of an older and of a newer format, and tensors that do not fit what is said of them."""

import json

import pytest
from safetensors.torch import load_file, save_file
from test_io import edit, quantized

from adatsq import files, io


@pytest.fixture
def saved(tiny_folder, tmp_path):
    io.save(quantized(tiny_folder), tmp_path / "saved")
    return tmp_path / "saved"


def test_folders_of_the_last_format_are_read(saved, tiny_images):
    """Version 2 had another name for the transformer's file, and nothing about it in config.json."""
    expected = tiny_images(io.load(saved))
    (saved / io.WEIGHTS_FILE).rename(saved / io.OLD_WEIGHTS_FILE)
    file = saved / "transformer" / "config.json"
    config = json.loads(file.read_text())
    del config["quantization_config"]
    file.write_text(json.dumps(config))

    def older(manifest):
        entry = manifest["files"].pop(io.WEIGHTS_FILE)
        manifest["files"][io.OLD_WEIGHTS_FILE] = entry
        manifest["files"]["transformer/config.json"] = {
            "bytes": file.stat().st_size,
            "sha256": files.sha256(file),
        }
        manifest["format_version"] = 2

    edit(saved, older)
    assert (tiny_images(io.load(saved)) == expected).all()
    assert io.size_report(saved).at["total", "bytes"] > 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", ["codes", "scale", "bias"])
def test_a_tensor_of_another_shape_is_named(part, packed, saved):
    name = "transformer_blocks.0.attn.to_q"
    file = saved / io.WEIGHTS_FILE
    tensors = load_file(file)
    tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][:3].clone()
    save_file(tensors, file)
    entry = {"bytes": file.stat().st_size, "sha256": files.sha256(file)}
    edit(saved, lambda m: m["files"].update({io.WEIGHTS_FILE: entry}))
    with pytest.raises(ValueError, match=f"saved is damaged: layer {name}: "):
        io.load(saved, packed=packed)


@pytest.mark.parametrize("packed", [False, True])
def test_missing_and_newer_files_are_named_packed_or_not(packed, saved):
    whole = (saved / "adatsq.json").read_text()
    edit(saved, lambda m: m.update(format_version=9))
    with pytest.raises(ValueError, match="saved has format_version 9, this adatsq reads 3: update it"):
        io.load(saved, packed=packed)
    (saved / "adatsq.json").write_text(whole)
    (saved / io.WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"is incomplete: it has no {io.WEIGHTS_FILE}"):
        io.load(saved, packed=packed)
