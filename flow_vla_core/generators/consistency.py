"""Consistency models: every point of a path is taken to the path's end at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.base import FamilyConfig, Generator, begin_with
from flow_vla_core.generators.losses import find_loss
from flow_vla_core.generators.span import at
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['ConsistencyFunction', 'ConsistencyTraining', 'ConsistencyTrainingConfig', 'grid_time']


class ConsistencyFunction(nn.Module):
    """Takes a point of a path to the path's end: ``f(x, t) = x + (1 - t) F(x, t)``, so that ``f(x, 1) = x``.

    Consistency models (arXiv 2303.01469, equation 5), on the straight path of flow matching, where t = 1 is the end.

    Args:
        network: F, of the same kind as a velocity network.

    Example:
        >>> sizes, end = Sizes(4, 2, 3), torch.ones(5)
        >>> function = ConsistencyFunction(NetworkConfig('mlp', 8, 1).build(sizes))
        >>> x = torch.randn(5, 4, 2)
        >>> torch.equal(function(x, end, Condition(torch.zeros(5, 3))), x)
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, H, A), (B,), condition -> (B, H, A)."""
        return x + (1 - t[:, None, None]) * self.network(x, t, condition).to(x.dtype)

    def sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
               generator: torch.Generator | None) -> Tensor:
        """Make chunks (B, H, A): go to the end, back to ``t = i / steps`` with fresh noise, and to the end again.

        Algorithm 1 of the paper. With a prefix, what is gone back to holds it.
        """
        made = begin_with(prefix, self(noise, at(0, noise), condition))
        for index in range(1, steps):
            fresh = torch.randn(noise.shape, generator=generator).to(noise)
            t = index / steps
            made = begin_with(prefix, self((1 - t) * fresh + t * made, at(t, noise), condition))
        return made


@dataclass(frozen=True)
class ConsistencyTrainingConfig(FamilyConfig):
    """Sets up `ConsistencyTraining`, whose arguments these are.

    Example:
        >>> ConsistencyTrainingConfig(first=2, last=8).last
        8
    """

    family: str = field(default='consistency', init=False)
    steps: int = 1
    first: int = 10
    last: int = 1280
    every: int = 1000
    loss: str = 'pseudo_huber'

    def build(self, sizes: Sizes, network: NetworkConfig) -> ConsistencyTraining:
        """Make it with a network of its own."""
        return ConsistencyTraining(network.build(sizes), sizes, steps=self.steps, first=self.first, last=self.last,
                                   every=self.every, loss=self.loss)

    @classmethod
    def dummy(cls, sizes: Sizes) -> ConsistencyTrainingConfig:
        """Take one interval, for which the loss is a plain regression and falls steadily."""
        return cls(first=1, last=1)


class ConsistencyTraining(Generator):
    """Learns a consistency function from data alone: neighbours on a path have one end.

    ``f(x_t, t)`` is drawn to ``f(x_s, s)``, which has no gradient; both points mix the same noise and actions, and s
    follows t on a grid of N intervals. N doubles as training goes on. Improved consistency training (arXiv 2310.14189),
    here on the straight path of flow matching.

    Args:
        network: of the same kind as a velocity network.
        sizes: of chunk and condition.
        steps: evaluations for a sample; those after the first begin from fresh noise.
        first: intervals N in the beginning.
        last: the most intervals.
        every: optimiser steps after which N doubles.
        loss: one of `flow_vla_core.generators.losses.LOSSES`.

    Raises:
        ConfigError: for an unknown loss, fewer than one step or interval, or more in the beginning than at the end.

    Example:
        >>> generator = ConsistencyTrainingConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.intervals
        10
        >>> generator.loss(torch.zeros(5, 4, 2), Condition(torch.zeros(5, 3))).shape
        torch.Size([])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 1, first: int = 10, last: int = 1280,
                 every: int = 1000, loss: str = 'pseudo_huber') -> None:
        super().__init__(sizes, steps)
        if not 1 <= first <= last:
            raise ConfigError(f'generator.first, last: {first}, {last}; allowed: 1 or more, in this order')
        if every < 1:
            raise ConfigError(f'generator.every: {every}; allowed: 1 or more')
        self.function = ConsistencyFunction(network)
        self.first, self.last, self.every = first, last, every
        self._distance = find_loss(loss)
        self.register_buffer('updates', torch.zeros((), dtype=torch.long))

    @property
    def intervals(self) -> int:
        """Intervals N of the grid at this point of the training."""
        return min(self.first * 2 ** min(int(self.updates) // self.every, 30), self.last)

    def after_step(self) -> None:
        """Count the step."""
        self.updates += 1

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = grid_time(len(actions), self.intervals, generator).to(actions)
        here, there = (noise + time[:, None, None] * (actions - noise) for time in (t, t + 1 / self.intervals))
        with torch.no_grad():
            target = self.function(there, t + 1 / self.intervals, condition)
        return self.intervals * self._distance(self.function(here, t, condition) - target, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return self.function.sample(condition, noise, steps, prefix, generator)


def grid_time(count: int, intervals: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the left ends of intervals of an even grid over [0, 1]: (count,).

    Example:
        >>> grid_time(3, 1)
        tensor([0., 0., 0.])
    """
    return torch.randint(intervals, (count,), generator=generator) / intervals
