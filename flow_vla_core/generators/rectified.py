"""Rectified flow: a flow whose paths were straightened once, so that few steps suffice."""

from __future__ import annotations

from dataclasses import dataclass, field
import math

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, Guidable, Student
from flow_vla_core.generators.losses import find_loss
from flow_vla_core.generators.realtime import Guide
from flow_vla_core.generators.span import follow
from flow_vla_core.generators.teaching import adopt, draw_pairs
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import SOLVERS
from flow_vla_core.types import Condition

__all__ = ['RectifiedFlow', 'RectifiedFlowConfig', 'u_shaped_time']

STEEPNESS = 4.0


@dataclass(frozen=True)
class RectifiedFlowConfig(FamilyConfig):
    """Sets up `RectifiedFlow`, whose arguments these are.

    Example:
        >>> RectifiedFlowConfig(steps=2, solver='midpoint').teacher_steps
        8
    """

    family: str = field(default='rectified', init=False)
    steps: int = 1
    solver: str = 'euler'
    teacher_steps: int = 8
    loss: str = 'pseudo_huber'

    def build(self, sizes: Sizes, network: NetworkConfig) -> RectifiedFlow:
        """Make it with a network of its own."""
        return RectifiedFlow(network.build(sizes), sizes, steps=self.steps, solver=self.solver,
                             teacher_steps=self.teacher_steps, loss=self.loss)


class RectifiedFlow(Student, Guidable):
    """Learns the velocity of the straight lines from noise to what a teacher makes of that noise (reflow).

    ``x_t = (1 - t) noise + t teacher(noise)``, target ``teacher(noise) - noise``. The teacher's pairs hardly cross, so
    the new paths are nearly straight: Flow straight and fast (arXiv 2209.03003, algorithm 1). Once is enough if t is
    drawn near the ends more often and the loss is pseudo-Huber: Improving the training of rectified flows (2405.20320).

    Args:
        network: velocity network; begins as the teacher's if that is of the same kind and size.
        sizes: of chunk and condition.
        steps: solver steps of a sample.
        solver: one of `flow_vla_core.solvers.SOLVERS`.
        teacher_steps: the teacher's effort for a pair.
        loss: one of `flow_vla_core.generators.losses.LOSSES`.

    Raises:
        ConfigError: for an unknown solver or loss, or fewer than one step.

    Example:
        >>> from flow_vla_core.generators.flow_matching import FlowMatchingConfig
        >>> sizes, network = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)
        >>> student = RectifiedFlowConfig().build(sizes, network)
        >>> student.learn_from(FlowMatchingConfig().build(sizes, network))
        >>> student.loss(torch.zeros(5, 4, 2), Condition(torch.zeros(5, 3))).shape
        torch.Size([])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 1, solver: str = 'euler',
                 teacher_steps: int = 8, loss: str = 'pseudo_huber') -> None:
        super().__init__(sizes, steps)
        if solver not in SOLVERS:
            raise ConfigError(f'generator.solver: {solver!r}; {closest(solver, SOLVERS)}')
        if teacher_steps < 1:
            raise ConfigError(f'generator.teacher_steps: {teacher_steps}; allowed: 1 or more')
        self.network = network
        self.solver, self.teacher_steps = solver, teacher_steps
        self._distance = find_loss(loss)

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, H, A), (B,), condition -> (B, H, A)."""
        return self.network(x, t, condition).to(x.dtype)

    def _begin_as(self, teacher: Generator) -> None:
        adopt(self.network, getattr(teacher, 'network', None))

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise, made = draw_pairs(self.teacher, condition, self.teacher_steps, generator)
        t = u_shaped_time(len(actions), generator).to(actions)
        mixed = noise + t[:, None, None] * (made - noise)
        return self._distance(self.velocity(mixed, t, condition) - (made - noise), mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return follow(self.network, noise, condition, steps, self.solver, prefix)

    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        return follow(self.network, noise, condition, steps, self.solver, guide=guide)


def u_shaped_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t near 0 and 1 more often than between: (count,).

    The density is proportional to ``cosh(4 u)``, u = 2 t - 1 (arXiv 2405.20320, section 4.1), so the distribution
    function in u is ``(1 + sinh(4 u) / sinh(4)) / 2``, which is inverted here.

    Example:
        >>> times = u_shaped_time(1000, torch.Generator().manual_seed(0))
        >>> bool(((times - 0.5).abs() > 0.25).sum() > 800)
        True
    """
    centred = 2 * torch.rand(count, generator=generator) - 1
    return (1 + torch.asinh(centred * math.sinh(STEEPNESS)) / STEEPNESS).clamp(0, 2) / 2
