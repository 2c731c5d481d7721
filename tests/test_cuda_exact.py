"""The bound of adatsq/cuda/exact.py against products of integers, and against a model of the accumulator."""

import itertools

import pytest
import torch

from adatsq.cuda import exact
from adatsq.integer import qmax, quantize, weight_scale


def test_e4m3_holds_the_integers_up_to_16_and_not_17():
    numbers = torch.arange(-20, 21).float()
    kept = numbers.to(torch.float8_e4m3fn).float() == numbers
    assert kept[(numbers.abs() <= exact.E4M3_INTEGERS)].all()
    assert not kept[numbers.abs() == exact.E4M3_INTEGERS + 1].any()


def test_every_product_of_two_such_integers_is_exact_in_e4m3():
    numbers = torch.arange(-16, 17)
    e4m3 = numbers.float().to(torch.float8_e4m3fn).float()
    assert torch.equal(e4m3[:, None] * e4m3, (numbers[:, None] * numbers).float())


PROMISED = [
    case
    for case in itertools.product((2, 3, 4, 5), (2, 3, 4, 5), (128, 167, 1536), (True, False))
    if exact.e4m3_is_exact(qmax(case[0]), qmax(case[1]), *case[2:])
]


@pytest.mark.parametrize(("bits_x", "bits_w", "inputs", "promoted"), PROMISED)
def test_within_the_bound_the_model_of_the_accumulator_is_exact(bits_x, bits_w, inputs, promoted):
    largest_x, largest_w = qmax(bits_x), qmax(bits_w)
    interval = exact.PROMOTION if promoted else None
    generator = torch.Generator().manual_seed(inputs)
    random = [
        torch.randint(-q, q + 1, (inputs,), generator=generator).float() for q in (largest_x, largest_w)
    ]
    odd = torch.full((inputs,), float(largest_x)), torch.full((inputs,), float(max(1, largest_w - 1)))
    ends = torch.full((inputs,), float(largest_x)), torch.full((inputs,), float(-largest_w))
    for x, w in (random, odd, ends):
        assert exact.accumulated(x, w, interval) == (x.long() * w.long()).sum()


def test_outside_the_bound_the_model_goes_wrong():
    """7 * 7 * 3072 on one side, in fast mode: why the slow one is chosen."""
    x = torch.full((3072,), 7.0)
    assert not exact.e4m3_is_exact(7, 7, 3072, promoted=False)
    assert exact.accumulated(x, x, None) != 7 * 7 * 3072
    assert exact.accumulated(x, x, exact.PROMOTION) == 7 * 7 * 3072


@pytest.mark.parametrize(
    ("w_bits", "a_bits", "inputs", "product"),
    [
        (4, 4, 15360, "e4m3"),
        (3, 3, 15360, "e4m3"),
        (2, 4, 3072, "e4m3"),
        (4, 3, 12288, "e4m3"),
        (4, 4, 342_393, "int8"),  # 7 * 7 * K just above 2^24
        (4, 5, 3072, "int8"),
        (4, 8, 15360, "int8"),
        (8, 8, 15360, "int8"),
        (8, 8, 200_000, "float"),
        (4, 16, 3072, "float"),
        (16, 4, 3072, "float"),
    ],
)
def test_the_product_for_each_layer_and_bits(w_bits, a_bits, inputs, product):
    assert exact.product_of(w_bits, a_bits, inputs) == product


def rows_at_the_bound(largest_x, largest_w, inputs, generator):
    """Weights whose sizes add up to FAST / largest_x, or as many as fit, in many distributions and orders."""
    total = min(exact.FAST // largest_x, inputs * largest_w)
    for most in range(1, largest_w + 1):
        if total > inputs * most:
            continue
        w = torch.zeros(inputs, dtype=torch.long)
        while total > w.sum():
            room = (w < most).nonzero().flatten()
            take = torch.randperm(len(room), generator=generator)[: total - int(w.sum())]
            w[room[take[: max(1, len(take) // 2)]]] += 1
        yield from (w, w.sort()[0], w.sort(descending=True)[0])


@pytest.mark.parametrize("largest_x", [1, 3, 7, 15, 16])
@pytest.mark.parametrize("inputs", [100, 1024])
def test_a_row_s_own_bound_makes_the_fast_mode_exact(largest_x, inputs):
    """Against the model, with x that makes all partial sums as large as they can be, and random ones."""
    generator = torch.Generator().manual_seed(largest_x)
    for w in rows_at_the_bound(largest_x, 7, inputs, generator):
        assert exact.e4m3_is_exact(largest_x, 7, inputs, False, exact.row_sum(w[None]))
        sign = torch.randint(0, 2, (inputs,), generator=generator) * 2 - 1
        half = torch.where(torch.arange(inputs) < inputs // 2, 1, -1)  # up to the bound, and back again
        random = torch.randint(-largest_x, largest_x + 1, (inputs,), generator=generator)
        for x, weight in [
            (sign * largest_x, sign * w),
            (half * largest_x, w),
            (random, w * sign),
            (sign * largest_x, w),
        ]:
            assert exact.accumulated(x.float(), weight.float(), None) == (x * weight).sum()


def test_beyond_a_row_s_bound_the_model_goes_wrong():
    """An odd sum has no room then."""
    x, w = torch.full((1024,), 7), torch.full((1024,), 5)
    w[-1] = 0
    assert exact.FAST < 7 * exact.row_sum(w[None])
    assert not exact.e4m3_is_exact(7, 7, 1024, False, exact.row_sum(w[None]))
    assert exact.accumulated(x.float(), w.float(), None) != (x * w).sum()


def test_row_sums_by_hand():
    codes = torch.tensor([[1, -3, 0], [2, 2, -1], [0, 0, 3]], dtype=torch.int8)
    assert exact.row_sum(codes) == 5 and exact.row_sum(codes[:0]) == 0
    assert exact.row_sum(torch.full((1, 1000), -127, dtype=torch.int8)) == 127_000
    # not known: the largest that it can be
    assert not exact.e4m3_is_exact(3, 3, 3072, False) and exact.e4m3_is_exact(
        3, 3, 3072, False, exact.FAST // 3
    )
    assert not exact.e4m3_is_exact(3, 3, 3072, False, exact.FAST // 3 + 1)
    assert not exact.e4m3_is_exact(17, 3, 3072, False, 1)  # 17 is no number of e4m3


def test_three_bits_of_a_normal_weight_are_within_the_bound():
    """As in Flux's layers with 3072 inputs, scaled by the largest: no worst case, but what there is."""
    weight = torch.randn(64, 3072, generator=torch.Generator().manual_seed(0))
    codes = quantize(weight, weight_scale(weight, 3), 3)
    assert exact.e4m3_is_exact(3, 3, 3072, False, exact.row_sum(codes))
    four = quantize(weight, weight_scale(weight, 4), 4)
    assert not exact.e4m3_is_exact(7, 7, 3072, False, exact.row_sum(four))
