"""Divergences against autodiff Jacobians and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from flow_vla_core.divergence import PROBES, draw_probe, exact_divergence, hutchinson_divergence
from flow_vla_core.errors import InputError
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(horizon=3, action_dim=2, condition_dim=7, token_dim=5)
BATCH = 5


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def network_field(kind: str, vector: Tensor | None = None) -> tuple[torch.nn.Module, Callable[[Tensor], Tensor]]:
    """Return a network with shaken weights, and it as a field for a fixed time and condition."""
    torch.manual_seed(0)
    network = NetworkConfig(kind, 8, 1, 2).build(SIZES).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    vector = torch.randn(BATCH, 7, dtype=torch.float64) if vector is None else vector
    condition = Condition(vector, torch.randn(BATCH, 4, 5, dtype=torch.float64))
    return network, lambda x: network(x, torch.full((BATCH,), 0.3, dtype=torch.float64), condition)


def points() -> Tensor:
    """Return where to look."""
    return torch.randn(BATCH, 3, 2, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize('kind', ['mlp', 'unet', 'transformer'])
@pytest.mark.parametrize('graph', [True, False])
def test_the_exact_divergence_is_the_trace_of_the_jacobian(kind: str, graph: bool) -> None:
    field, x = network_field(kind)[1], points()
    with torch.set_grad_enabled(graph):
        value, divergence = exact_divergence(field, x)
    jacobian = torch.autograd.functional.jacobian(field, x).detach()
    traces = [jacobian[i, :, :, i].reshape(6, 6).trace() for i in range(BATCH)]
    torch.testing.assert_close(divergence.detach(), torch.stack(traces), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(value, field(x), rtol=1e-12, atol=1e-12)
    assert value.requires_grad == divergence.requires_grad == graph


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [1, 4])
def test_of_a_linear_field_it_is_the_trace_of_the_matrix(dtype: torch.dtype, size: int) -> None:
    matrix = torch.randn(size, size, generator=seeded(), dtype=dtype)
    _, divergence = exact_divergence(lambda x: x @ matrix.T, torch.randn(size, size, generator=seeded(1), dtype=dtype))
    torch.testing.assert_close(divergence, matrix.trace().expand(size))
    assert divergence.dtype == dtype


@pytest.mark.parametrize('estimate', [exact_divergence, partial(hutchinson_divergence, noise=torch.ones(2, 3))])
@pytest.mark.parametrize('field', [torch.zeros_like, lambda x: x.detach() + torch.ones(3, requires_grad=True)])
def test_a_field_that_does_not_depend_on_the_place_has_none(estimate: Callable, field: Callable) -> None:
    assert torch.equal(estimate(field, torch.randn(2, 3))[1].detach(), torch.zeros(2))


def test_a_rademacher_probe_is_exact_on_a_diagonal_jacobian() -> None:
    x = points()
    for seed in range(3):
        probe = draw_probe('rademacher', x, seeded(seed))
        _, divergence = hutchinson_divergence(lambda x: x.sin() * 3, x, probe)
        torch.testing.assert_close(divergence, (3 * x.cos()).flatten(1).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('probe', PROBES)
def test_the_estimate_is_unbiased(probe: str) -> None:
    matrix, count = torch.randn(5, 5, generator=seeded(), dtype=torch.float64), 20_000
    x = torch.zeros(count, 5, dtype=torch.float64)
    with torch.no_grad():
        _, found = hutchinson_divergence(lambda x: x @ matrix.T, x, draw_probe(probe, x, seeded(1)))
    assert abs(found.mean() - matrix.trace()) < 4 * found.std() / count ** 0.5
    assert found.std() > 0.1


@pytest.mark.parametrize('probe', PROBES)
def test_probes_have_mean_0_and_covariance_1_and_come_from_the_generator(probe: str) -> None:
    like = torch.zeros(50_000, 2, 1, dtype=torch.float64)
    drawn = draw_probe(probe, like, seeded(2))
    assert drawn.dtype == torch.float64 and drawn.shape == like.shape
    assert torch.equal(drawn, draw_probe(probe, like, seeded(2)))
    torch.testing.assert_close(torch.cov(drawn.flatten(1).T), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.03)
    assert drawn.mean().abs() < 0.02


@pytest.mark.parametrize('kind', ['mlp', 'transformer'])
@pytest.mark.parametrize('estimate', [
    exact_divergence, partial(hutchinson_divergence, noise=draw_probe('gaussian', points(), seeded(3)))])
def test_the_gradient_reaches_weights_condition_and_place(kind: str, estimate: Callable) -> None:
    vector = torch.randn(BATCH, 7, generator=seeded(4), dtype=torch.float64).requires_grad_()
    network, field = network_field(kind, vector)
    x = points().requires_grad_()
    estimate(field, x)[1].sum().backward()
    weight = network.leave.weight
    for tensor, place in ((weight, (0, 0)), (vector, (1, 2)), (x, (1, 2, 1))):
        with torch.no_grad():
            kept, sides = tensor[place].item(), []
            for step in (1e-5, -1e-5):
                tensor[place] = kept + step
                sides.append(estimate(field, x)[1].sum().item())
            tensor[place] = kept
        assert tensor.grad[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_the_field_is_evaluated_once() -> None:
    calls = []
    exact_divergence(lambda x: calls.append(1) or x ** 2, torch.randn(2, 3))
    hutchinson_divergence(lambda x: calls.append(1) or x ** 2, torch.randn(2, 3), torch.ones(2, 3))
    assert len(calls) == 2


def test_the_place_is_not_written_to() -> None:
    x = torch.randn(2, 3)
    kept = x.clone()
    exact_divergence(torch.sin, x)
    assert torch.equal(x, kept) and not x.requires_grad


@torch.inference_mode()
def test_inference_mode_is_refused_in_place_of_a_wrong_zero() -> None:
    for estimate in (exact_divergence, partial(hutchinson_divergence, noise=torch.ones(2, 3))):
        with pytest.raises(InputError, match='inference_mode'):
            estimate(torch.sin, torch.zeros(2, 3))


def test_wrong_probes_are_named() -> None:
    with pytest.raises(InputError, match="'rademaker'.*rademacher"):
        draw_probe('rademaker', torch.zeros(1))
    with pytest.raises(InputError, match=r'\(3, 2\); allowed: \(2, 3\)'):
        hutchinson_divergence(torch.sin, torch.zeros(2, 3), torch.zeros(3, 2))
