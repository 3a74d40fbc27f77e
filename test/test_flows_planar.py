"""Planar flows: against normflows, at the edge of the constraint, and the gradient of the numerical inverse."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from normflows.flows import Planar as ReferencePlanar
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import Planar, PlanarFlow
from flow_vla_core.flows.parameters import MARGIN, above_minus_one
from flow_vla_core.flows.planar import _Root

DIM = 3


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def planar(u: Tensor, w: Tensor, b: Tensor) -> Planar:
    """Make a transform with the given numbers."""
    made = Planar(len(u)).to(u.dtype)
    with torch.no_grad():
        made.parameters_of.constant.copy_(torch.cat([u, w, b]))
    return made


def same_direction(u: Tensor, w: Tensor) -> Tensor:
    """Return the u with which our constraint gives the v that normflows' constraint, ``w v = log(1 + e^wu) - 1``, has.

    Ours is ``w v = d - 1 + (1 - d) log(1 + (e - 1) e^wu)``.
    """
    wanted = torch.log1p(torch.exp(w @ u))
    product = torch.log(torch.expm1((wanted - MARGIN) / (1 - MARGIN))) - math.log(math.e - 1)
    return u + (product - w @ u) * w / (w @ w)


@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('seed', range(3))
def test_it_equals_normflows(seed: int, dtype: torch.dtype, within: float) -> None:
    u, w, b = draw(DIM, seed=seed, dtype=dtype), draw(DIM, seed=seed + 10, dtype=dtype), draw(1, seed=5, dtype=dtype)
    reference = ReferencePlanar((DIM,), u=u[None], w=w[None], b=b)
    x = draw(16, DIM, seed=7, dtype=dtype)
    wanted, wanted_log_det = reference(x)
    z, log_det = planar(same_direction(u, w), w, b)(x)
    torch.testing.assert_close(z, wanted.detach(), rtol=0, atol=within)
    torch.testing.assert_close(log_det, wanted_log_det.detach(), rtol=0, atol=within)


@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
@pytest.mark.parametrize('scale', [1, 3, 10])
def test_the_inverse_holds_for_large_weights(scale: float, dtype: torch.dtype, within: float) -> None:
    for seed in range(8):
        u, w, b = (scale * draw(size, seed=seed + 10 * size, dtype=dtype) for size in (DIM, DIM, 1))
        made, x = planar(u, w, b), draw(64, DIM, seed=7, dtype=dtype)
        with torch.no_grad():
            z, log_det = made(x)
            back, other = made.inverse(z)
        assert torch.isfinite(log_det).all()
        torch.testing.assert_close(back, x, rtol=0, atol=within * scale)
        torch.testing.assert_close(made(back)[0], z, rtol=0, atol=within)
        torch.testing.assert_close(other, -log_det, rtol=0, atol=100 * within)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_the_constraint_keeps_it_one_to_one_and_inverts_it(u: float, w: float, b: float) -> None:
    made = planar(*(torch.tensor([value], dtype=torch.float64) for value in (u, w, b)))
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]
    with torch.no_grad():
        z, log_det = made(x)
        assert (torch.diff(z[:, 0]) > 0).all() and (log_det >= math.log(MARGIN) - 1e-9).all()
        torch.testing.assert_close(made.inverse(z)[0], x, rtol=0, atol=1e-9)


def test_the_constraint_is_that_of_the_paper_with_a_margin() -> None:
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    m = above_minus_one(x)
    assert (m >= MARGIN - 1).all() and (torch.diff(m) >= 0).all()
    assert above_minus_one(torch.zeros((), dtype=torch.float64)).abs() < 1e-15
    torch.testing.assert_close(m[-1], (1 - MARGIN) * (x[-1] + math.log(math.e - 1)) - 1 + MARGIN)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_newton_finds_the_root_wherever_it_lies(dtype: torch.dtype) -> None:
    strengths = torch.tensor([-0.99, -0.5, -1e-6, 0, 1e-6, 0.5, 3, 100, 1e4], dtype=dtype)
    sides = torch.tensor([0, 1e-8, 1e-3, 0.3, 1, 3, 99.5, 1e4], dtype=dtype)
    k, c = (values.reshape(-1) for values in torch.meshgrid(strengths, torch.cat([-sides, sides]), indexing='ij'))
    a = _Root.apply(k, c)
    allowed = 8 * torch.finfo(dtype).eps * (a.abs() + k.abs() + c.abs() + 1e-30)
    assert ((a + k * torch.tanh(a) - c).abs() <= allowed).all()
    assert (a * c >= 0).all()


def test_the_gradient_of_the_root_is_exact_to_second_order() -> None:
    k = torch.tensor([-0.9, -0.2, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor([0.4, -1.0, 2.0, 0.1, -3.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(_Root.apply, (k, c))
    assert gradgradcheck(_Root.apply, (k, c))


@pytest.mark.parametrize('context_dim', [0, 2])
def test_gradients_of_both_directions(context_dim: int) -> None:
    torch.manual_seed(0)
    made = Planar(DIM, context_dim).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * draw(*parameter.shape))
    points = draw(4, DIM, seed=7).requires_grad_()
    context = draw(4, context_dim, seed=8).requires_grad_() if context_dim else None
    for direction in (made, made.inverse):
        assert gradcheck(direction, (points, context) if context_dim else (points,))


def test_a_weight_of_zero_is_the_identity_up_to_a_shift() -> None:
    u, b = draw(DIM), torch.tensor([0.5], dtype=torch.float64)
    made = planar(u, torch.zeros(DIM, dtype=torch.float64), b)
    x = draw(4, DIM, seed=1)
    z, log_det = made(x)
    torch.testing.assert_close(z, x + u * math.tanh(0.5))
    assert (log_det == 0).all()
    z.sum().backward()
    assert torch.isfinite(made.parameters_of.constant.grad).all()


def test_the_number_of_layers_is_checked() -> None:
    with pytest.raises(ConfigError, match='layers: 0'):
        PlanarFlow(2, layers=0)
    assert len(PlanarFlow(2, layers=5).transform.transforms) == 5
