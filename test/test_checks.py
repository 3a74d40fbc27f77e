"""Finiteness and bounds of tensors."""

from __future__ import annotations

import math

import pytest
import torch

from flow_vla_core.checks import all_finite, bounds_of

TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize('dtype', TYPES, ids=str)
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found_wherever_it_is(dtype: torch.dtype, bad: float) -> None:
    for place in range(0, 35, 17):
        values = torch.zeros(35, dtype=dtype)
        values[place] = bad
        assert not all_finite(values) and not all_finite(values.reshape(5, 7).T)


@pytest.mark.parametrize('dtype', TYPES, ids=str)
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    assert all_finite(torch.tensor([most, -most], dtype=dtype))
    assert all_finite(torch.zeros(0, 3, dtype=dtype)) and all_finite(torch.zeros((), dtype=dtype))


def test_bounds_know_of_nan_and_take_no_gradient() -> None:
    values = torch.tensor([[3.0, -1.0], [2.0, 0.0]], requires_grad=True)
    assert bounds_of(values) == (-1.0, 3.0)
    assert all(map(math.isnan, bounds_of(torch.tensor([1.0, math.nan]))))
