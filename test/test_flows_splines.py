"""Rational-quadratic splines: at knots, at and beyond the bound, with large parameters, and against zuko."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import RationalQuadratic
from flow_vla_core.flows.univariate import soft_clamp

SPLINE = RationalQuadratic(bins=5, bound=3.0, smallest=1e-2)
DIRECTIONS = ('forward', 'inverse')


def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return Gaussian numbers."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def knots(parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the knots (K + 1) of x and y and the slopes there as the docstring says, with a softmax."""
    limit = -math.log(SPLINE.smallest)
    widths, heights, slopes = parameters.split((5, 5, 4), -1)
    edges = [torch.cat([torch.zeros(1), soft_clamp(sizes, limit / 2).softmax(-1).cumsum(-1)]) * 6 - 3
             for sizes in (widths, heights)]
    return *edges, torch.cat([torch.ones(1), soft_clamp(slopes, limit).exp(), torch.ones(1)])


def test_it_goes_through_its_knots_with_the_slopes_that_are_given() -> None:
    parameters = draw(SPLINE.parameters)
    x, y, slopes = knots(parameters)
    for beside in (-1e-9, 0.0, 1e-9):  # on both sides and exactly there
        for run, start, end, wanted in ((SPLINE.forward, x, y, slopes), (SPLINE.inverse, y, x, 1 / slopes)):
            start = (start + beside).requires_grad_()
            found, log_slope = run(start, parameters.expand(len(start), -1))
            torch.testing.assert_close(found, end, rtol=0, atol=1e-7)
            torch.testing.assert_close(log_slope.exp(), wanted, rtol=0, atol=1e-6)
            torch.testing.assert_close(torch.autograd.grad(found.sum(), start)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize('scale', [0.0, 1.0, 10.0])
def test_the_slope_is_that_of_autodiff_and_positive(direction: str, scale: float) -> None:
    x, parameters = draw(50, scale=2).requires_grad_(), draw(50, SPLINE.parameters, scale=scale, seed=1)
    y, log_slope = getattr(SPLINE, direction)(x, parameters)
    slope = torch.autograd.grad(y.sum(), x)[0]
    assert (slope > 0).all()
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('direction', DIRECTIONS)
@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_it_equals_that_of_zuko_with_the_same_parameters(direction: str, dtype: torch.dtype, within: float) -> None:
    x, parameters = draw(200, scale=2, dtype=dtype), draw(200, SPLINE.parameters, dtype=dtype, seed=1)
    theirs = MonotonicRQSTransform(*parameters.split((5, 5, 4), -1), bound=SPLINE.bound, slope=SPLINE.smallest)
    y, log_slope = getattr(SPLINE, direction)(x, parameters)
    if direction == 'forward':
        wanted, wanted_slope = theirs.call_and_ladj(x)
    else:
        wanted = theirs.inv(x)
        wanted_slope = -theirs.call_and_ladj(wanted)[1]
    torch.testing.assert_close(y, wanted, rtol=within, atol=within)
    torch.testing.assert_close(log_slope, wanted_slope, rtol=10 * within, atol=10 * within)


@pytest.mark.parametrize('scale', [1.0, 10.0, 1e4])
@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_large_parameters_leave_it_invertible_and_its_gradients_finite(scale: float, dtype: torch.dtype,
                                                                       within: float) -> None:
    x = torch.linspace(-3, 3, 1001, dtype=dtype).requires_grad_()
    parameters = draw(1001, SPLINE.parameters, scale=scale, dtype=dtype).requires_grad_()
    for there, back in ((SPLINE.forward, SPLINE.inverse), (SPLINE.inverse, SPLINE.forward)):
        y, log_slope = there(x, parameters)
        error = (back(y, parameters)[0] - x).abs()
        assert (error <= within * (1 + (-log_slope).exp())).all()  # where it is flat, y can't tell more about x
        assert (y.abs() <= 3 + within).all()
        grads = torch.autograd.grad((y + log_slope).sum(), (x, parameters))
        assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_it_is_the_identity_beyond_the_bound_and_gradients_stay_finite_there(direction: str) -> None:
    x = torch.tensor([-1e30, -50.0, -3.001, 3.001, 7.0, 1e30]).requires_grad_()
    parameters = draw(6, SPLINE.parameters, dtype=torch.float32).requires_grad_()
    y, log_slope = getattr(SPLINE, direction)(x, parameters)
    assert torch.equal(y, x) and torch.equal(log_slope, torch.zeros(6))
    grads = torch.autograd.grad((y + log_slope).sum(), (x, parameters))
    assert torch.equal(grads[0], torch.ones(6)) and torch.equal(grads[1], torch.zeros_like(parameters))


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_value_and_slope_are_continuous_at_the_bound(direction: str) -> None:
    bound = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    for x in (bound, bound * (1 - 1e-12), bound * (1 + 1e-12)):
        y, log_slope = getattr(SPLINE, direction)(x, draw(2, SPLINE.parameters))
        torch.testing.assert_close(y, bound, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_slope, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_nan_stays_nan_and_spoils_no_neighbour(direction: str) -> None:
    x, parameters = torch.tensor([0.5, float('nan'), -1.0]), draw(3, SPLINE.parameters, dtype=torch.float32)
    y, _ = getattr(SPLINE, direction)(x, parameters)
    assert y.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_gradients_to_parameters_are_those_of_finite_differences(direction: str) -> None:
    x, parameters = draw(3).requires_grad_(), draw(3, SPLINE.parameters, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(getattr(SPLINE, direction), (x, parameters))


@pytest.mark.parametrize(('settings', 'message'), [
    ({'bins': 1}, 'bins: 1'), ({'bound': 0.0}, 'bound: 0'), ({'bound': math.inf}, 'bound: inf'),
    ({'smallest': 0.0}, 'floor: 0'), ({'smallest': 1.0}, 'floor: 1'),
])
def test_bad_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RationalQuadratic(**settings)
