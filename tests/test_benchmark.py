"""The benchmark on a tiny random model: every row, resuming, and tables that agree with the pictures."""

import json
import shutil

import pandas as pd
import pytest

from adatsq import benchmark
from adatsq.results import COLUMNS, KEY, tidy_tables
from adatsq.world.prompts import make_prompts


@pytest.fixture(scope="module")
def results(tiny_folder, tmp_path_factory):
    """(folder of results, number of rows scored in a second run)."""
    model = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_folder, model)
    sampling = json.loads((model / "sampling.json").read_text())
    small = {"height": 64, "width": 64, "num_inference_steps": 2}  # the judge's size
    (model / "sampling.json").write_text(json.dumps({**sampling, **small}))
    evaluation, calibration = make_prompts()
    setting = benchmark.Setting(
        model=str(model),
        name="tiny",
        out=tmp_path_factory.mktemp("results"),
        device="cpu",
        commit="test",
        pictures=2,
        batch_size=8,
        evaluation=evaluation[::140],
        check=calibration[:2],
        steps=None,
    )
    texts = [p.text for p in calibration[:4]]
    benchmark.run(setting, texts, seed=0)
    scored = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "score", lambda *args: scored.append(args[3]))
        benchmark.run(setting, texts, seed=0)
    return setting.out, scored


def test_every_method_is_scored_once(results):
    out, scored_again = results
    table = pd.read_csv(out / "tiny.csv")
    assert list(table.columns) == COLUMNS
    found = set(
        table[table.metric == "total"][["method", "w_bits", "a_bits"]].itertuples(index=False, name=None)
    )
    fixed = {(m, w, float(w)) for m in ("rtn", "hadamard", "hadamard+gptq", "adatsq-weights") for w in (3, 4)}
    searched = {(m, w, b) for m in benchmark.CANDIDATES for w, bs in benchmark.BUDGETS.items() for b in bs}
    assert found == {("fp", 16, 16.0)} | fixed | searched
    assert scored_again == ["fp"]  # its pictures are drawn again as the reference, nothing else is


def test_budgets_are_kept(results):
    table = pd.read_csv(results[0] / "tiny.csv")
    bits = table[table.metric == "average_bits"].set_index(["method", "a_bits"]).value
    for method, a_bits in bits.index:
        assert bits[method, a_bits].max() <= a_bits + 1e-9


def test_tables_repeat_from_the_pictures(results):
    """The tidy values are the plain means of the picture rows, and a second summary is the same."""
    images, table = pd.read_csv(results[0] / "tiny-images.csv"), pd.read_csv(results[0] / "tiny.csv")
    means = images.groupby([*KEY, "category"]).passed.mean()
    for row in table[table.metric.isin(images.category.unique())].itertuples():
        assert row.value == pytest.approx(means[row.model, row.method, row.w_bits, row.a_bits, row.metric])
        assert row.ci_low <= row.value <= row.ci_high
    pd.testing.assert_frame_equal(
        tidy_tables(results[0] / "tiny")[0].reset_index(drop=True), table, rtol=1e-5
    )
