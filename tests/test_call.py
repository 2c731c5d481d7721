"""Reading a call from what went in and out, on calls made up here."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from adatsq import call as ca
from adatsq.arguments import concatenated, same

N, SHAPE = 2, (3, 4, 4)


class Model(nn.Module):
    def forward(self, x, t, text=None, img_ids=None, return_dict=True):
        raise NotImplementedError


def given(sample, model_output=None):
    return {"sample": sample, "model_output": sample if model_output is None else model_output}


def made_call(sample, rows=N, text=None, t=0.5, answer=None, listed=False, **more):
    x = torch.cat([sample] * (rows // len(sample)))
    answer = torch.randn_like(x) if answer is None else answer
    text = torch.randn(rows, 5, 2) if text is None else text
    arguments = {"x": list(x) if listed else x, "t": torch.full((rows,), t), "text": text, **more}
    return arguments, (list(answer) if listed else answer,)


@pytest.fixture
def sample():
    torch.manual_seed(0)
    return torch.randn(N, *SHAPE)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("rows", [[2], [4], [2, 2], [2, 4]])
def test_branches_of_one_call_or_several(sample, rows, listed):
    calls = [made_call(sample, r, listed=listed, img_ids=torch.zeros(4, 3)) for r in rows]
    form, timestep, conditioning, answers = ca.read(Model(), calls, given(sample))
    k = sum(rows) // N
    assert (form.latents, form.timestep, form.branches, timestep) == ("x", "t", k, 0.5)
    assert form.listed == listed and form.row == SHAPE and form.per_image == {"text"}
    assert torch.equal(conditioning["text"], torch.cat([arguments["text"] for arguments, _ in calls]))
    assert conditioning["img_ids"].shape == (4, 3)  # as many tokens as rows, but shared
    expected = torch.cat([torch.stack(list(output[0])) for _, output in calls])
    assert torch.equal(answers.flatten(0, 1), expected)
    inputs = form.inputs(sample, 0.5)
    assert same(torch.stack(list(inputs["x"])), torch.cat([sample] * k)) and inputs["t"].shape == (N * k,)
    assert form.rows([1, 0, 1], N) == [branch * N + i for branch in range(k) for i in (1, 0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "combine, weights",
    [
        (lambda v: v[0], (1.0,)),
        (lambda v: -v[0], (-1.0,)),
        (lambda v: v[1] + 4.5 * (v[0] - v[1]), (4.5, -3.5)),
        (lambda v: v[0] + 7.25 * (v[1] - v[0]), (-6.25, 7.25)),
        (lambda v: -(v[0] + 3.0 * (v[0] - v[1])), (-4.0, 3.0)),
        (lambda v: v[2] + 2.0 * (v[0] - v[2]) + 1.5 * (v[1] - v[2]), (2.0, 1.5, -2.5)),
        (lambda v: 0.5 * (v[0] - v[1]), (0.5, -0.5)),
    ],
)
def test_weights_are_found_and_the_sum_is_repeated_to_the_bit(sample, combine, weights, dtype):
    """Branches that differ by a tenth, as those of guidance do."""
    common = torch.randn(N, *SHAPE)
    branches = [(common + 0.1 * torch.randn(N, *SHAPE)).to(dtype) for _ in weights]
    output = combine(branches)
    calls = [made_call(sample.to(dtype), answer=v) for v in branches]
    form, *_, answers = ca.read(Model(), calls, given(sample.to(dtype), output))
    form = ca.guided(form, answers, output)
    assert form.weights == weights
    exact = torch.equal(form.combine(answers), output)
    assert exact or sum(weights) == 0  # that is no guidance; it is summed as it comes
    ca.check_combination(form, answers, output, 0)
    plain = sum(w * v.double() for w, v in zip(weights, answers))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(form.combine(answers).double(), plain, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="at step 3 .*not linear, or changes"):
        ca.check_combination(form, answers, 0.9 * output, 3)  # guidance that was rescaled, say
    with pytest.raises(ValueError, match="at step 1 .*not linear, or changes"):
        ca.check_combination(replace(form, weights=tuple(2 * w for w in weights)), answers, output, 1)


def test_branches_that_answer_the_same_are_named(sample):
    answers = torch.randn(1, N, *SHAPE).repeat(2, 1, 1, 1, 1)
    form, *_ = ca.read(Model(), [made_call(sample, 4)], given(sample))
    with pytest.raises(ValueError, match="the same in every branch"):
        ca.guided(form, answers, answers[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda calls: [], "without calling Model"),
        (lambda calls: [(calls[0][0] | {"x": torch.randn(3, *SHAPE)}, calls[0][1])], r"\[3\] rows for 2"),
        (lambda calls: [(calls[0][0] | {"x": torch.randn(2, 6, 4, 4)}, calls[0][1])], "joined to them"),
        (lambda calls: [(calls[0][0] | {"x": 2 * calls[0][0]["x"]}, calls[0][1])], "changes it between"),
        (lambda calls: [(calls[0][0] | {"t": torch.tensor([0.5, 0.4])}, calls[0][1])], "several timesteps"),
        (lambda calls: [(calls[0][0], (torch.randn(2, 6, 4, 4),))], "answers 2 times as much.*1 branches"),
        (lambda calls: [(calls[0][0], (torch.randn(2, 3, 4, 5),))], "does not answer in the shape"),
        (lambda calls: [*calls, made_call(calls[0][0]["x"], img_ids=torch.ones(4, 3))], "img_ids differs"),
        (
            lambda calls: [*calls, made_call(calls[0][0]["x"], text=torch.randn(N, 7, 2))],
            r"text has rows of shapes \[\(5, 2\), \(7, 2\)\]",
        ),
    ],
)
def test_calls_that_make_no_trace_are_named(sample, change, message):
    calls = [made_call(sample, img_ids=torch.zeros(4, 3))]
    with pytest.raises(ValueError, match=message):
        ca.read(Model(), change(calls), given(sample))


def test_a_transformer_without_timestep_is_named():
    with pytest.raises(ValueError, match="Linear has no argument timestep or t among"):
        ca.read(nn.Linear(2, 2), [], given(torch.zeros(1, 2)))


def test_texts_of_other_lengths_make_no_batch():
    assert concatenated("text", [[1, 2], [3]]) == [1, 2, 3]
    with pytest.raises(ValueError, match="text has rows of shapes .* pad texts to one length"):
        concatenated("text", [torch.zeros(1, 5), torch.zeros(2, 6)])
