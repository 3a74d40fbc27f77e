"""A small correction of another generator's chunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flow_vla_core.generators.base import Generator, Guidable, begin_with, masked_mean
from flow_vla_core.generators.realtime import Guide
from flow_vla_core.types import Condition

__all__ = ['Refined']


class Refined(Guidable):
    """Adds to the chunks of a generator what it was, on average, off by: ``x + r(x, condition)``.

    The residual network is trained on the generator's own samples; no gradient reaches the generator through them.

    Args:
        base: makes the chunks.
        network: of the same kind as a velocity network, called with t = 1.
        steps: solver steps of the samples that it is trained on.

    Example:
        >>> from flow_vla_core.generators import RegressionConfig
        >>> from flow_vla_core.networks import NetworkConfig, Sizes
        >>> sizes, network = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)
        >>> generator = Refined(RegressionConfig().build(sizes, network), network.build(sizes))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, base: Generator, network: nn.Module, steps: int = 2) -> None:
        super().__init__(base.sizes, base.steps)
        self.base, self.network, self.training_steps = base, network, steps

    @property
    def is_fixed(self) -> bool:
        """Whether the base is."""
        return self.base.is_fixed

    @property
    def guidable(self) -> bool:
        """Whether the base is."""
        return self.base.guidable

    def after_step(self) -> None:
        """Tell the base."""
        self.base.after_step()

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        """Add the mean squared error that is left after the correction to the base's loss."""
        with torch.no_grad():
            made = self.base.sample(condition, steps=self.training_steps, generator=generator)
        left = masked_mean((self._correct(made, condition) - actions).square(), mask)
        return self.base.loss(actions, condition, mask, generator) + left

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        made = self.base.sample(condition, noise=noise, steps=steps, prefix=prefix, generator=generator)
        return begin_with(prefix, self._correct(made, condition))

    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        made = self.base.sample(condition, noise=noise, steps=steps, guide=guide, generator=generator)
        return self._correct(made, condition)

    def _correct(self, made: Tensor, condition: Condition) -> Tensor:
        end = torch.ones(len(made), dtype=made.dtype, device=made.device)
        return made + self.network(made, end, condition).to(made.dtype)
