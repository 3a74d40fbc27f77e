"""Radial flows: against normflows, at the centre, and at the edge of the constraint."""

from __future__ import annotations

import math

from normflows.flows import Radial as ReferenceRadial
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import Radial, RadialFlow
from flow_vla_core.flows.parameters import MARGIN
from flow_vla_core.flows.radial import SMALLEST

DIM = 3


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def radial(centre: Tensor, alpha: float, beta: float) -> Radial:
    """Make a transform with the given centre and raw numbers."""
    made = Radial(len(centre)).to(centre.dtype)
    with torch.no_grad():
        made.parameters_of.constant.copy_(torch.cat([centre, centre.new_tensor([alpha, beta])]))
    return made


def raw(alpha: float, beta: float) -> tuple[float, float]:
    """Return the raw numbers that give alpha and beta, by the inverse of our constraints."""
    ratio = (beta / alpha + 1 - MARGIN) / (1 - MARGIN)
    return math.log(math.expm1(alpha - SMALLEST)), math.log(math.expm1(ratio)) - math.log(math.e - 1)


@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(('alpha', 'beta'), [(0.7, -1.2), (0.3, 2.0), (2.0, -3.0)])
def test_it_equals_normflows(alpha: float, beta: float, dtype: torch.dtype, within: float) -> None:
    centre, x = draw(DIM, seed=1, dtype=dtype), draw(16, DIM, seed=7, dtype=dtype)
    reference = ReferenceRadial((DIM,), z_0=centre[None]).to(dtype)
    with torch.no_grad():
        reference.alpha.fill_(alpha)
        reference.beta.fill_(beta)
        wanted, wanted_log_det = reference(x)
        z, log_det = radial(centre, *raw(alpha, math.log1p(math.exp(beta)) - alpha))(x)
    torch.testing.assert_close(z, wanted, rtol=0, atol=within)
    torch.testing.assert_close(log_det, wanted_log_det, rtol=0, atol=within)


@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
@pytest.mark.parametrize('scale', [1, 3, 10])
def test_the_inverse_holds_for_large_weights_and_far_points(scale: float, dtype: torch.dtype, within: float) -> None:
    for seed in range(8):
        alpha, beta = (scale * draw(2, seed=seed)).tolist()
        made = radial(scale * draw(DIM, seed=seed + 20, dtype=dtype), alpha, beta)
        for reach in (1e-3, 1, 100):
            x = reach * draw(64, DIM, seed=7, dtype=dtype)
            with torch.no_grad():
                z, log_det = made(x)
                back, other = made.inverse(z)
            size = max(reach, scale)
            torch.testing.assert_close(back, x, rtol=0, atol=within * size)
            torch.testing.assert_close(other, -log_det, rtol=0, atol=100 * within * size)


@pytest.mark.parametrize('beta', [-30.0, 0.0, 4.0])
def test_the_centre_stays_and_has_the_slope_of_the_formula(beta: float) -> None:
    centre = draw(DIM, seed=1)
    made = radial(centre, 0.5, beta)
    _, alpha, strength = made._constrained(None)
    assert strength > -alpha
    for direction, sign in ((made, 1), (made.inverse, -1)):
        point, log_det = direction(centre[None])
        torch.testing.assert_close(point[0], centre)
        torch.testing.assert_close(log_det[0], sign * DIM * torch.log1p(strength / alpha))
        log_det.sum().backward(retain_graph=True)
    assert torch.isfinite(made.parameters_of.constant.grad).all()


@pytest.mark.parametrize('context_dim', [0, 2])
@pytest.mark.parametrize('dim', [1, 2, DIM])
def test_gradients_of_both_directions(dim: int, context_dim: int) -> None:
    torch.manual_seed(0)
    made = Radial(dim, context_dim).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * draw(*parameter.shape))
    points = draw(4, dim, seed=7).requires_grad_()
    context = draw(4, context_dim, seed=8).requires_grad_() if context_dim else None
    for direction in (made, made.inverse):
        assert gradcheck(direction, (points, context) if context_dim else (points,))


def test_beta_of_zero_is_the_identity() -> None:
    x = draw(4, DIM)
    z, log_det = radial(draw(DIM, seed=1), 0.5, 0.0)(x)
    torch.testing.assert_close(z, x)
    torch.testing.assert_close(log_det, torch.zeros(4, dtype=torch.float64))


def test_the_number_of_layers_is_checked() -> None:
    with pytest.raises(ConfigError, match='layers: 0'):
        RadialFlow(2, layers=0)
