"""Solvers against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from flow_vla_core.errors import ConfigError
from flow_vla_core.solvers import SOLVERS, solve

ORDERS = {'euler': 1, 'midpoint': 2, 'heun': 2, 'rk4': 4}
CALLS = {'euler': 1, 'midpoint': 2, 'heun': 2, 'rk4': 4}


def error_of(method: str, steps: int) -> float:
    """Solve dx/dt = x (1 + t), whose solution is exp(t + t^2 / 2), and return the error at t = 1."""
    x = solve(lambda x, t: x * (1 + t), torch.tensor([1.0], dtype=torch.float64), steps, method)
    return abs(x.item() - math.exp(1.5))


@pytest.mark.parametrize('method', SOLVERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(method: str) -> None:
    orders = [math.log2(error_of(method, steps) / error_of(method, 2 * steps)) for steps in (32, 64)]
    assert orders == pytest.approx([ORDERS[method]] * 2, abs=0.15)


@pytest.mark.parametrize('method', SOLVERS)
def test_the_field_is_called_as_often_as_promised_and_never_outside_the_interval(method: str) -> None:
    times: list[float] = []

    def field(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        return torch.zeros_like(x)

    solve(field, torch.ones(3), 7, method)
    assert len(times) == 7 * CALLS[method]
    assert min(times) == 0
    assert max(times) <= 1 + 1e-12


def test_euler_evaluates_on_the_grid() -> None:
    times: list[float] = []
    solve(lambda x, t: times.append(t) or x, torch.ones(1), 5)
    assert times == [0, 1 / 5, 2 / 5, 3 / 5, 4 / 5]


@pytest.mark.parametrize('method', SOLVERS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_constant_field_is_exact_and_the_start_is_not_written_to(method: str, dtype: torch.dtype) -> None:
    start = torch.randn(2, 3, 5, dtype=dtype)
    kept = start.clone()
    end = solve(lambda x, t: torch.full_like(x, 2), start, 3, method)
    assert end.dtype == dtype
    assert torch.equal(start, kept)
    torch.testing.assert_close(end, start + 2)


@pytest.mark.parametrize('method', SOLVERS)
def test_a_polynomial_in_time_is_exact_up_to_the_order(method: str) -> None:
    power = ORDERS[method] - 1
    start = torch.zeros(1, dtype=torch.float64)
    end = solve(lambda x, t: torch.full_like(x, (power + 1) * t ** power), start, 1, method)
    assert end.item() == pytest.approx(1)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ConfigError, match="'heum'.*heun"):
        solve(lambda x, t: x, torch.ones(1), 1, 'heum')
    with pytest.raises(ConfigError, match='0 solver steps'):
        solve(lambda x, t: x, torch.ones(1), 0)
