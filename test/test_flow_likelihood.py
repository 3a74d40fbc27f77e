"""The density of chunks that flow matching makes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.divergence import PROBES
from flow_vla_core.errors import InputError, SolverError
from flow_vla_core.flows.base import log_normal
from flow_vla_core.generators import FlowMatching
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition


class GaussianField(nn.Module):
    """Is the exact velocity from N(0, 1) to N(c, s^2) for a condition c of one number."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.variance = deviation ** 2

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t, mean = t[:, None, None], condition.vector[..., None]
        slope = (t * self.variance - (1 - t)) / (t ** 2 * self.variance + (1 - t) ** 2)
        return mean + (x - t * mean) * slope


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def shaken(sizes: Sizes, kind: str = 'mlp', **settings: float) -> FlowMatching:
    """Return flow matching with a network whose velocities differ from place to place, slowly in time."""
    torch.manual_seed(0)
    network = NetworkConfig(kind, 8, 1, 2).build(sizes, fastest=2.0)
    generator = FlowMatching(network, sizes, **settings).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(1)))
    return generator.eval()


def ones(count: int, width: int = 3) -> Condition:
    """Return equal conditions."""
    return Condition(torch.ones(count, width, dtype=torch.float64))


@pytest.mark.parametrize('dtype, error', [(torch.float32, 1e-3), (torch.float64, 1e-7)])
def test_of_gaussians_it_is_the_gaussian_density(dtype: torch.dtype, error: float) -> None:
    means = torch.tensor([[2.0], [-1.0], [0.5]], dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    generator = FlowMatching(GaussianField(0.5), Sizes(5, 2, 1), tolerance=tolerance)
    actions = means[..., None] + 0.5 * torch.randn(3, 5, 2, generator=seeded(), dtype=dtype)
    expected = torch.distributions.Normal(means[..., None], 0.5).log_prob(actions).sum((1, 2))
    for found in (generator.log_prob(actions, Condition(means)),
                  generator.estimate_log_prob(actions, Condition(means), generator=seeded())):  # a diagonal Jacobian
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=error, atol=error)


@pytest.mark.parametrize('sizes', [Sizes(2, 1, 3), Sizes(1, 2, 3)], ids=['two actions', 'one action'])
@pytest.mark.parametrize('settings', [{}, {'drop': 0.5, 'guidance': 2.0}], ids=['plain', 'guided'])
def test_it_integrates_to_one(sizes: Sizes, settings: dict) -> None:
    generator, line = shaken(sizes, **settings), torch.linspace(-9, 9, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).reshape(-1, sizes.horizon, sizes.action_dim)
    with torch.no_grad():
        density = generator.log_prob(grid, ones(len(grid))).exp()
    assert density.sum().item() * 0.3 ** 2 == pytest.approx(1, abs=1e-3)
    assert (density - log_normal(grid.flatten(1)).exp()).abs().max() > 0.01  # it is no Gaussian by accident


@pytest.mark.parametrize('kind', ['mlp', 'transformer'])
def test_it_is_that_of_what_is_sampled(kind: str) -> None:
    """The change of variables along the whole solution, with the autodiff Jacobian of the map from noise to chunk."""
    generator = shaken(Sizes(3, 2, 3), kind, solver='rk4', steps=20, tolerance=1e-8)
    noise = torch.randn(1, 3, 2, generator=seeded(), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda noise: generator.sample(ones(1), noise=noise), noise)
    expected = log_normal(noise.flatten()) - torch.linalg.slogdet(jacobian.reshape(6, 6)).logabsdet
    with torch.no_grad():
        found = generator.log_prob(generator.sample(ones(1), noise=noise), ones(1))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('probe', PROBES)
def test_exact_and_estimated_agree_within_four_standard_errors(probe: str) -> None:
    generator, count = shaken(Sizes(3, 2, 3)), 400
    actions = torch.randn(1, 3, 2, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        exact = generator.log_prob(actions, ones(1)).item()
        found = generator.estimate_log_prob(actions.expand(count, -1, -1), ones(count), probe, seeded(1))
    assert found.std() > 1e-3
    assert abs(found.mean().item() - exact) < 4 * found.std().item() / math.sqrt(count)


def test_the_estimate_is_repeatable_and_its_noise_is_drawn_once() -> None:
    generator = shaken(Sizes(3, 2, 3))
    actions = torch.randn(4, 3, 2, generator=seeded(), dtype=torch.float64)
    calls = []
    generator.network.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = (generator.estimate_log_prob(actions, ones(4), generator=seeded(1)) for _ in range(2))
        other = generator.estimate_log_prob(actions, ones(4), generator=seeded(2))
    assert torch.equal(first, second) and not torch.allclose(first, other)
    assert len(calls) < 3 * 1000  # fresh noise at each call would take thousands
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gradient_reaches_weights_actions_and_condition() -> None:
    generator = shaken(Sizes(1, 2, 3), tolerance=1e-7)
    actions = torch.randn(2, 1, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    vector = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    generator.log_prob(actions, Condition(vector)).sum().backward()
    for tensor, place in ((actions, (0, 0, 1)), (vector, (1, 2)), (generator.network.leave.weight, (0, 1))):
        with torch.no_grad():
            kept, sides = tensor[place].item(), []
            for step in (1e-4, -1e-4):
                tensor[place] = kept + step
                sides.append(generator.log_prob(actions, Condition(vector)).sum().item())
            tensor[place] = kept
        assert tensor.grad[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-3, abs=1e-5)


def test_what_cannot_be_evaluated_is_named() -> None:
    generator, actions = shaken(Sizes(3, 2, 3)), torch.zeros(2, 3, 2, dtype=torch.float64)
    with pytest.raises(InputError, match='gauss.*gaussian'):
        generator.estimate_log_prob(actions, ones(2), 'gauss')
    with pytest.raises(InputError, match='actions: shape'):
        generator.estimate_log_prob(actions[:, :2], ones(2))
    with torch.no_grad():
        generator.network.leave.bias.fill_(float('nan'))
    with pytest.raises(SolverError, match='not finite'):
        generator.log_prob(actions, ones(2))
