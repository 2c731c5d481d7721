import itertools

import numpy as np
import pytest
import torch

from adatsq import groups, recipes
from adatsq.linear import QuantLinear
from adatsq.models import load_pipeline
from adatsq.trace import record, velocity

ASYMMETRIC = {"rotation": False, "clip": False, "asymmetric": True}


@pytest.fixture(scope="module")
def trace(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    return record(pipe, ["a red circle", "two blue squares"], num_inference_steps=2, progress=False)


def by_hand(tiny_folder, trace, sizes):
    """Error of the velocity of a pipeline that is quantized as a whole with these sizes."""
    pipe = load_pipeline(tiny_folder)
    options = {"solver": "rtn", "modulation_bits": 16, "group_size": sizes, "a_group_size": sizes}
    recipes.quantize(pipe, None, 3, 3, **options, **ASYMMETRIC)
    with torch.no_grad():
        answers = torch.stack([velocity(pipe.transformer, trace, t, index=[0]) for t in range(2)])
    return (answers - trace.velocity[:, :1]).square().mean().item()


def test_the_search_meets_the_mean_and_says_its_cost(tiny_folder, trace):
    pipe = load_pipeline(tiny_folder)
    found = groups.search_groups(
        pipe, trace, 3, 3, sizes=(8, 16, 32), mean=16, population=4, generations=3, **ASYMMETRIC
    )
    assert not any(isinstance(m, QuantLinear) for m in pipe.transformer.modules())
    assert set(found.sizes) == {layer.name for layer in trace.layers if layer.role == "act"}
    assert set(found.sizes.values()) <= {8, 16, 32} and len(set(found.sizes.values())) > 1
    assert np.mean(list(found.sizes.values())) >= 16
    assert found.possible == dict.fromkeys((8, 16, 32), len(found.sizes))
    assert found.mean == np.mean(list(found.sizes.values()))
    assert 4 <= found.tried <= 4 + 3 * 2 and found.calls == 2 * found.tried and found.seconds > 0
    assert found.error == pytest.approx(by_hand(tiny_folder, trace, found.sizes), rel=1e-4)
    assert found.error < by_hand(tiny_folder, trace, dict.fromkeys(found.sizes, 32))
    again = groups.search_groups(
        pipe, trace, 3, 3, sizes=(8, 16, 32), mean=16, population=4, generations=3, **ASYMMETRIC
    )
    assert again.sizes == found.sizes


def test_a_search_of_every_assignment_finds_the_best(tiny_folder, trace, monkeypatch):
    """Three layers with two sizes each: against all eight, of which four have the mean."""
    three = [layer for layer in trace.layers if layer.role == "act"][:3]
    monkeypatch.setattr(groups, "quantizable", lambda transformer: three)
    found = groups.search_groups(
        load_pipeline(tiny_folder), trace, 2, 2, sizes=(8, 32), mean=24, population=8, generations=40,
        **ASYMMETRIC,
    )  # fmt: skip
    errors = {}
    for sizes in itertools.product((8, 32), repeat=3):
        if np.mean(sizes) < 24:
            continue
        whole, part = load_pipeline(tiny_folder), load_pipeline(tiny_folder)
        given = {layer.name: size for layer, size in zip(three, sizes)}
        options = {"solver": "rtn", "group_size": given, "a_group_size": given}
        recipes.quantize(whole, None, 2, 2, **options, **ASYMMETRIC)
        for name in given:
            part.transformer.set_submodule(name, whole.transformer.get_submodule(name))
        with torch.no_grad():
            answers = torch.stack([velocity(part.transformer, trace, t, index=[0]) for t in range(2)])
        errors[sizes] = (answers - trace.velocity[:, :1]).square().mean().item()
    assert tuple(found.sizes.values()) == min(errors, key=errors.get)
    assert len(errors) == found.tried == 4


def test_where_the_mean_is_out_of_reach_the_largest_are_taken(tiny_folder, trace):
    found = groups.search_groups(load_pipeline(tiny_folder), trace, 4, 4, **ASYMMETRIC)
    widths = {layer.name: layer.in_features for layer in trace.layers if layer.role == "act"}
    assert found.tried == 1
    assert found.possible == {s: sum(w % s == 0 for w in widths.values()) for s in groups.SIZES}
    for name, size in found.sizes.items():
        assert size == max(s for s in groups.SIZES if widths[name] % s == 0)
