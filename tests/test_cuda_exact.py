"""The bound of adatsq/cuda/exact.py against products of integers, and against a model of the accumulator."""

import itertools

import pytest
import torch

from adatsq.cuda import exact
from adatsq.integer import qmax


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
