"""Solvers against closed forms and an independent library."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, SolverError
from flow_vla_core.solvers import ADAPTIVE, METHODS, SOLVERS, solve, solve_adaptively

ORDERS = {'euler': 1, 'midpoint': 2, 'heun': 2, 'rk4': 4}
CALLS = {'euler': 1, 'midpoint': 2, 'heun': 2, 'rk4': 4}
SPANS = [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)]


def growing(x: Tensor, t: float) -> Tensor:
    """Return dx/dt = x (1 + t), whose solution is x(t) = x(s) exp(t + t^2 / 2 - s - s^2 / 2)."""
    return x * (1 + t)


def grown(t0: float, t1: float) -> float:
    """Return what `growing` multiplies x with."""
    return math.exp(t1 + t1 ** 2 / 2 - t0 - t0 ** 2 / 2)


def recorded(times: list[float], field: Callable[[Tensor, float], Tensor] = growing) -> Callable:
    """Return a field that keeps the times that it is asked for."""
    def asked(x: Tensor, t: float) -> Tensor:
        times.append(t)
        return field(x, t)
    return asked


def one(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return where to begin."""
    return torch.ones(1, dtype=dtype)


@pytest.mark.parametrize('span', SPANS)
@pytest.mark.parametrize('method', SOLVERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(method: str, span: tuple[float, float]) -> None:
    def error(steps: int) -> float:
        return abs(solve(growing, one(), steps, method, t0=span[0], t1=span[1]).item() - grown(*span))

    orders = [math.log2(error(steps) / error(2 * steps)) for steps in (32, 64)]
    assert orders == pytest.approx([ORDERS[method]] * 2, abs=0.15)


@pytest.mark.parametrize('span', SPANS)
@pytest.mark.parametrize('method', SOLVERS)
def test_the_field_is_called_as_often_as_promised_and_never_outside_the_interval(
        method: str, span: tuple[float, float]) -> None:
    times: list[float] = []
    solve(recorded(times), torch.ones(3), 7, method, t0=span[0], t1=span[1])
    assert len(times) == 7 * CALLS[method]
    assert times[0] == span[0]
    assert min(span) - 1e-12 <= min(times) and max(times) <= max(span) + 1e-12


def test_euler_evaluates_on_the_grid() -> None:
    times: list[float] = []
    solve(recorded(times), torch.ones(1), 5)
    assert times == [0, 1 / 5, 2 / 5, 3 / 5, 4 / 5]


@pytest.mark.parametrize('method', METHODS)
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
    end = solve(lambda x, t: torch.full_like(x, (power + 1) * t ** power), torch.zeros(1).double(), 1, method)
    assert end.item() == pytest.approx(1)


@pytest.mark.parametrize('span', SPANS)
@pytest.mark.parametrize('method', ADAPTIVE)
def test_adaptive_solvers_land_on_the_end_and_count_what_they_ask(method: str, span: tuple[float, float]) -> None:
    times: list[float] = []
    found = solve_adaptively(recorded(times), one(), method, t0=span[0], t1=span[1], rtol=1e-9, atol=1e-9)
    assert found.end.item() == pytest.approx(grown(*span), rel=1e-8)
    assert found.evaluations == len(times)
    assert min(span) <= min(times) and max(times) <= max(span)


def test_an_adaptive_solver_agrees_with_scipy_on_a_nonlinear_system() -> None:
    def lotka(x: Tensor, t: float) -> Tensor:
        prey, hunters = 4 * x
        return torch.stack([prey - prey * hunters / 4, prey * hunters / 4 - hunters])

    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    theirs = solve_ivp(lambda t, x: lotka(torch.from_numpy(x), t).numpy(), (0, 1), start.numpy(), 'DOP853',
                       rtol=1e-12, atol=1e-12)
    found = solve_adaptively(lotka, start, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.end.numpy(), theirs.y[:, -1], rtol=1e-9)
    torch.testing.assert_close(solve(lotka, start, 400, 'rk4'), found.end, rtol=1e-8, atol=1e-8)


def test_a_tolerance_buys_accuracy_with_evaluations() -> None:
    found = [solve_adaptively(growing, one(), rtol=tolerance, atol=tolerance) for tolerance in (1e-3, 1e-6, 1e-9)]
    errors = [abs(solution.end.item() - grown(0, 1)) for solution in found]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert found[0].evaluations < found[1].evaluations < found[2].evaluations


def test_a_guess_of_the_first_step_that_looks_beyond_the_end_is_held_back() -> None:
    times: list[float] = []
    solve_adaptively(recorded(times, lambda x, t: torch.full_like(x, 1e-4)), one(), t0=0.0, t1=1.0)
    assert max(times) <= 1


@pytest.mark.parametrize('method', METHODS)
def test_the_gradient_goes_through_a_solver(method: str) -> None:
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solve(lambda x, t: rate * x, one(), 100, method).sum().backward()
    assert rate.grad.item() == pytest.approx(math.exp(0.5), rel=1e-2)
    with torch.no_grad():
        assert not solve(lambda x, t: rate * x, one(), 3, method).requires_grad


@pytest.mark.parametrize('field, message', [
    (lambda x, t: x * float('nan'), 'not finite at t = 0'),
    (lambda x, t: x if t < 0.5 else x / 0, 'not finite'),
    (lambda x, t: 2 * x ** 2, 'more than|underflow|not finite'),  # leaves every bound at t = 1/2
    (lambda x, t: torch.sin(1e4 * x) * 1e4, 'more than 500 evaluations'),
], ids=['nan', 'inf', 'explodes', 'wild'])
def test_fields_that_cannot_be_solved_are_given_up(field: Callable, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        solve_adaptively(field, one(), most=500)


@pytest.mark.parametrize('settings, message', [
    ({'method': 'dopri6'}, "'dopri6'.*dopri5"), ({'rtol': 0.0}, 'tolerances 0.0'), ({'atol': -1.0}, '-1.0'),
    ({'rtol': float('nan')}, 'nan')])
def test_wrong_settings_of_adaptive_solvers_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solve_adaptively(growing, one(), **settings)


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ConfigError, match="'heum'.*heun"):
        solve(growing, torch.ones(1), 1, 'heum')
    with pytest.raises(ConfigError, match='0 solver steps'):
        solve(growing, torch.ones(1), 0)
