"""Diffusion policies: noise is added in discrete steps, and a network learns to take it away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import math

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Guidable, begin_with, repeat, squared_error
from flow_vla_core.generators.prepared import PreparedField
from flow_vla_core.generators.realtime import Guide, pull
from flow_vla_core.generators.schedules import NoiseSchedule
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import Field
from flow_vla_core.types import Condition

__all__ = ['PREDICTIONS', 'SAMPLERS', 'DiffusionConfig', 'DiffusionPolicy', 'Prediction', 'ddim_step', 'ddpm_step']

Sampler = Callable[[Tensor, Tensor, float, float, Callable[[], Tensor]], Tensor]


@dataclass(frozen=True)
class Prediction:
    """Says what a network predicts of ``x = signal actions + noise eps``.

    Args:
        target: (actions, eps, signal, noise) -> what it is to answer.
        clean: (answer, x, signal, noise) -> its estimate of the actions.

    Example:
        >>> PREDICTIONS['epsilon'].clean(torch.tensor(2.0), torch.tensor(1.9), 0.8, 0.6)
        tensor(0.8750)
    """

    target: Callable[..., Tensor]
    clean: Callable[..., Tensor]


PREDICTIONS: Mapping[str, Prediction] = {
    'epsilon': Prediction(lambda actions, eps, signal, noise: eps,
                          lambda answer, x, signal, noise: (x - noise * answer) / signal),
    'sample': Prediction(lambda actions, eps, signal, noise: actions,
                         lambda answer, x, signal, noise: answer),
    'velocity': Prediction(lambda actions, eps, signal, noise: signal * eps - noise * actions,
                           lambda answer, x, signal, noise: signal * x - noise * answer),
}


def ddim_step(x: Tensor, clean: Tensor, now: float, then: float, draw: Callable[[], Tensor]) -> Tensor:
    """Move x on the straight mixture of the estimated actions and the noise that is left: DDIM, arXiv 2010.02502.

    ``sqrt(then) clean + sqrt(1 - then) eps`` with ``eps = (x - sqrt(now) clean) / sqrt(1 - now)``; equation 12 without
    new noise. The noise comes from the estimate as it is given, so the two agree even where it was clipped.

    Args:
        x: (B, H, A) at level ``now``.
        clean: (B, H, A) estimate of the actions.
        now: share of the signal's variance in x, below 1.
        then: the same after the step, above ``now``; 1 for actions without noise.
        draw: makes new noise (B, H, A), not asked here.

    Example:
        >>> ddim_step(torch.ones(1), torch.zeros(1), 0.0, 0.75, lambda: torch.zeros(1))
        tensor([0.5000])
    """
    left = (x - math.sqrt(now) * clean) / math.sqrt(1 - now)
    return math.sqrt(then) * clean + math.sqrt(1 - then) * left


def ddpm_step(x: Tensor, clean: Tensor, now: float, then: float, draw: Callable[[], Tensor]) -> Tensor:
    """Draw from the posterior of the less noisy chunk, given x and the estimated actions: DDPM, arXiv 2006.11239.

    Equations 6 and 7 with the smaller of the two variances, ``(1 - then) / (1 - now) (1 - now / then)``. No noise is
    added in the last step, where ``then`` is 1.

    Args:
        x: (B, H, A) at level ``now``.
        clean: (B, H, A) estimate of the actions.
        now: share of the signal's variance in x, below 1.
        then: the same after the step, above ``now``; 1 for actions without noise.
        draw: makes new noise (B, H, A).

    Example:
        >>> ddpm_step(torch.ones(1), torch.full((1,), 0.3), 0.6, 1.0, lambda: torch.ones(1))
        tensor([0.3000])
    """
    kept = now / then
    mean = (math.sqrt(then) * (1 - kept) * clean + math.sqrt(kept) * (1 - then) * x) / (1 - now)
    return mean if then == 1 else mean + math.sqrt((1 - then) / (1 - now) * (1 - kept)) * draw()


SAMPLERS: Mapping[str, Sampler] = {'ddim': ddim_step, 'ddpm': ddpm_step}


@dataclass(frozen=True)
class DiffusionConfig(FamilyConfig):
    """Sets up `DiffusionPolicy`, whose arguments these are.

    Example:
        >>> DiffusionConfig(sampler='ddpm', steps=100).family
        'diffusion'
    """

    family: str = field(default='diffusion', init=False)
    steps: int = 10
    training_steps: int = 100
    schedule: str = 'cosine'
    prediction: str = 'velocity'
    sampler: str = 'ddim'
    clip: float | None = None
    draws: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> DiffusionPolicy:
        """Make it with a network of its own."""
        return DiffusionPolicy(network.build(sizes), sizes, NoiseSchedule(self.schedule, self.training_steps),
                               steps=self.steps, prediction=self.prediction, sampler=self.sampler, clip=self.clip,
                               draws=self.draws)

    @classmethod
    def dummy(cls, sizes: Sizes) -> DiffusionConfig:
        """Take few steps."""
        return cls(steps=3, training_steps=10)


class DiffusionPolicy(Guidable):
    """Learns to take the noise out of ``x_k = sqrt(a_k) actions + sqrt(1 - a_k) eps``, and does so step by step.

    Diffusion Policy, Chi et al., arXiv 2303.04137: the loss is the mean squared error of what the network predicts at
    a random step k; sampling begins at pure noise. The first actions of a chunk can be given: they follow their own
    noisy path, on which the network sees them (inpainting).

    Args:
        network: called with t = 1 - (k + 1) / K; see `NoiseSchedule`.
        sizes: of chunk and condition.
        schedule: levels of noise.
        steps: of a sample, at most those of the schedule.
        prediction: what the network predicts, one of `PREDICTIONS`. The estimate of the actions divides an error of
            ``epsilon`` by the share of the signal, which nearly vanishes at the noise, so that one needs clipping.
        sampler: one of `SAMPLERS`; `ddpm_step` draws noise on the way and takes many steps.
        clip: bound of the estimated actions, for data within it; None for none.
        draws: draws of noise and step for each condition in training.

    Raises:
        ConfigError: for an unknown name, a bound that is not above 0, fewer than one step or draw, or more steps than
            the schedule has.

    Example:
        >>> generator = DiffusionConfig(steps=2).build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, schedule: NoiseSchedule, *, steps: int = 10,
                 prediction: str = 'velocity', sampler: str = 'ddim', clip: float | None = None,
                 draws: int = 4) -> None:
        super().__init__(sizes, steps)
        for key, value, allowed in (('prediction', prediction, PREDICTIONS), ('sampler', sampler, SAMPLERS)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        if clip is not None and not clip > 0:
            raise ConfigError(f'generator.clip: {clip}; allowed: above 0, or none')
        if draws < 1:
            raise ConfigError(f'generator.draws: {draws}; allowed: 1 or more')
        schedule.visit(steps)
        self.network, self.schedule = network, schedule
        self.prediction, self.sampler, self.clip, self.draws = prediction, sampler, clip, draws

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        actions, condition, mask = repeat(self.draws, actions, condition, mask)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        step = torch.randint(len(self.schedule), (len(actions),), generator=generator).to(actions.device)
        signal, spread = (part.to(actions.dtype) for part in self.schedule.parts(step))
        time = self.schedule.time(step.to(actions.dtype))
        answer = self.network(signal * actions + spread * noise, time, condition).to(actions.dtype)
        target = PREDICTIONS[self.prediction].target(actions, noise, signal, spread)
        return squared_error(answer, target, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        """Take the noise out step by step. As estimates of its own actions a prefix moves on its noisy path."""
        answers = self._answers(condition, noise, steps)

        def estimate(x: Tensor, step: int) -> Tensor:
            return begin_with(prefix, self._estimate(x, step, answers))

        first = self.schedule.levels[self.schedule.visit(steps)[0]]
        x = noise if prefix is None else begin_with(_mix(prefix, noise, first), noise)
        return begin_with(prefix, self._denoise(estimate, x, steps, generator))

    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        """Correct each estimate of the actions: ``A + min(beta, 1 / signal) J^T W (Y - A)`` (arXiv 2310.04432)."""
        answers = self._answers(condition, noise, steps)

        def estimate(x: Tensor, step: int) -> Tensor:
            clean, correction = pull(lambda x: (self._estimate(x, step, answers),) * 2, x, guide)
            return clean + min(guide.beta, 1 / math.sqrt(self.schedule.levels[step])) * correction

        return self._denoise(estimate, noise, steps, generator)

    def _denoise(self, estimate: Callable[[Tensor, int], Tensor], x: Tensor, steps: int,
                 generator: torch.Generator | None) -> Tensor:
        """Take the noise out of x step by step, after estimates of the actions."""
        visited = self.schedule.visit(steps)
        for step, following in zip(visited, (*visited[1:], None)):
            then = 1.0 if following is None else self.schedule.levels[following]
            x = SAMPLERS[self.sampler](x, estimate(x, step), self.schedule.levels[step], then,
                                       lambda like=x: torch.randn(like.shape, generator=generator).to(like))
        return x

    def _answers(self, condition: Condition, noise: Tensor, steps: int) -> Field:
        """Return what the network answers to x at a time, prepared for those of a sample."""
        times = [self.schedule.time(step) for step in self.schedule.visit(steps)]
        return PreparedField(self.network, condition).prepare(times, noise)

    def _estimate(self, x: Tensor, step: int, answers: Field) -> Tensor:
        """Return the actions (B, H, A) that x at step k comes from, as far as the network can tell."""
        level = self.schedule.levels[step]
        answer = answers(x, self.schedule.time(step))
        clean = PREDICTIONS[self.prediction].clean(answer, x, math.sqrt(level), math.sqrt(1 - level))
        return clean if self.clip is None else clean.clamp(-self.clip, self.clip)


def _mix(prefix: Tensor, noise: Tensor, level: float) -> Tensor:
    return math.sqrt(level) * prefix + math.sqrt(1 - level) * noise[:, :prefix.shape[1]]
