"""A density flow as generator: exact likelihood, hidden actions, prefixes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import FLOWS, RealNVP
from flow_vla_core.generators import LikelihoodFlow, LikelihoodFlowConfig
from flow_vla_core.generators.candidates import CANDIDATES, more_noise, nearest_beginning
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(3, 2, 5)
flows = pytest.mark.parametrize('flow', FLOWS)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def make(flow: str = 'real_nvp', sizes: Sizes = SIZES, jitter: float = 0.0) -> LikelihoodFlow:
    """Make a generator in float64 whose weights are not zero."""
    torch.manual_seed(0)
    made = LikelihoodFlowConfig(flow, jitter).build(sizes, NetworkConfig('mlp', 8, 1)).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)).double())
    return made.eval()


def told(batch: int, sizes: Sizes = SIZES) -> Condition:
    """Draw conditions."""
    return Condition(torch.randn(batch, sizes.condition_dim, generator=seeded(2)).double())


def chunks(batch: int) -> Tensor:
    """Draw chunks."""
    return torch.randn(batch, 3, 2, generator=seeded(3)).double()


@flows
def test_every_density_flow_makes_chunks_whose_density_is_that_of_their_noise(flow: str) -> None:
    generator, condition, noise = make(flow), told(2), chunks(2)
    with torch.no_grad():
        made = generator.sample(condition, noise=noise)
        jacobian = torch.autograd.functional.jacobian(lambda n: generator.sample(condition, noise=n).sum(0), noise)
        wanted = torch.distributions.Normal(0, 1).log_prob(noise).sum((1, 2)) - torch.stack(
            [torch.linalg.slogdet(jacobian[:, :, b].reshape(6, 6)).logabsdet for b in range(2)])
        found = generator.log_prob(made, condition)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 if flow == 'continuous' else 1e-6)


@pytest.mark.parametrize('flow', ['real_nvp', 'spline', 'maf'])
def test_density_of_two_numbers_integrates_to_one(flow: str) -> None:
    sizes = Sizes(1, 2, 5)
    generator, axis = make(flow, sizes), torch.linspace(-9, 9, 241).double()
    grid = torch.cartesian_prod(axis, axis)[:, None]
    condition = Condition(told(1).vector.expand(len(grid), -1))
    with torch.no_grad():
        total = generator.log_prob(grid, condition).exp().sum() * (axis[1] - axis[0]) ** 2
    assert total.item() == pytest.approx(1, abs=1e-3)


def test_loss_is_the_negative_log_likelihood_of_a_number() -> None:
    generator, condition, actions = make(), told(4), chunks(4)
    torch.testing.assert_close(generator.loss(actions, condition), -generator.log_prob(actions, condition).mean() / 6)


def test_jitter_is_noise_of_that_size_on_the_actions() -> None:
    condition, actions = told(4), chunks(4)
    noise = torch.randn(4, 3, 2, generator=seeded(6)).double()
    torch.testing.assert_close(make(jitter=0.3).loss(actions, condition, generator=seeded(6)),
                               make().loss(actions + 0.3 * noise, condition))


def test_what_a_mask_hides_changes_nothing() -> None:
    generator, condition, actions = make(jitter=0.1), told(4), chunks(4)
    mask = torch.tensor([[True, True, False]] * 4)
    changed = actions.clone()
    changed[:, 2] = 100
    torch.testing.assert_close(generator.loss(actions, condition, mask, seeded()),
                               generator.loss(changed, condition, mask, seeded()), rtol=0, atol=0)


def test_the_loss_of_what_a_mask_leaves_is_its_likelihood_for_a_flow_that_leaves_noise_alone() -> None:
    generator, condition, actions = make(), told(4), chunks(4)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, False, False]])
    wanted = -torch.distributions.Normal(0, 1).log_prob(actions)[mask].mean()
    torch.testing.assert_close(generator.loss(actions, condition, mask, seeded()), wanted)


def test_a_number_that_never_varies_keeps_the_density_finite() -> None:
    generator, condition = LikelihoodFlowConfig('real_nvp', 0.1).build(SIZES, NetworkConfig('mlp', 8, 1)), told(32)
    condition = Condition(condition.vector.float())
    optimiser, random = torch.optim.Adam(generator.parameters(), 1e-2), seeded()
    for _ in range(60):
        optimiser.zero_grad()
        loss = generator.loss(torch.zeros(32, 3, 2), condition, generator=random)
        loss.backward()
        optimiser.step()
    floor = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.1)  # entropy of the jitter, nats per number
    assert floor - 0.1 < loss.item() < floor + 1


def test_widths_of_the_flow_are_those_of_the_network() -> None:
    small, large = (sum(p.numel() for p in LikelihoodFlowConfig(flow).build(SIZES, NetworkConfig('mlp', width, 2))
                        .parameters()) for flow, width in (('spline', 8), ('spline', 32)))
    assert large > 3 * small


@pytest.mark.parametrize('flow, jitter, message', [
    ('realnvp', 0.0, "'realnvp'; did you mean 'real_nvp'"), ('spline', -0.1, 'jitter: -0.1; allowed: 0 or more')])
def test_settings_out_of_range_are_named(flow: str, jitter: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LikelihoodFlowConfig(flow, jitter).build(SIZES, NetworkConfig('mlp', 8, 1))


def test_a_flow_of_another_size_is_named() -> None:
    with pytest.raises(ConfigError, match='a flow over 5 numbers; allowed: 3 x 2'):
        LikelihoodFlow(RealNVP(5, 8), SIZES)


# candidates

def test_noise_that_is_given_comes_first() -> None:
    noise = chunks(2)
    several = more_noise(noise, 5, seeded()).unflatten(0, (2, 5))
    assert several.shape == (2, 5, 3, 2) and torch.equal(several[:, 0], noise)
    assert abs(several[:, 1:].mean().item()) < 0.6 and len(several.unique()) == 60


def test_the_chunk_that_begins_nearest_is_chosen() -> None:
    several = chunks(2 * 7).unflatten(0, (2, 7))
    prefix = several[torch.arange(2), torch.tensor([4, 1]), :2] + 1e-3
    assert torch.equal(nearest_beginning(prefix, several.flatten(0, 1)), several[torch.arange(2), torch.tensor([4, 1])])


def test_a_prefix_leads_to_a_chunk_that_goes_on_from_it() -> None:
    generator, condition = make('maf'), told(50)
    with torch.no_grad():
        wanted = generator.sample(condition, generator=seeded(8))
        free = generator.sample(condition, generator=seeded(9))
        followed = generator.sample(condition, prefix=wanted[:, :1], generator=seeded(9))
    assert CANDIDATES > 1 and torch.equal(followed[:, 0], wanted[:, 0])
    assert not torch.equal(free[:, 1:], followed[:, 1:])


def test_a_continuous_flow_learns_and_samples_without_the_exact_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(2, 3, 5)
    made = LikelihoodFlowConfig('continuous').build(sizes, NetworkConfig('mlp', 7, 1))
    exact = made.log_prob(torch.ones(4, 2, 3), Condition(torch.zeros(4, 5)))

    def refuse(*_: object) -> None:
        raise AssertionError('the exact trace was asked for')

    monkeypatch.setattr('flow_vla_core.flows.continuous.exact_divergence', refuse)
    condition = Condition(torch.zeros(4, 5))
    assert made.sample(condition).shape == (4, 2, 3)
    made.jitter = 0.0
    loss = made.loss(torch.ones(4, 2, 3), condition, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, -exact.mean() / 6)  # the untrained field stands still: its trace is 0
