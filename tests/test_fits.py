"""A GPU that is too small is named before anything is loaded, with what would do; so is a missing shard."""

import pytest
import torch

import adatsq
from adatsq import fits, io, models
from adatsq.cuda.measuring import tensor_bytes


@pytest.fixture
def room(monkeypatch):
    """room(free bytes): of a GPU that is not there."""

    def set_free(free):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (int(free), 8 * 10**9))

    return set_free


def weights(pipe):
    return sum(tensor_bytes(part) for part in pipe.components.values() if isinstance(part, torch.nn.Module))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_precision_pipeline(dtype, tiny_folder, room, monkeypatch):
    loaded = weights(adatsq.load_pipeline(tiny_folder, dtype))
    needed = fits.pipeline_bytes(tiny_folder, dtype)
    assert needed <= loaded < 1.05 * needed  # position ids and the like are no weights
    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", None)  # not reached
    room(needed)
    with pytest.raises(ValueError, match=r"GB to run; cuda has .* GB free of 8\. ") as error:
        adatsq.load_pipeline(tiny_folder, dtype, "cuda")
    assert ("torch_dtype=torch.bfloat16 takes half of it" in str(error.value)) == (dtype is torch.float32)
    assert "enable_model_cpu_offload" in str(error.value)
    room(1.2 * needed)
    with pytest.raises(ValueError, match="not a complete diffusers pipeline"):  # it went on to load
        adatsq.load_pipeline(tiny_folder, dtype, "cuda")
    assert fits.pipeline_bytes(tiny_folder, torch.bfloat16) * 2 == fits.pipeline_bytes(
        tiny_folder, torch.float32
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_quantized_pipeline(packed, tiny_folder, tmp_path, room, monkeypatch):
    pipe = adatsq.quantize(adatsq.load_pipeline(tiny_folder, torch.bfloat16), solver="rtn")
    adatsq.save(pipe, tmp_path / "saved")
    loaded = weights(adatsq.load(tmp_path / "saved", packed=packed))
    layers = io._read_manifest(tmp_path / "saved")["layers"]
    file = tmp_path / "saved" / io.WEIGHTS_FILE
    needed = fits.quantized_bytes(tmp_path / "saved", layers, file, packed)
    assert 0.9 * loaded < needed < 1.1 * loaded
    monkeypatch.setattr(io, "_load_transformer", None)  # not reached
    room(needed)
    with pytest.raises(ValueError, match="enable_model_cpu_offload") as error:
        adatsq.load(tmp_path / "saved", "cuda", packed)
    assert ("packed=True takes" in str(error.value)) != packed
    assert (". load it without a device" if packed else "GB; or load it without a device") in str(error.value)
    assert fits.quantized_bytes(tmp_path / "saved", layers, file, True) <= needed


def test_a_hub_pipeline_is_asked_before_it_is_loaded(tiny_folder, room, monkeypatch):
    asked = []
    monkeypatch.setattr(
        models.DiffusionPipeline, "download", lambda name: asked.append(name) or str(tiny_folder)
    )
    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", None)  # not reached
    room(fits.pipeline_bytes(tiny_folder, torch.float32))
    with pytest.raises(ValueError, match=r"torch_dtype=torch\.bfloat16 takes half of it"):
        adatsq.load_pipeline("nobody/tiny", device="cuda")
    assert asked == ["nobody/tiny"]


def test_a_pipeline_is_asked_again_before_it_is_moved(tiny_folder, room, monkeypatch):
    """Of files that are no safetensors, nothing was known before."""
    pipe = adatsq.load_pipeline(tiny_folder)
    monkeypatch.setattr(models.DiffusionPipeline, "download", lambda name: str(tiny_folder))
    monkeypatch.setattr(fits, "pipeline_bytes", lambda folder, dtype: 0)
    monkeypatch.setattr(models.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: pipe)
    monkeypatch.setattr(pipe, "to", lambda device: "moved")
    assert fits.part_bytes(pipe) == pytest.approx(weights(pipe), rel=0.05)
    room(fits.part_bytes(pipe))
    with pytest.raises(ValueError, match=r"torch_dtype=torch\.bfloat16 takes half of it"):
        adatsq.load_pipeline("nobody/tiny", device="cuda")
    room(1.2 * fits.part_bytes(pipe))
    assert adatsq.load_pipeline("nobody/tiny", device="cuda") == "moved"


def test_variants_beside_the_files_that_are_loaded_take_nothing(tiny_folder, tmp_path):
    folder = tmp_path / "variants"
    pipe = adatsq.load_pipeline(tiny_folder)
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder, variant="fp16")
    assert list(folder.glob("*/*.fp16.safetensors"))
    assert fits.pipeline_bytes(folder, None) == fits.pipeline_bytes(tiny_folder, None)
    for file in folder.glob("*/*.safetensors"):
        if ".fp16" not in file.name:
            file.unlink()
    assert fits.pipeline_bytes(folder, None) == fits.pipeline_bytes(
        tiny_folder, None
    )  # nothing else is there


def test_what_torch_keeps_for_itself_is_free(room, monkeypatch):
    room(10**9)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    fits.check(lambda: int(2.7e9), "cuda", lambda: "")
    with pytest.raises(ValueError, match="cuda has 3 GB free of 8"):
        fits.check(lambda: int(2.8e9), "cuda", lambda: "")


def test_nothing_is_asked_of_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    for device in (None, "cpu", torch.device("cpu")):
        fits.check(lambda: 10**15, device, lambda: "")


def test_a_missing_shard_is_named(tiny_folder, tmp_path):
    folder = tmp_path / "sharded"
    adatsq.load_pipeline(tiny_folder).save_pretrained(folder, max_shard_size="100KB")
    shard = sorted((folder / "transformer").glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        adatsq.load_pipeline(folder)
