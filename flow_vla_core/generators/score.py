"""Score models of the variance-preserving SDE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flow_vla_core.divergence import draw_probe
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import (
    FamilyConfig,
    Guidable,
    LikelihoodGenerator,
    begin_with,
    masked_mean,
    repeat,
)
from flow_vla_core.generators.change_of_variables import ode_log_prob
from flow_vla_core.generators.paths import VariancePreservingPath
from flow_vla_core.generators.prepared import PreparedField
from flow_vla_core.generators.realtime import Guide, steer
from flow_vla_core.generators.schedules import VariancePreserving
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import ADAPTIVE, METHODS, Field, solve, visited
from flow_vla_core.types import Condition

__all__ = ['OBJECTIVES', 'SAMPLERS', 'WEIGHTINGS', 'ScoreConfig', 'ScoreModel']

OBJECTIVES, SAMPLERS = ('denoising', 'sliced'), ('ode', 'sde')
LATEST = 0.999  # that training comes to the data, where the score has no bound

WEIGHTINGS: Mapping[str, Callable[[VariancePreserving, Tensor], Tensor]] = {
    'variance': lambda schedule, t: schedule.noise(t).square(),
    'likelihood': lambda schedule, t: schedule.rate(t),
    'velocity': lambda schedule, t: (schedule.noise(t) / schedule.signal(t)).square(),
}


@dataclass(frozen=True)
class ScoreConfig(FamilyConfig):
    """Sets up `ScoreModel`, whose arguments these are.

    Example:
        >>> ScoreConfig(sampler='sde', steps=100).objective
        'denoising'
    """

    family: str = field(default='score', init=False)
    steps: int = 5
    sampler: str = 'ode'
    solver: str = 'midpoint'
    objective: str = 'denoising'
    weighting: str = 'velocity'
    draws: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> ScoreModel:
        """Make it with a network of its own."""
        return ScoreModel(network.build(sizes), sizes, steps=self.steps, sampler=self.sampler, solver=self.solver,
                          objective=self.objective, weighting=self.weighting, draws=self.draws)

    @classmethod
    def dummy(cls, sizes: Sizes) -> ScoreConfig:
        """Take few steps."""
        return cls(steps=2)


class ScoreModel(LikelihoodGenerator, Guidable):
    """Learns the gradient of the log-density of noisy chunks, with which noise can be turned into chunks.

    Song et al., arXiv 2011.13456, on the path of `VariancePreserving`. The score is
    ``s(x, t) = -x - signal / noise v(x, t)`` with the network's v: where only noise is left it is exact before any
    training, and ``v = signal eps - noise actions`` stays bounded where the score does not.

    Denoising score matching minimises ``w(t) |s + eps / noise|^2``; sliced score matching (arXiv 1905.07088, with
    reduced variance) minimises ``noise^2 (|s|^2 / 2 + e' ds/dx e)`` with random signs e, without eps but noisier.

    Samples follow the probability-flow ODE, which gives the log-densities too, or the reverse SDE. The ODE is solved
    in equal steps of the angle whose sine and cosine are signal and noise; there it reads ``dx/dangle = -v``.

    Args:
        network: predicts v.
        sizes: of chunk and condition.
        steps: of a sample.
        sampler: ``ode``, or ``sde`` (Euler-Maruyama, no noise in the last step), which takes ten times the steps.
        solver: of the ODE, one of `flow_vla_core.solvers.METHODS`.
        objective: ``denoising`` or ``sliced``.
        weighting: w of denoising, one of `WEIGHTINGS`: the noise's ``variance``; the rate of the SDE, with which the
            loss bounds the ``likelihood`` (arXiv 2101.09258); or the weight that makes it the mean squared error of v,
            the ``velocity``.
        draws: draws of noise and time for each condition in training.

    Raises:
        ConfigError: for an unknown name, or fewer than one step or draw.

    Example:
        >>> generator = ScoreConfig(steps=2).build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 5, sampler: str = 'ode',
                 solver: str = 'midpoint', objective: str = 'denoising', weighting: str = 'velocity',
                 draws: int = 4) -> None:
        super().__init__(sizes, steps)
        for key, value, allowed in (('sampler', sampler, SAMPLERS), ('solver', solver, METHODS),
                                    ('objective', objective, OBJECTIVES), ('weighting', weighting, WEIGHTINGS)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        if draws < 1:
            raise ConfigError(f'generator.draws: {draws}; allowed: 1 or more')
        self.network, self.schedule = network, VariancePreserving()
        self.sampler, self.solver, self.objective = sampler, solver, objective
        self.weighting, self.draws = weighting, draws

    def score(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the gradient of the log-density at x (B, H, A) and t (B,), below 1: (B, H, A)."""
        t = t.clamp(max=LATEST)
        ratio = (self.schedule.signal(t) / self.schedule.noise(t))[:, None, None]
        return -x - ratio * self.network(x, t, condition).to(x.dtype)

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        actions, condition, mask = repeat(self.draws, actions, condition, mask)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = LATEST * torch.rand(len(actions), generator=generator).to(actions)
        signal, spread = self.schedule.signal(t)[:, None, None], self.schedule.noise(t)[:, None, None]
        x = signal * actions + spread * noise
        if self.objective == 'sliced':
            return masked_mean(spread.square() * self._slice(x, t, condition, mask, generator), mask)
        weight = WEIGHTINGS[self.weighting](self.schedule, t)[:, None, None]
        return masked_mean(weight * (self.score(x, t, condition) + noise / spread).square(), mask)

    def _slice(self, x: Tensor, t: Tensor, condition: Condition, mask: Tensor | None,
               generator: torch.Generator | None) -> Tensor:
        """Return ``s^2 / 2 + e (ds/dx e)`` for each number (B, H, A)."""
        probe = draw_probe('rademacher', x, generator)
        probe = probe if mask is None else probe * mask[..., None]
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
            score, change = torch.func.jvp(lambda x: self.score(x, t, condition), (x,), (probe,))
        return score.square() / 2 + probe * change

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        if self.sampler == 'sde':
            return begin_with(prefix, self._walk(condition, noise, steps, prefix, generator))
        return begin_with(prefix, solve(self._flow(condition, noise, steps, prefix), noise, steps, self.solver))

    @property
    def is_fixed(self) -> bool:
        """Whether the solver's steps are."""
        return self.solver not in ADAPTIVE

    @property
    def guidable(self) -> bool:
        """Whether samples follow the ODE."""
        return self.sampler == 'ode'

    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        path = VariancePreservingPath(self.schedule.angle(0.0))
        return solve(steer(self._flow(condition, noise, steps), guide, path), noise, steps, self.solver)

    def _flow(self, condition: Condition, noise: Tensor, steps: int | None = None,
              prefix: Tensor | None = None) -> Field:
        """Make the field of the probability flow; its time goes evenly over the angles, from noise 0 to data 1.

        What depends on times and condition alone is prepared for a sample of so many steps, if they are given.
        """
        start = self.schedule.angle(0.0)
        span = math.pi / 2 - start
        places = () if steps is None else visited(steps, self.solver)
        angles = [start + span * place for place in places]
        answers = PreparedField(self.network, condition).prepare([*map(self.schedule.time, angles)], noise)

        def field(x: Tensor, place: float) -> Tensor:
            angle = start + span * place
            x = x if prefix is None else begin_with(_mix(prefix, noise, math.sin(angle), math.cos(angle)), x)
            return -span * answers(x, self.schedule.time(angle))

        return field

    def _walk(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        """Solve the reverse SDE ``dx = (b/2 x + b s) dt + sqrt(b) dw`` in equal steps of t."""
        x = noise
        for index in range(steps):
            t = torch.full((len(x),), index / steps, dtype=x.dtype, device=x.device)
            rate, signal, spread = (part[:, None, None] for part in (
                self.schedule.rate(t), self.schedule.signal(t), self.schedule.noise(t)))
            x = x if prefix is None else begin_with(_mix(prefix, noise, signal, spread), x)
            x = x + rate / steps * (x / 2 + self.score(x, t, condition))
            if index < steps - 1:
                x = x + (rate / steps).sqrt() * torch.randn(x.shape, generator=generator).to(x)
        return x

    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        return ode_log_prob(self._flow(condition, actions), actions)


def _mix(prefix: Tensor, noise: Tensor, signal: Tensor | float, spread: Tensor | float) -> Tensor:
    return signal * prefix + spread * noise[:, :prefix.shape[1]]
