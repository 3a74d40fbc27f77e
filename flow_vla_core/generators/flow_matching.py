"""Flow matching on the straight path from noise (t = 0) to actions (t = 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import Generator, begin_with, masked_mean
from flow_vla_core.solvers import SOLVERS, solve
from flow_vla_core.types import Condition

__all__ = ['TIMES', 'FlowMatching', 'beta_time', 'uniform_time']


def uniform_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t uniformly from [0, 1): (count,)."""
    return torch.rand(count, generator=generator)


def beta_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t with more mass near the noise, as pi0 does: t = 1 - (0.999 Beta(1.5, 1) + 0.001), (count,).

    Beta(1.5, 1) has the distribution function s^1.5, so s = u^(2/3) for a uniform u. The mean of t is 0.3996.
    """
    return 1 - (0.999 * torch.rand(count, generator=generator) ** (2 / 3) + 0.001)


TIMES: Mapping[str, Callable[..., Tensor]] = {'uniform': uniform_time, 'beta': beta_time}


class FlowMatching(Generator):
    """Learns the velocity of the path ``x_t = (1 - t) noise + t actions``, which is ``actions - noise``.

    The loss is the mean squared error of the velocity (arXiv 2210.02747; with this path arXiv 2209.03003); sampling
    integrates it from noise. Several draws of noise and time for each condition make better use of the encoders, which
    cost most.

    Args:
        network: velocity network.
        horizon: H.
        action_dim: A.
        steps: solver steps of a sample.
        solver: one of `flow_vla_core.solvers.SOLVERS`.
        time: how t is drawn in training, one of `TIMES`.
        draws: draws of noise and time for each condition in training.

    Raises:
        ConfigError: for an unknown solver or distribution, or fewer than one step or draw.
    """

    def __init__(self, network: nn.Module, horizon: int, action_dim: int, *, steps: int = 5, solver: str = 'euler',
                 time: str = 'beta', draws: int = 4) -> None:
        super().__init__()
        for key, value, allowed in (('solver', solver, SOLVERS), ('time', time, TIMES)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        for key, count in (('steps', steps), ('draws', draws)):
            if count < 1:
                raise ConfigError(f'generator.{key}: {count}; allowed: 1 or more')
        self.network = network
        self.horizon, self.action_dim = horizon, action_dim
        self.steps, self.solver, self.draws = steps, solver, draws
        self._draw_time = TIMES[time]

    def loss(self, actions: Tensor, condition: Condition, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the velocity: a scalar."""
        actions, condition = actions.repeat_interleave(self.draws, 0), condition.expand(self.draws)
        mask = None if mask is None else mask.repeat_interleave(self.draws, 0)
        noise = self._noise(len(actions), actions, generator)
        t = self._draw_time(len(actions), generator).to(actions)
        mixed = noise + t[:, None, None] * (actions - noise)
        error = self.network(mixed, t, condition).to(actions.dtype) - (actions - noise)
        return masked_mean(error.square(), mask)

    def sample(self, condition: Condition, *, noise: Tensor | None = None, steps: int | None = None,
               prefix: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Integrate from noise: (B, H, A). A prefix moves on its own straight path, where the network sees it."""
        vector = condition.vector
        start = self._noise(len(vector), vector, generator) if noise is None else noise
        known = None if prefix is None else prefix.to(start) - start[:, :prefix.shape[1]]

        def velocity(x: Tensor, t: float) -> Tensor:
            times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            return begin_with(known, self.network(x, times, condition).to(x.dtype))

        made = solve(velocity, start, self.steps if steps is None else steps, self.solver)
        return begin_with(prefix, made)

    def _noise(self, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.randn(count, self.horizon, self.action_dim, generator=generator).to(like)
