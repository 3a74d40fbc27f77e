"""Flow matching on the straight path from noise (t = 0) to actions (t = 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, begin_with, masked_mean, repeat
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import SOLVERS, solve
from flow_vla_core.types import Condition

__all__ = ['TIMES', 'FlowMatching', 'FlowMatchingConfig', 'beta_time', 'uniform_time']


def uniform_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t uniformly from [0, 1): (count,)."""
    return torch.rand(count, generator=generator)


def beta_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t with more mass near the noise, as pi0 does: t = 1 - (0.999 Beta(1.5, 1) + 0.001), (count,).

    Beta(1.5, 1) has the distribution function s^1.5, so s = u^(2/3) for a uniform u. The mean of t is 0.3996.
    """
    return 1 - (0.999 * torch.rand(count, generator=generator) ** (2 / 3) + 0.001)


TIMES: Mapping[str, Callable[..., Tensor]] = {'uniform': uniform_time, 'beta': beta_time}


@dataclass(frozen=True)
class FlowMatchingConfig(FamilyConfig):
    """Sets up `FlowMatching`, whose arguments these are."""

    family: str = field(default='flow_matching', init=False)
    steps: int = 5
    solver: str = 'euler'
    time: str = 'beta'
    draws: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> FlowMatching:
        """Make it with a network of its own."""
        return FlowMatching(network.build(sizes), sizes, steps=self.steps, solver=self.solver, time=self.time,
                            draws=self.draws)


class FlowMatching(Generator):
    """Learns the velocity of the path ``x_t = (1 - t) noise + t actions``, which is ``actions - noise``.

    The loss is the mean squared error of the velocity (arXiv 2210.02747; with this path arXiv 2209.03003); sampling
    integrates it from noise. Several draws of noise and time for each condition make better use of the encoders, which
    cost most.

    Args:
        network: velocity network.
        sizes: of chunk and condition.
        steps: solver steps of a sample.
        solver: one of `flow_vla_core.solvers.SOLVERS`.
        time: how t is drawn in training, one of `TIMES`.
        draws: draws of noise and time for each condition in training.

    Raises:
        ConfigError: for an unknown solver or distribution, or fewer than one step or draw.
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 5, solver: str = 'euler',
                 time: str = 'beta', draws: int = 4) -> None:
        super().__init__(sizes, steps)
        for key, value, allowed in (('solver', solver, SOLVERS), ('time', time, TIMES)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        if draws < 1:
            raise ConfigError(f'generator.draws: {draws}; allowed: 1 or more')
        self.network = network
        self.solver, self.draws = solver, draws
        self._draw_time = TIMES[time]

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        actions, condition, mask = repeat(self.draws, actions, condition, mask)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = self._draw_time(len(actions), generator).to(actions)
        mixed = noise + t[:, None, None] * (actions - noise)
        error = self.network(mixed, t, condition).to(actions.dtype) - (actions - noise)
        return masked_mean(error.square(), mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        """Integrate from noise. A prefix moves on its own straight path, where the network sees it."""
        known = None if prefix is None else prefix - noise[:, :prefix.shape[1]]

        def velocity(x: Tensor, t: float) -> Tensor:
            times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            return begin_with(known, self.network(x, times, condition).to(x.dtype))

        return begin_with(prefix, solve(velocity, noise, steps, self.solver))
