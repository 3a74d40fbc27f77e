"""Flow matching and its refinement against closed forms and a toy with two modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import FlowMatching, FlowMatchingConfig, Refined
from flow_vla_core.generators.couplings import Coupling
from flow_vla_core.generators.paths import VariancePreservingPath
from flow_vla_core.networks import NetworkConfig, ResidualMLP, Sizes
from flow_vla_core.solvers import METHODS
from flow_vla_core.types import Condition


class Recorder(nn.Module):
    """Is a velocity network that answers with a constant and keeps what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer, self.calls = nn.Parameter(torch.tensor(answer)), []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x.detach(), t, condition))
        return self.answer.expand_as(x)


class GaussianField(nn.Module):
    """Is the exact velocity from N(0, 1) to N(m, s^2): ``m + (x - t m) (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2)``."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.variance = mean, deviation ** 2

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        t = t[:, None, None]
        slope = (t * self.variance - (1 - t)) / (t ** 2 * self.variance + (1 - t) ** 2)
        return self.mean + (x - t * self.mean) * slope


def condition(count: int, dtype: torch.dtype = torch.float32) -> Condition:
    """Return a condition of width 3."""
    return Condition(torch.randn(count, 3, generator=torch.Generator().manual_seed(5), dtype=dtype))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_network_sees_points_of_the_straight_path_and_the_loss_is_that_of_its_velocity(dtype: torch.dtype) -> None:
    network = Recorder(0.5)
    actions, draws = torch.randn(7, 5, 2, generator=seeded(1), dtype=dtype), 3
    loss = FlowMatching(network, Sizes(5, 2, 3), draws=draws).loss(actions, condition(7, dtype), generator=seeded(2))
    mixed, t, seen = network.calls[0]
    assert mixed.shape == (21, 5, 2) and t.shape == (21,) and seen.vector.shape == (21, 3)
    ends = actions.repeat_interleave(draws, 0)
    noise = (mixed - t[:, None, None] * ends) / (1 - t[:, None, None])
    torch.testing.assert_close(loss, (0.5 - (ends - noise)).square().mean(), rtol=1e-3, atol=1e-4)
    assert loss.dtype == dtype
    assert noise.var().item() == pytest.approx(1, abs=0.4)


def test_the_masked_loss_is_the_loss_of_what_counts() -> None:
    generator = FlowMatching(Recorder(), Sizes(5, 2, 3), draws=1)
    actions, mask = torch.randn(4, 5, 2, generator=seeded(1)), torch.arange(5) < torch.tensor([[5], [3], [1], [2]])
    whole = generator.loss(actions, condition(4), mask, seeded(2))
    broken = torch.where(mask[..., None], actions, torch.full_like(actions, 1e3))
    torch.testing.assert_close(generator.loss(broken, condition(4), mask, seeded(2)), whole)
    unmasked = generator.loss(actions, condition(4), torch.ones_like(mask), seeded(2))
    torch.testing.assert_close(unmasked, generator.loss(actions, condition(4), None, seeded(2)))
    assert not torch.allclose(unmasked, whole)


def test_nothing_that_counts_gives_no_nan() -> None:
    loss = FlowMatching(Recorder(), Sizes(5, 2, 3)).loss(torch.randn(2, 5, 2), condition(2),
                                                       torch.zeros(2, 5, dtype=torch.bool))
    assert loss.item() == 0


@pytest.mark.parametrize('solver', METHODS)
def test_the_exact_field_between_gaussians_gives_the_right_mean_and_spread(solver: str) -> None:
    field = GaussianField(2.0, 0.5)
    generator = FlowMatching(field, Sizes(2, 1, 3), steps=200, solver=solver)
    made = generator.sample(condition(20_000, torch.float64), generator=seeded())
    assert made.mean().item() == pytest.approx(2, abs=0.01)
    assert made.std().item() == pytest.approx(0.5, abs=0.01)
    covariance = torch.cov(made.squeeze(-1).T)
    assert covariance[0, 1].item() == pytest.approx(0, abs=0.01)


def test_samples_depend_on_nothing_but_the_noise() -> None:
    generator = FlowMatching(ResidualMLP(5, 2, 3, 8, 1), Sizes(5, 2, 3))
    noise = torch.randn(4, 5, 2)
    kept = noise.clone()
    first = generator.sample(condition(4), noise=noise)
    assert torch.equal(first, generator.sample(condition(4), noise=noise))
    assert torch.equal(noise, kept)
    drawn = [generator.sample(condition(4), generator=seeded(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    state = torch.get_rng_state()
    generator.sample(condition(4), generator=seeded(3))
    generator.loss(noise, condition(4), generator=seeded(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_can_be_chosen_for_one_sample() -> None:
    network = Recorder(1.0)
    generator = FlowMatching(network, Sizes(5, 2, 3), steps=7)
    generator.sample(condition(1))
    generator.sample(condition(1), steps=3)
    assert len(network.calls) == 10


def test_a_prefix_is_kept_and_seen_on_its_path() -> None:
    network = Recorder(1.0)
    generator = FlowMatching(network, Sizes(5, 2, 3), steps=4)
    noise, prefix = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    made = generator.sample(condition(3, torch.float64), noise=noise, prefix=prefix)
    assert torch.equal(made[:, :2], prefix)
    torch.testing.assert_close(made[:, 2:], noise[:, 2:] + 1)
    for x, t, _ in network.calls:
        torch.testing.assert_close(x[:, :2], (1 - t[0]) * noise[:, :2] + t[0] * prefix)


@pytest.mark.parametrize('solver', METHODS)
def test_the_network_sees_a_prefix_on_a_curved_path_at_any_solver(solver: str) -> None:
    network, path = Recorder(1.0), VariancePreservingPath()
    generator = FlowMatching(network, Sizes(5, 2, 3), steps=3, solver=solver, path=path)
    noise, prefix = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64)
    made = generator.sample(condition(3, torch.float64), noise=noise, prefix=prefix)
    assert torch.equal(made[:, :2], prefix)
    for x, t, _ in network.calls:
        torch.testing.assert_close(x[:, :2], path.mix(noise[:, :2], prefix, t))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_loss_of_given_pairs_is_that_of_torchcfm(dtype: torch.dtype) -> None:
    network = ResidualMLP(5, 2, 3, 8, 1).to(dtype)
    nn.init.normal_(network.leave.weight)
    noise, actions = (torch.randn(7, 5, 2, generator=seeded(seed), dtype=dtype) for seed in (1, 2))
    generator = FlowMatching(network, Sizes(5, 2, 3), time='uniform')
    t = torch.rand(7, generator=seeded(3)).to(dtype)
    t, place, velocity = ConditionalFlowMatcher(0.0).sample_location_and_conditional_flow(noise, actions, t)
    expected = (network(place, t, condition(7, dtype)) - velocity).square().mean()
    found = generator.pair_loss(noise, actions, condition(7, dtype), generator=seeded(3))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_path_and_coupling_are_those_that_were_given() -> None:
    class Reversed(Coupling):
        """Deals the noise out from the end."""

        def pair(self, noise: Tensor, data: Tensor, condition: Condition, mask: Tensor | None = None) -> Tensor:
            seen.append((noise, data, condition, mask))
            return noise.flip(0)

    seen: list[tuple] = []
    network, path = Recorder(0.5), VariancePreservingPath()
    generator = FlowMatching(network, Sizes(5, 2, 3), draws=2, path=path, coupling=Reversed())
    actions, mask = torch.randn(4, 5, 2), torch.ones(4, 5, dtype=torch.bool)
    loss = generator.loss(actions, condition(4), mask, seeded())
    (noise, data, told, hidden), (mixed, t, _) = seen[0], network.calls[0]
    assert torch.equal(data, actions.repeat_interleave(2, 0))
    assert told.vector.shape == (8, 3) and hidden.shape == (8, 5)
    assert torch.equal(mixed, path.mix(noise.flip(0), data, t))
    torch.testing.assert_close(loss, (0.5 - path.velocity(noise.flip(0), data, t)).square().mean())


@pytest.mark.parametrize('settings, message', [
    ({'solver': 'eular'}, "solver: 'eular'.*euler"), ({'time': 'beat'}, "time: 'beat'.*beta"),
    ({'steps': 0}, 'steps: 0'), ({'draws': 0}, 'draws: 0'), ({'path': 'strait'}, "path: 'strait'.*straight"),
    ({'coupling': 'dependent'}, "coupling: 'dependent'.*independent"), ({'drop': 1.0}, 'drop: 1.0'),
    ({'drop': -0.1}, 'drop: -0.1'), ({'guidance': 2.0}, 'guidance: 2.0.*drop'),
    ({'guidance': -1.0, 'drop': 0.1}, 'guidance: -1.0'), ({'tolerance': 0.0}, 'tolerance: 0.0')])
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlowMatchingConfig(**settings).build(Sizes(5, 2, 3), NetworkConfig('mlp', 8, 1))


@pytest.mark.parametrize('settings', [
    {'solver': 'dopri5', 'time': 'logit_normal'}, {'path': 'variance_preserving', 'solver': 'heun'},
    {'coupling': 'optimal_transport'}, {'coupling': 'conditional_optimal_transport'}], ids=str)
def test_every_choice_learns_and_samples(settings: dict) -> None:
    torch.manual_seed(0)
    generator = FlowMatchingConfig(draws=1, **settings).build(Sizes(1, 2, 1), NetworkConfig('mlp', 24, 1))
    targets = 0.3 * torch.randn(500, 1, 2, generator=seeded(1)) + torch.tensor([2.0, -1.0])
    train(generator, targets, 150)
    with torch.no_grad():
        made = generator.sample(Condition(torch.zeros(2000, 1)), steps=10, generator=seeded(2))
    torch.testing.assert_close(made.mean((0, 1)), torch.tensor([2.0, -1.0]), rtol=0, atol=0.15)
    torch.testing.assert_close(made.std((0, 1)), torch.tensor([0.3, 0.3]), rtol=0, atol=0.15)


def train(generator: nn.Module, targets: Tensor, steps: int) -> None:
    """Fit a generator to chunks with an empty condition."""
    optimiser, random = torch.optim.Adam(generator.parameters(), 3e-3), seeded(0)
    for _ in range(steps):
        chosen = targets[torch.randint(len(targets), (128,), generator=random)]
        loss = generator.loss(chosen, Condition(torch.zeros(128, 1)), generator=random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_two_modes_are_learned_and_nothing_between_them() -> None:
    torch.manual_seed(0)
    shape = torch.sin(torch.linspace(0, 3.14, 6))[:, None]
    signs = (torch.arange(1000) % 10 < 3).float() * 2 - 1
    targets = signs[:, None, None] * shape + 0.02 * torch.randn(1000, 6, 1)
    generator = FlowMatching(ResidualMLP(6, 1, 1, 48, 2), Sizes(6, 1, 1), steps=8, solver='midpoint',
                             time='uniform', draws=1)
    train(generator, targets, 500)
    with torch.no_grad():
        made = generator.sample(Condition(torch.zeros(2000, 1)), generator=seeded(1))
    middle = made[:, 2:4].mean((1, 2)) / shape[2:4].mean()
    assert (middle.abs() < 0.5).double().mean() < 0.05
    assert (middle > 0).double().mean().item() == pytest.approx(0.3, abs=0.06)
    assert middle.abs().mean().item() == pytest.approx(1, abs=0.1)


def test_refinement_corrects_what_the_base_gets_wrong_and_does_not_train_it() -> None:
    torch.manual_seed(0)
    base = FlowMatching(Recorder(0.0), Sizes(3, 1, 1), steps=1)
    refined = Refined(base, ResidualMLP(3, 1, 1, 32, 2))
    targets = torch.full((500, 3, 1), 2.0)
    train(refined, targets, 200)
    made = refined.sample(Condition(torch.zeros(200, 1)), generator=seeded(1))
    assert (made - 2).abs().mean() < 0.3
    prefix = torch.ones(200, 1, 1)
    assert torch.equal(refined.sample(Condition(torch.zeros(200, 1)), prefix=prefix)[:, :1], prefix)


def test_no_gradient_of_the_refinement_reaches_the_base() -> None:
    base = FlowMatching(ResidualMLP(3, 1, 1, 8, 1), Sizes(3, 1, 1))
    refined = Refined(base, ResidualMLP(3, 1, 1, 8, 1))
    actions, empty = torch.randn(4, 3, 1), Condition(torch.zeros(4, 1))
    refined.loss(actions, empty, generator=seeded()).backward()
    both = [p.grad.clone() for p in base.parameters()]
    base.zero_grad()
    random = seeded()
    refined.base.sample(empty, steps=refined.steps, generator=random)
    base.loss(actions, empty, generator=random).backward()
    for mine, theirs in zip(base.parameters(), both):
        torch.testing.assert_close(mine.grad, theirs)
