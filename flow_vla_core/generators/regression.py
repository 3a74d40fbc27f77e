"""Direct regression, the baseline that averages over what the expert might do."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, begin_with, masked_mean
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['DISTANCES', 'Regression', 'RegressionConfig']

DISTANCES = {'l1': torch.abs, 'l2': torch.square}


@dataclass(frozen=True)
class RegressionConfig(FamilyConfig):
    """Sets up `Regression`, whose arguments these are.

    Example:
        >>> RegressionConfig('l2').family
        'regression'
    """

    family: str = field(default='regression', init=False)
    distance: str = 'l1'

    def build(self, sizes: Sizes, network: NetworkConfig) -> Regression:
        """Make it with a network of its own."""
        return Regression(network.build(sizes), sizes, self.distance)


class Regression(Generator):
    """Answers each condition with one chunk: ``f(condition)``; noise and steps change nothing.

    The loss is the mean absolute (as in ACT, arXiv 2304.13705) or squared error. Where the expert does one of two
    things, it learns their median or mean, which may be neither.

    Args:
        network: of the same kind as a velocity network; called with a learned chunk and t = 1.
        sizes: of chunk and condition.
        distance: ``l1`` or ``l2``.

    Raises:
        ConfigError: for another distance.

    Example:
        >>> config = RegressionConfig('l2')
        >>> generator = config.build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, distance: str = 'l1') -> None:
        super().__init__(sizes)
        if distance not in DISTANCES:
            raise ConfigError(f'generator.distance: {distance!r}; {closest(distance, DISTANCES)}')
        self.network, self.distance = network, distance
        self.query = nn.Parameter(torch.randn(sizes.horizon, sizes.action_dim))

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        return masked_mean(DISTANCES[self.distance](self._answer(condition) - actions), mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return begin_with(prefix, self._answer(condition))

    def _answer(self, condition: Condition) -> Tensor:
        end = torch.ones(len(condition), dtype=self.query.dtype, device=self.query.device)
        return self.network(self.query.expand(len(condition), -1, -1), end, condition).to(self.query.dtype)
