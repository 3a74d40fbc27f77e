"""Score models against closed forms of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.schedules import VariancePreserving
from flow_vla_core.generators.score import LATEST, OBJECTIVES, WEIGHTINGS, ScoreConfig, ScoreModel
from flow_vla_core.networks import NetworkConfig, ResidualMLP, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(5, 2, 3)
MEAN, DEVIATION = 0.5, 0.3

objectives = pytest.mark.parametrize('objective', OBJECTIVES)
weightings = pytest.mark.parametrize('weighting', WEIGHTINGS)


class Recorder(nn.Module):
    """Is a network that answers with a constant and keeps what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer, self.calls = nn.Parameter(torch.tensor(answer)), []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x.detach(), t))
        return self.answer.expand_as(x)


class GaussianField(nn.Module):
    """Is the exact v for actions from N(m, s^2), times ``1 + off``.

    The score is ``-(x - a m) / (a^2 s^2 + b^2)`` with signal a and noise b, and v is ``-b / a (x + score)``.
    """

    def __init__(self, off: float = 0.0) -> None:
        super().__init__()
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        a, b = (part(t.double())[:, None, None] for part in (VariancePreserving().signal, VariancePreserving().noise))
        score = -(x - a * MEAN) / (a ** 2 * DEVIATION ** 2 + b ** 2)
        return -b / a * (x + score) * (1 + self.off)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def condition(count: int, dtype: torch.dtype = torch.float64) -> Condition:
    """Return a condition of width 3."""
    return Condition(torch.zeros(count, 3, dtype=dtype))


def transported(noise: Tensor) -> tuple[Tensor, float]:
    """Return where the probability flow takes noise, and its slope: the monotone map between two Gaussians."""
    a = VariancePreserving().signal(torch.zeros((), dtype=torch.float64)).item()
    slope = DEVIATION / math.sqrt(a ** 2 * DEVIATION ** 2 + 1 - a ** 2)
    return MEAN + slope * (noise - a * MEAN), slope


def test_signal_and_noise_keep_the_variance_and_solve_the_sde() -> None:
    schedule = VariancePreserving()
    t = torch.tensor([0, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-6, 1], dtype=torch.float64, requires_grad=True)
    signal, noise = schedule.signal(t), schedule.noise(t)
    torch.testing.assert_close(signal ** 2 + noise ** 2, torch.ones_like(t))
    slope, = torch.autograd.grad(signal.log().sum(), t)
    torch.testing.assert_close(slope, schedule.rate(t) / 2)
    assert signal[-1] == 1 and noise[-1] == 0 and signal[0] < 0.007
    assert schedule.rate(t)[0] == 20 and schedule.rate(t)[-1].item() == pytest.approx(0.1)


def test_little_noise_is_exact_in_float32() -> None:
    t = 1 - torch.tensor([1e-5, 1e-4, 1e-3], dtype=torch.float64)
    schedule, rounded = VariancePreserving(), t.float()
    torch.testing.assert_close(schedule.noise(rounded), schedule.noise(rounded.double()).float())


@pytest.mark.parametrize('t', [0.0, 1e-6, 0.2, 0.5, 0.99, 1.0])
def test_angles_and_times_are_inverse(t: float) -> None:
    schedule = VariancePreserving()
    angle, exact = schedule.angle(t), torch.tensor(t, dtype=torch.float64)
    assert math.sin(angle) == pytest.approx(schedule.signal(exact).item())
    assert math.cos(angle) == pytest.approx(schedule.noise(exact).item(), abs=1e-7)
    assert schedule.time(angle) == pytest.approx(t, abs=1e-12)


@pytest.mark.parametrize('rates', [(0.0, 20.0), (20.0, 0.1), (-1.0, 1.0)])
def test_rates_that_make_no_schedule_are_named(rates: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=str(rates[0])):
        VariancePreserving(*rates)


@pytest.mark.parametrize(('solver', 'order', 'steps'), [('euler', 1, 40), ('midpoint', 2, 20), ('heun', 2, 20),
                                                        ('rk4', 4, 10)])
def test_the_flow_with_the_exact_score_maps_noise_onto_the_gaussian(solver: str, order: int, steps: int) -> None:
    noise = torch.randn(4, 5, 2, generator=seeded(), dtype=torch.float64)
    generator = ScoreModel(GaussianField(), SIZES, solver=solver)
    errors = [(generator.sample(condition(4), noise=noise, steps=count) - transported(noise)[0]).abs().max().item()
              for count in (steps, 2 * steps, 160)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5)
    assert errors[2] < (0.02 if order == 1 else 1e-3)


def test_the_reverse_sde_with_the_exact_score_gives_the_gaussian() -> None:
    generator = ScoreModel(GaussianField(), Sizes(2, 1, 3), sampler='sde', steps=300)
    made = generator.sample(condition(5_000), generator=seeded())
    assert made.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert made.std().item() == pytest.approx(DEVIATION, abs=0.015)
    assert torch.corrcoef(made.squeeze(-1).T)[0, 1].abs() < 0.04


def test_the_last_step_of_the_sde_adds_no_noise() -> None:
    for steps, same in ((1, True), (2, False)):
        generator = ScoreModel(GaussianField(), SIZES, sampler='sde', steps=steps)
        noise = torch.randn(2, 5, 2, generator=seeded(), dtype=torch.float64)
        assert torch.equal(*[generator.sample(condition(2), noise=noise, generator=seeded(s)) for s in (1, 2)]) == same


def test_the_log_density_with_the_exact_score_is_that_of_the_gaussian() -> None:
    noise = torch.randn(5, 3, 2, generator=seeded(), dtype=torch.float64)
    made, slope = transported(noise)
    wanted = torch.distributions.Normal(0, 1).log_prob(noise).sum((1, 2)) - 6 * math.log(slope)
    with torch.no_grad():
        found = ScoreModel(GaussianField(), Sizes(3, 2, 3)).log_prob(made, condition(5))
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-4)


def test_the_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    network = ResidualMLP(2, 1, 3, 8, 1, fastest=5.0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    line = torch.linspace(-8, 8, 81)
    places = torch.cartesian_prod(line, line)[..., None]
    with torch.no_grad():
        density = ScoreModel(network, Sizes(2, 1, 3)).log_prob(places, condition(len(places), torch.float32)).exp()
    assert density.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=1e-3)
    assert density.std() > 1e-4


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    x = torch.randn(6, 5, 2, generator=seeded(), dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0, 0.1, 0.5, 0.9, 0.99, LATEST], dtype=torch.float64)
    schedule = VariancePreserving()
    variance = (schedule.signal(t) * DEVIATION) ** 2 + schedule.noise(t) ** 2
    density = torch.distributions.Normal((schedule.signal(t) * MEAN)[:, None, None], variance.sqrt()[:, None, None])
    wanted, = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(ScoreModel(GaussianField(), SIZES).score(x, t, condition(6)), wanted)


@pytest.mark.parametrize(('objective', 'weighting'), [('sliced', 'variance'), *(('denoising', w) for w in WEIGHTINGS)])
def test_the_exact_score_is_the_minimum_of_every_objective(objective: str, weighting: str) -> None:
    field = GaussianField()
    generator = ScoreModel(field, Sizes(3, 2, 3), objective=objective, weighting=weighting, draws=1)
    actions = MEAN + DEVIATION * torch.randn(40_000, 3, 2, generator=seeded(1), dtype=torch.float64)
    losses = []
    for off in (-0.3, 0.0, 0.3):
        field.off.data.fill_(off)
        losses.append(generator.loss(actions, condition(40_000), generator=seeded(2)).item())
    below, exact, above = losses
    assert exact < min(below, above)
    curvature = (above + below - 2 * exact) / 0.3 ** 2  # the losses are quadratic in it
    assert (below - above) / 0.6 / curvature == pytest.approx(0, abs=0.05)


@weightings
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_denoising_is_the_weighted_error_of_the_score(weighting: str, dtype: torch.dtype) -> None:
    network = Recorder(0.5).to(dtype)
    actions = torch.randn(7, 5, 2, generator=seeded(1), dtype=dtype)
    loss = ScoreModel(network, SIZES, weighting=weighting, draws=3).loss(actions, condition(7, dtype),
                                                                         generator=seeded(2))
    (x, t), ends, schedule = network.calls[0], actions.double().repeat_interleave(3, 0), VariancePreserving()
    t = t.double()[:, None, None]
    a, b = schedule.signal(t), schedule.noise(t)
    eps = (x.double() - a * ends) / b
    weight = {'variance': b ** 2, 'likelihood': schedule.rate(t), 'velocity': (b / a) ** 2}[weighting]
    wanted = (weight * (-x.double() - a / b * 0.5 + eps / b).square()).mean()
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-3 if dtype == torch.float32 else 1e-8, atol=0)
    assert eps.std().item() == pytest.approx(1, abs=0.2)
    if weighting == 'velocity':
        torch.testing.assert_close(wanted, (0.5 - (a * eps - b * ends)).square().mean())


def test_slicing_is_exact_where_the_jacobian_is_diagonal() -> None:
    network = Recorder(0.0).double()
    actions = torch.randn(7, 5, 2, generator=seeded(1), dtype=torch.float64)
    loss = ScoreModel(network, SIZES, objective='sliced', draws=2).loss(actions, condition(7), generator=seeded(2))
    x, t = network.calls[0]  # a score of -x has the Jacobian -1
    weight = VariancePreserving().noise(t).square()[:, None, None]
    torch.testing.assert_close(loss, (weight * (x.square() / 2 - 1)).mean())


@objectives
def test_what_the_mask_hides_does_not_count(objective: str) -> None:
    generator = ScoreModel(Recorder(0.3).double(), SIZES, objective=objective, draws=1)
    actions = torch.randn(4, 5, 2, generator=seeded(1), dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [2]])
    broken = torch.where(mask[..., None], actions, torch.full_like(actions, 1e3))
    whole = generator.loss(actions, condition(4), mask, seeded(2))
    torch.testing.assert_close(generator.loss(broken, condition(4), mask, seeded(2)), whole)
    assert not torch.allclose(generator.loss(actions, condition(4), None, seeded(2)), whole)


@pytest.mark.parametrize('kind', ['mlp', 'unet', 'transformer'])
def test_slicing_works_with_every_network(kind: str) -> None:
    torch.manual_seed(0)
    generator = ScoreConfig(objective='sliced').build(Sizes(4, 2, 3, 5), NetworkConfig(kind, 8, 1, 2))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    told = Condition(torch.randn(6, 3), torch.randn(6, 2, 5))
    generator.loss(torch.randn(6, 4, 2), told, generator=seeded()).backward()
    for name, parameter in generator.named_parameters():
        wanted = name != 'network.leave.bias'  # it moves no Jacobian, but the score
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0 or not wanted, name


@pytest.mark.parametrize('sampler', ['ode', 'sde'])
def test_a_prefix_moves_on_its_noisy_path_where_the_network_sees_it(sampler: str) -> None:
    network, schedule = Recorder(), VariancePreserving()
    generator = ScoreModel(network, SIZES, sampler=sampler, steps=4, solver='euler')
    noise, prefix = (torch.randn(3, length, 2, generator=seeded(length), dtype=torch.float64) for length in (5, 2))
    made = generator.sample(condition(3), noise=noise, prefix=prefix, generator=seeded())
    assert torch.equal(made[:, :2], prefix) and len(network.calls) == 4
    for x, t in network.calls:
        wanted = schedule.signal(t[0]) * prefix + schedule.noise(t[0]) * noise[:, :2]
        torch.testing.assert_close(x[:, :2], wanted)


@pytest.mark.parametrize(('settings', 'calls'), [({'solver': 'euler'}, 7), ({'solver': 'midpoint'}, 14),
                                                 ({'sampler': 'sde'}, 7)])
def test_the_network_is_asked_as_often_as_the_solver_says(settings: dict, calls: int) -> None:
    network = Recorder()
    ScoreModel(network, SIZES, steps=7, **settings).sample(condition(1))
    assert len(network.calls) == calls
    assert all(0 <= t.min() and t.max() < 1 for _, t in network.calls)


@pytest.mark.parametrize('settings, message', [
    ({'sampler': 'odd'}, "sampler: 'odd'.*ode"), ({'solver': 'eular'}, "solver: 'eular'.*euler"),
    ({'objective': 'slice'}, "objective: 'slice'.*sliced"), ({'weighting': 'none'}, "weighting: 'none'.*variance"),
    ({'draws': 0}, 'draws: 0'), ({'steps': 0}, 'steps: 0')])
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScoreConfig(**settings).build(SIZES, NetworkConfig('mlp', 8, 1))


def train(generator: nn.Module, targets: Tensor, steps: int) -> None:
    """Fit a generator to chunks with an empty condition."""
    optimiser, random = torch.optim.Adam(generator.parameters(), 3e-3), seeded()
    for _ in range(steps):
        chosen = targets[torch.randint(len(targets), (128,), generator=random)]
        optimiser.zero_grad()
        generator.loss(chosen, Condition(torch.zeros(128, 1)), generator=random).backward()
        optimiser.step()


def test_two_modes_are_learned_and_little_between_them() -> None:
    torch.manual_seed(0)
    shape = torch.sin(torch.linspace(0.3, 2.8, 4))[:, None]
    signs = (torch.arange(1000) % 10 < 3).float() * 2 - 1
    network = ResidualMLP(4, 1, 1, 32, 2)
    train(ScoreModel(network, Sizes(4, 1, 1), draws=1), signs[:, None, None] * shape, 300)
    for sampler, steps in (('ode', 5), ('sde', 60)):
        generator = ScoreModel(network, Sizes(4, 1, 1), sampler=sampler, steps=steps)
        with torch.no_grad():
            made = generator.sample(Condition(torch.zeros(1000, 1)), generator=seeded(1))
        middle = made[:, 1:3].mean((1, 2)) / shape[1:3].mean()
        assert (middle.abs() < 0.5).double().mean() < 0.08
        assert (middle > 0).double().mean().item() == pytest.approx(0.3, abs=0.08)


def test_slicing_learns_a_spread() -> None:
    torch.manual_seed(0)
    generator = ScoreModel(ResidualMLP(2, 1, 1, 16, 1, fastest=5.0), Sizes(2, 1, 1), objective='sliced', draws=1)
    train(generator, 1 + 0.4 * torch.randn(2000, 2, 1, generator=seeded(3)), 150)
    with torch.no_grad():
        made = generator.sample(Condition(torch.zeros(1000, 1)), generator=seeded(1))
    assert made.mean().item() == pytest.approx(1, abs=0.2)
    assert made.std().item() == pytest.approx(0.4, abs=0.15)
