"""Flow matching and its refinement against closed forms and a toy with two modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import FlowMatching, Refined
from flow_vla_core.generators.flow_matching import beta_time, uniform_time
from flow_vla_core.networks import ResidualMLP, Sizes
from flow_vla_core.solvers import SOLVERS
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


def test_times_follow_their_distributions() -> None:
    uniform, beta = uniform_time(200_000, seeded()), beta_time(200_000, seeded())
    assert uniform.mean().item() == pytest.approx(0.5, abs=3e-3)
    # Beta(1.5, 1) has mean 0.6 and variance 1.5 / (2.5^2 * 3.5).
    assert beta.mean().item() == pytest.approx(1 - (0.999 * 0.6 + 0.001), abs=2e-3)
    assert beta.var().item() == pytest.approx(0.999 ** 2 * 1.5 / (2.5 ** 2 * 3.5), rel=0.02)
    assert 0 <= beta.min() and beta.max() <= 0.999
    for level in (0.1, 0.5, 0.9):
        share = (1 - beta < 0.999 * level + 0.001).double().mean().item()
        assert share == pytest.approx(level ** 1.5, abs=5e-3)


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


@pytest.mark.parametrize('solver', SOLVERS)
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


@pytest.mark.parametrize('settings, message', [
    ({'solver': 'eular'}, "solver: 'eular'.*euler"), ({'time': 'beat'}, "time: 'beat'.*beta"),
    ({'steps': 0}, 'steps: 0'), ({'draws': 0}, 'draws: 0')])
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FlowMatching(Recorder(), Sizes(5, 2, 3), **settings)


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
