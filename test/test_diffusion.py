"""Diffusion policies and their schedules against diffusers and closed forms."""

from __future__ import annotations

import math

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import diffusion
from flow_vla_core.generators.diffusion import PREDICTIONS, SAMPLERS, DiffusionConfig, DiffusionPolicy
from flow_vla_core.generators.schedules import SCHEDULES, NoiseSchedule
from flow_vla_core.networks import NetworkConfig, ResidualMLP, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(5, 2, 3)
THEIRS = {'epsilon': 'epsilon', 'sample': 'sample', 'velocity': 'v_prediction'}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

schedules = pytest.mark.parametrize('schedule', SCHEDULES)
predictions = pytest.mark.parametrize('prediction', PREDICTIONS)
dtypes = pytest.mark.parametrize('dtype', [torch.float32, torch.float64])


class Recorder(nn.Module):
    """Is a network that answers with a constant and keeps what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer, self.calls = nn.Parameter(torch.tensor(answer)), []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x.detach(), t))
        return self.answer.expand_as(x)


class GaussianDenoiser(nn.Module):
    """Is the exact mean of actions from N(m, s^2), given x: ``m + a s^2 (x - a m) / (a^2 s^2 + 1 - a^2)``."""

    def __init__(self, schedule: NoiseSchedule, mean: float, deviation: float) -> None:
        super().__init__()
        self.schedule, self.mean, self.variance = schedule, mean, deviation ** 2

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        step = ((1 - t) * len(self.schedule) - 1).round().long()
        level = self.schedule.level[step][:, None, None]
        gain = level.sqrt() * self.variance / (level * self.variance + 1 - level)
        return self.mean + gain * (x - level.sqrt() * self.mean)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def condition(count: int, dtype: torch.dtype = torch.float32) -> Condition:
    """Return a condition of width 3."""
    return Condition(torch.zeros(count, 3, dtype=dtype))


def reference(kind: type, schedule: str, count: int, **settings: object) -> DDIMScheduler | DDPMScheduler:
    """Make diffusers' scheduler with the same betas."""
    betas = {'linear': {'beta_start': 0.1 / count, 'beta_end': 20 / count},
             'cosine': {'beta_schedule': 'squaredcos_cap_v2'}}[schedule]
    return kind(num_train_timesteps=count, **betas, **settings)


@schedules
@pytest.mark.parametrize('count', [50, 100, 1000])
def test_schedules_are_those_of_diffusers(schedule: str, count: int) -> None:
    theirs = reference(DDPMScheduler, schedule, count).alphas_cumprod
    torch.testing.assert_close(NoiseSchedule(schedule, count).level.float(), theirs, rtol=2e-4, atol=1e-6)


@schedules
@pytest.mark.parametrize('count', [2, 10, 100, 1000])
def test_the_signal_fades_from_nearly_all_to_nearly_nothing(schedule: str, count: int) -> None:
    levels = torch.tensor(NoiseSchedule(schedule, count).levels)
    assert (levels > 0).all() and (levels[1:] < levels[:-1]).all()
    assert levels[-1] < 2e-3
    assert count < 100 or levels[0] > 0.99


def test_schedules_follow_the_module_and_are_no_weights() -> None:
    generator = DiffusionConfig().build(SIZES, NetworkConfig('mlp', 8, 1))
    assert not any('level' in name for name in generator.state_dict())
    assert 'schedule.level' in dict(generator.named_buffers())
    assert generator.float().schedule.level.dtype == torch.float32


@pytest.mark.parametrize('steps', [1, 3, 10, 64, 99, 100])
def test_sampling_visits_the_last_step_first_and_each_at_most_once(steps: int) -> None:
    visited = NoiseSchedule('cosine', 100).visit(steps)
    scheduler = DDIMScheduler(100, timestep_spacing='trailing')
    scheduler.set_timesteps(steps)
    assert list(visited) == scheduler.timesteps.tolist()
    assert len(visited) == steps and visited[0] == 99 and visited[-1] >= 0
    assert all(later < earlier for earlier, later in zip(visited, visited[1:]))


@schedules
@predictions
@dtypes
@pytest.mark.parametrize('clip', [None, 0.7])
@pytest.mark.parametrize('step', [99, 49, 9])
def test_a_ddim_step_is_that_of_diffusers(schedule: str, prediction: str, dtype: torch.dtype, clip: float | None,
                                          step: int) -> None:
    ours = NoiseSchedule(schedule, 100)
    scheduler = reference(DDIMScheduler, schedule, 100, prediction_type=THEIRS[prediction],
                          clip_sample=clip is not None, clip_sample_range=clip or 1, timestep_spacing='trailing')
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = ours.level, torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(10)
    x, answer = (torch.randn(3, 5, 2, generator=seeded(seed), dtype=dtype) for seed in (1, 2))
    wanted = scheduler.step(answer, step, x, use_clipped_model_output=True).prev_sample
    now, then = ours.levels[step], 1.0 if step < 10 else ours.levels[step - 10]
    clean = PREDICTIONS[prediction].clean(answer, x, math.sqrt(now), math.sqrt(1 - now))
    found = diffusion.ddim_step(x, clean if clip is None else clean.clamp(-clip, clip), now, then, _refuse)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@schedules
@predictions
@dtypes
@pytest.mark.parametrize('step', [99, 50, 1, 0])
def test_a_ddpm_step_is_that_of_diffusers(schedule: str, prediction: str, dtype: torch.dtype, step: int) -> None:
    ours = NoiseSchedule(schedule, 100)
    scheduler = reference(DDPMScheduler, schedule, 100, prediction_type=THEIRS[prediction], clip_sample=False)
    scheduler.alphas_cumprod, scheduler.one = ours.level, torch.ones((), dtype=torch.float64)
    x, answer = (torch.randn(3, 5, 2, generator=seeded(seed), dtype=dtype) for seed in (1, 2))
    wanted = scheduler.step(answer, step, x, generator=seeded(3)).prev_sample
    now, then = ours.levels[step], 1.0 if step == 0 else ours.levels[step - 1]
    clean = PREDICTIONS[prediction].clean(answer, x, math.sqrt(now), math.sqrt(1 - now))
    found = diffusion.ddpm_step(x, clean, now, then, lambda: torch.randn(x.shape, generator=seeded(3), dtype=dtype))
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def _refuse() -> Tensor:
    raise AssertionError('noise is drawn where none is to be added')


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_the_last_step_adds_no_noise_and_gives_the_estimate(sampler: str) -> None:
    x, clean = torch.randn(2, 3, 1, dtype=torch.float64), torch.randn(2, 3, 1, dtype=torch.float64)
    torch.testing.assert_close(SAMPLERS[sampler](x, clean, 0.4, 1.0, _refuse), clean)


@predictions
def test_a_prediction_that_hits_its_target_gives_the_actions_back(prediction: str) -> None:
    actions, eps = (torch.randn(7, 5, 2, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    answer = PREDICTIONS[prediction].target(actions, eps, 0.6, 0.8)
    torch.testing.assert_close(PREDICTIONS[prediction].clean(answer, 0.6 * actions + 0.8 * eps, 0.6, 0.8), actions)


@schedules
def test_ddim_with_the_exact_denoiser_maps_noise_onto_the_gaussian(schedule: str) -> None:
    levels = NoiseSchedule(schedule, 1000)
    generator = DiffusionPolicy(GaussianDenoiser(levels, 0.5, 0.3), SIZES, levels, steps=250, prediction='sample')
    noise = torch.randn(50, 5, 2, generator=seeded(), dtype=torch.float64)
    made = generator.sample(condition(50, torch.float64), noise=noise)
    torch.testing.assert_close(made, 0.5 + 0.3 * noise, rtol=0, atol=0.02)


@schedules
def test_ddpm_with_the_exact_denoiser_gives_the_gaussian_back(schedule: str) -> None:
    levels = NoiseSchedule(schedule, 500)
    generator = DiffusionPolicy(GaussianDenoiser(levels, 0.5, 0.3), Sizes(2, 1, 3), levels, steps=500,
                                prediction='sample', sampler='ddpm')
    made = generator.sample(condition(10_000), generator=seeded())
    assert made.mean().item() == pytest.approx(0.5, abs=0.01)
    assert made.std().item() == pytest.approx(0.3, abs=0.01)
    assert torch.corrcoef(made.squeeze(-1).T)[0, 1].abs() < 0.04


@schedules
@predictions
@dtypes
def test_the_network_sees_the_mixture_and_the_loss_is_that_of_its_prediction(schedule: str, prediction: str,
                                                                             dtype: torch.dtype) -> None:
    network, levels = Recorder(0.5).to(dtype), NoiseSchedule(schedule, 10)
    generator = DiffusionPolicy(network, SIZES, levels, steps=1, prediction=prediction, draws=3)
    actions = torch.randn(7, 5, 2, generator=seeded(1), dtype=dtype)
    loss = generator.loss(actions, condition(7, dtype), generator=seeded(2))
    (x, t), ends = network.calls[0], actions.repeat_interleave(3, 0)
    signal, spread = levels.parts(((1 - t) * 10 - 1).round().long())
    eps = (x.double() - signal * ends) / spread
    target = PREDICTIONS[prediction].target(ends, eps, signal, spread)
    torch.testing.assert_close(loss.double(), (0.5 - target).square().mean().double(), rtol=1e-4, atol=1e-5)
    assert eps.std().item() == pytest.approx(1, abs=0.2) and len(set(t.tolist())) > 5
    assert loss.dtype == dtype and set(((1 - t) * 10).round().int().tolist()) <= set(range(1, 11))


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_sampling_asks_once_a_step_at_its_time(sampler: str) -> None:
    network = Recorder()
    DiffusionPolicy(network, SIZES, NoiseSchedule(count=10), steps=5, sampler=sampler).sample(condition(2))
    torch.testing.assert_close(torch.stack([t for _, t in network.calls]),
                               torch.tensor([0, 0.2, 0.4, 0.6, 0.8])[:, None].expand(5, 2))


def test_only_ddpm_draws_on_the_way_and_only_between_two_steps() -> None:
    for sampler, steps, same in (('ddim', 4, True), ('ddpm', 4, False), ('ddpm', 1, True)):
        generator = DiffusionPolicy(Recorder(), SIZES, NoiseSchedule(count=10), steps=steps, sampler=sampler)
        noise = torch.randn(2, 5, 2, generator=seeded())
        made = [generator.sample(condition(2), noise=noise, generator=seeded(seed)) for seed in (1, 2)]
        assert torch.equal(*made) == same


@schedules
def test_a_prefix_moves_on_its_noisy_path_where_the_network_sees_it(schedule: str) -> None:
    network, levels = Recorder(), NoiseSchedule(schedule, 10)
    generator = DiffusionPolicy(network, SIZES, levels, steps=4)
    noise, prefix = (torch.randn(3, length, 2, generator=seeded(length), dtype=torch.float64) for length in (5, 2))
    made = generator.sample(condition(3, torch.float64), noise=noise, prefix=prefix)
    assert torch.equal(made[:, :2], prefix) and len(network.calls) == 4
    for (x, _), step in zip(network.calls, levels.visit(4)):
        level = levels.levels[step]
        torch.testing.assert_close(x[:, :2], math.sqrt(level) * prefix + math.sqrt(1 - level) * noise[:, :2])


def test_a_prefix_under_ddpm_has_the_right_amount_of_noise() -> None:
    network, levels = Recorder(), NoiseSchedule('cosine', 10)
    generator = DiffusionPolicy(network, Sizes(2, 1, 3), levels, steps=10, sampler='ddpm')
    generator.sample(condition(20_000), prefix=torch.full((20_000, 1, 1), 2.0), generator=seeded())
    for (x, _), step in zip(network.calls, levels.visit(10)):
        assert x[:, 0].mean().item() == pytest.approx(2 * math.sqrt(levels.levels[step]), abs=0.03)
        assert x[:, 0].var().item() == pytest.approx(1 - levels.levels[step], abs=0.03)


def test_clipping_is_by_choice_and_bounds_what_is_made() -> None:
    for clip, largest in ((None, 3.0), (1.5, 1.5)):
        generator = DiffusionPolicy(Recorder(3.0), SIZES, NoiseSchedule(count=10), steps=5, prediction='sample',
                                    clip=clip)
        assert generator.sample(condition(2)).max().item() == pytest.approx(largest)


@pytest.mark.parametrize('settings, message', [
    ({'schedule': 'cosin'}, "schedule: 'cosin'.*cosine"), ({'prediction': 'eps'}, "prediction: 'eps'.*epsilon"),
    ({'sampler': 'ddmp'}, "sampler: 'ddmp'.*ddpm"), ({'steps': 101}, 'steps: 101.*at most 100'),
    ({'training_steps': 1}, 'training_steps: 1'), ({'clip': 0.0}, 'clip: 0.0'), ({'draws': 0}, 'draws: 0'),
    ({'steps': 0}, 'steps: 0')])
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**settings).build(SIZES, NetworkConfig('mlp', 8, 1))


def test_a_sample_can_not_take_more_steps_than_the_training() -> None:
    generator = DiffusionConfig(training_steps=20).build(SIZES, NetworkConfig('mlp', 8, 1))
    with pytest.raises(ConfigError, match='steps: 21.*at most 20'):
        generator.sample(condition(2), steps=21)


def test_two_modes_are_learned_and_little_between_them() -> None:
    torch.manual_seed(0)
    shape = torch.sin(torch.linspace(0.3, 2.8, 4))[:, None]
    signs = (torch.arange(1000) % 10 < 3).float() * 2 - 1
    targets, random = signs[:, None, None] * shape, seeded()
    network, levels = ResidualMLP(4, 1, 1, 32, 2), NoiseSchedule()
    generator = DiffusionPolicy(network, Sizes(4, 1, 1), levels, draws=1)
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(300):
        chosen = targets[torch.randint(1000, (128,), generator=random)]
        optimiser.zero_grad()
        generator.loss(chosen, Condition(torch.zeros(128, 1)), generator=random).backward()
        optimiser.step()
    for sampler, steps in (('ddim', 10), ('ddpm', 50)):
        other = DiffusionPolicy(network, Sizes(4, 1, 1), levels, steps=steps, sampler=sampler)
        with torch.no_grad():
            made = other.sample(Condition(torch.zeros(1000, 1)), generator=random)
        middle = made[:, 1:3].mean((1, 2)) / shape[1:3].mean()
        assert (middle.abs() < 0.5).double().mean() < 0.08
        assert (middle > 0).double().mean().item() == pytest.approx(0.3, abs=0.08)
