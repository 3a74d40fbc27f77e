"""One evaluation from noise to chunk, learned from a teacher's pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.base import FamilyConfig, Generator, Student, begin_with
from flow_vla_core.generators.losses import find_loss
from flow_vla_core.generators.span import at
from flow_vla_core.generators.teaching import adopt, draw_pairs
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['Distilled', 'DistilledConfig']


@dataclass(frozen=True)
class DistilledConfig(FamilyConfig):
    """Sets up `Distilled`, whose arguments these are.

    Example:
        >>> DistilledConfig(teacher_steps=16).loss
        'squared'
    """

    family: str = field(default='distilled', init=False)
    teacher_steps: int = 8
    loss: str = 'squared'

    def build(self, sizes: Sizes, network: NetworkConfig) -> Distilled:
        """Make it with a network of its own."""
        return Distilled(network.build(sizes), sizes, teacher_steps=self.teacher_steps, loss=self.loss)


class Distilled(Student):
    """Answers ``noise + f(noise, condition)`` in one evaluation, as near as it can to what a teacher makes of it.

    The teacher's pairs are a function from noise to chunk, so plain regression does not average over modes: Knowledge
    distillation of iterative models (arXiv 2101.02388). Steps change nothing.

    Args:
        network: velocity network, called with t = 0; begins as the teacher's if that is of the same kind and size.
        sizes: of chunk and condition.
        teacher_steps: the teacher's effort for a pair.
        loss: one of `flow_vla_core.generators.losses.LOSSES`.

    Raises:
        ConfigError: for an unknown loss, or fewer than one step of the teacher.

    Example:
        >>> from flow_vla_core.generators.flow_matching import FlowMatchingConfig
        >>> sizes, network = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)
        >>> student = DistilledConfig().build(sizes, network)
        >>> student.learn_from(FlowMatchingConfig().build(sizes, network))
        >>> student.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, teacher_steps: int = 8, loss: str = 'squared') -> None:
        super().__init__(sizes)
        if teacher_steps < 1:
            raise ConfigError(f'generator.teacher_steps: {teacher_steps}; allowed: 1 or more')
        self.network, self.teacher_steps = network, teacher_steps
        self._distance = find_loss(loss)

    def _begin_as(self, teacher: Generator) -> None:
        adopt(self.network, getattr(teacher, 'network', None))

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise, made = draw_pairs(self.teacher, condition, self.teacher_steps, generator)
        return self._distance(self._answer(noise, condition) - made, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return begin_with(prefix, self._answer(noise, condition))

    def _answer(self, noise: Tensor, condition: Condition) -> Tensor:
        return noise + self.network(noise, at(0, noise), condition).to(noise.dtype)
