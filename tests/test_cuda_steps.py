"""The benchmark of whole steps, in small: its rows, and that a library that fails is one of them."""

import pandas as pd
import pytest
import torch

from adatsq.cuda import benchmark, kernel_times, steps
from adatsq.cuda.full_size_models import MODELS, build
from adatsq.models import quantizable
from adatsq.peers.steps import PEERS, Peer


def run(file, *options):
    return benchmark.main(
        ["--steps", "--cpu", "--modes", "eager", "--repeats", "1", "--output", str(file), *options]
    )


@pytest.mark.parametrize("model", MODELS)
def test_ours_and_bfloat16_are_measured(model, tmp_path):
    file = tmp_path / "steps.csv"
    run(file, "--model", model, "--only", "bf16,adatsq")
    table = pd.read_csv(file).set_index(["method", "w_bits", "a_bits"])
    expected = [("bf16", 16, 16)]
    for w, bits in steps.OURS.items():
        ways = ["fast sums", "unfused"]
        ways += ["separate norm", "separate products"] if model == "flux-dev" else []
        others = [(f"adatsq {way}", w, w) for way in ways]
        expected += [*(("adatsq", w, a) for a in bits), *others]
    assert table.index.tolist() == expected
    assert (table["ms"] > 0).all() and table["failed"].isna().all()
    assert table.at[("bf16", 16, 16), "error"] == 0 and table.at[("bf16", 16, 16), "gain"] == 1
    errors = table["error"]
    assert 0 < errors["adatsq", 4, 8] < errors["adatsq", 4, 4] < errors["adatsq", 3, 3] < 1
    smaller = table["weight_bytes"] / table["weight_bytes"].iloc[0]
    assert smaller["adatsq", 3, 4] < smaller["adatsq", 4, 4] < 1


def test_what_is_missing_or_fails_is_a_row(tmp_path, monkeypatch):
    def fails(transformer, layers):
        raise RuntimeError("no kernel\n  for this card")

    peers = {"here": Peer("torch", 8, 8, fails), "not here": Peer("no-such-library", 4, 16, fails)}
    monkeypatch.setattr(steps, "PEERS", peers)
    table = run(tmp_path / "steps.csv", "--only", "here,not here").set_index("method")
    assert table.at["here", "failed"] == "RuntimeError: no kernel for this card"
    assert table.at["here", "library"] == f"torch {torch.__version__}"
    assert table.at["not here", "failed"] == "no-such-library is not installed"


def test_methods_are_chosen_by_name_or_by_parts_of_names():
    assert steps.chosen("bf16,adatsq W4") == ["bf16", "adatsq W4"]
    ways = ("", " fast", " unfused", " separate norm", " separate products")
    assert steps.chosen("W3") == [f"adatsq W3{way}" for way in ways]
    with pytest.raises(ValueError, match="W5"):
        steps.chosen("W5")


def test_what_hopper_cannot_run_is_a_row(tmp_path):
    [row] = run(tmp_path / "steps.csv", "--only", "nunchaku").to_dict("records")
    assert "Hopper has none" in row["failed"] and (row["w_bits"], row["a_bits"]) == (4, 4)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_NNT", "linear"),
        ("void cutlass::device_kernel<...>", "linear"),
        ("_multiply_few", "linear"),
        ("multiply_few", "linear"),
        ("_multiply_int8", "linear"),
        ("rotate_rows", "round"),
        ("_quantize_rows", "round"),
        ("_unpack_words", "unpack"),
        ("_unpack_layers", "unpack"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("triton_poi_fused_add_addmm_gelu_0", "rest"),
        ("_norm_rope", "rest"),
        ("void at::native::vectorized_elementwise_kernel", "rest"),
    ],
)
def test_kernels_have_a_kind(kernel, kind):
    assert kernel_times.kind_of(kernel) == kind


def test_an_unknown_method_or_model_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "steps.csv", "--only", "nothing")
    assert "no method's name contains 'nothing': choose of bf16, adatsq W4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "steps.csv", "--model", "flux")
    assert "invalid choice: 'flux'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "steps.csv", "--repeats", "0")
    assert "--repeats is 0, it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "steps.csv").exists()


def test_a_profile_names_what_takes_longest(tmp_path, capsys):
    table = run(tmp_path / "steps.csv", "--only", "bf16", "--profile", "--commit", "0123456")
    assert (table["kernel_ms"] > 0).all() and set(table["commit"]) == {"0123456"}
    assert " ms " in capsys.readouterr().out.split("aten::addmm")[0]


def test_gains_are_within_model_device_and_mode():
    rows = [("bf16", "eager", "gpu", 4.0), ("ours", "eager", "gpu", 2.0), ("ours", "eager", "cpu", 1.0)]
    rows += [("bf16", "compiled", "gpu", 3.0), ("ours", "compiled", "gpu", 2.0)]
    table = pd.DataFrame(rows, columns=["method", "mode", "device", "ms"]).assign(model="m")
    gain = steps.with_gains(table)["gain"]
    assert gain.fillna(-1).tolist() == [1.0, 2.0, -1.0, 1.0, 1.5]


def test_operations_are_counted_by_hand():
    pipe = build("flux-dev", "cpu", tiny=True)
    arguments = steps.inputs("flux-dev", pipe.transformer, torch.device("cpu"), tiny=True)
    expected = 0
    for layer in quantizable(pipe.transformer):
        if layer.role == "act":
            text = "add_" in layer.name or "_context" in layer.name
            rows = 32 if layer.name.startswith("single") else 16  # 16 tokens of the image, 16 of the text
            assert not text or rows == 16
            expected += 2 * rows * layer.in_features * layer.out_features
    assert steps.linear_operations(pipe.transformer, arguments) == expected


def test_peers_name_their_bits():
    assert {(peer.w_bits, peer.a_bits) for peer in PEERS.values()} == {(8, 8), (4, 8), (4, 16), (8, 16)}
