"""Shortcut models: two leaps teach the one that is twice as long."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.base import FamilyConfig, Generator, squared_error
from flow_vla_core.generators.span import SpanNetwork, leap
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['Shortcut', 'ShortcutConfig']


@dataclass(frozen=True)
class ShortcutConfig(FamilyConfig):
    """Sets up `Shortcut`, whose arguments these are.

    Example:
        >>> ShortcutConfig(steps=2, halvings=3).share
        0.5
    """

    family: str = field(default='shortcut', init=False)
    steps: int = 1
    share: float = 0.5
    halvings: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> Shortcut:
        """Make it with a network of its own."""
        return Shortcut(SpanNetwork(sizes, network), sizes, steps=self.steps, share=self.share, halvings=self.halvings)


class Shortcut(Generator):
    """Learns velocities from data and, from its own shorter leaps, average velocities over spans of 1, 1/2, 1/4, ...

    ``u(x, t, 2 d) = (u(x, t, d) + u(x', t + d, d)) / 2`` with ``x' = x + d u(x, t, d)``; no gradient flows through the
    right side. The shortest leaps follow the velocity, which is the span 0. One step diffusion via shortcut models
    (arXiv 2410.12557, equations 4 and 5). Its targets come from the weights as they are, not from an average of them.

    Args:
        network: average velocity.
        sizes: of chunk and condition.
        steps: leaps of a sample; powers of 2 are what it learns; from ``2 ** halvings`` on it is Euler's method.
        share: of the examples that learn from two leaps.
        halvings: how often the whole is halved down to the shortest leap, at least 1.

    Raises:
        ConfigError: for a share outside [0, 1], or fewer than one halving or step.

    Example:
        >>> generator = ShortcutConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3)), steps=2).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: SpanNetwork, sizes: Sizes, *, steps: int = 1, share: float = 0.5,
                 halvings: int = 4) -> None:
        super().__init__(sizes, steps)
        if not 0 <= share <= 1:
            raise ConfigError(f'generator.share: {share}; allowed: 0 to 1')
        if halvings < 1:
            raise ConfigError(f'generator.halvings: {halvings}; allowed: 1 or more')
        self.average, self.share, self.halvings = network, share, halvings

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t, span = (values.to(actions) for values in self._draw_spans(len(actions), generator))
        target = actions - noise
        mixed = noise + t[:, None, None] * target
        leaps = span > 0
        target[leaps] = self._two_leaps(mixed[leaps], t[leaps], span[leaps] / 2, condition[leaps])
        return squared_error(self.average(mixed, t, span, condition), target, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return leap(self._leap, noise, condition, steps, prefix)

    def _leap(self, x: Tensor, t: Tensor, span: Tensor, condition: Condition) -> Tensor:
        """Return the average velocity, which for the shortest leaps is the velocity."""
        return self.average(x, t, torch.where(span > 1.5 / 2 ** self.halvings, span, 0), condition)

    @torch.no_grad()
    def _two_leaps(self, x: Tensor, t: Tensor, span: Tensor, condition: Condition) -> Tensor:
        """Return the average velocity of two leaps of this span."""
        first = self._leap(x, t, span, condition)
        second = self._leap(x + span[:, None, None] * first, t + span, span, condition)
        return (first + second) / 2

    def _draw_spans(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw begin and length of spans: a multiple of the length; or anywhere, and 0."""
        chosen, level, place = torch.rand(3, count, generator=generator)
        pieces = 2 ** (level * self.halvings).floor()
        begin = (place * pieces).floor() / pieces
        leaps = chosen < self.share
        return torch.where(leaps, begin, place), torch.where(leaps, 1 / pieces, 0)
