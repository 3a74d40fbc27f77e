"""Consistency models that learn from a trained flow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, Student
from flow_vla_core.generators.consistency import ConsistencyFunction, grid_time
from flow_vla_core.generators.losses import find_loss
from flow_vla_core.generators.teaching import adopt, velocity_of
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import SOLVERS, solve
from flow_vla_core.types import Condition

__all__ = ['ConsistencyDistillation', 'ConsistencyDistillationConfig']


@dataclass(frozen=True)
class ConsistencyDistillationConfig(FamilyConfig):
    """Sets up `ConsistencyDistillation`, whose arguments these are.

    Example:
        >>> ConsistencyDistillationConfig(intervals=4).solver
        'midpoint'
    """

    family: str = field(default='consistency_distilled', init=False)
    steps: int = 1
    intervals: int = 8
    solver: str = 'midpoint'
    loss: str = 'squared'

    def build(self, sizes: Sizes, network: NetworkConfig) -> ConsistencyDistillation:
        """Make it with a network of its own."""
        return ConsistencyDistillation(network.build(sizes), sizes, steps=self.steps, intervals=self.intervals,
                                       solver=self.solver, loss=self.loss)


class ConsistencyDistillation(Student):
    """Learns a consistency function of a teacher's paths: neighbours on one of its paths have one end.

    ``f(x_t, t)`` is drawn to ``f(x_s, s)``, which has no gradient, where x_s is one solver step of the teacher's
    velocity from x_t. Consistency models (arXiv 2303.01469, algorithm 2), with the weights as they are as target.

    Args:
        network: of the same kind as a velocity network; begins as the teacher's if that is of the same kind and size.
        sizes: of chunk and condition.
        steps: evaluations for a sample; those after the first begin from fresh noise.
        intervals: of the grid of times, few enough that errors add up little and enough for the solver.
        solver: one of `flow_vla_core.solvers.SOLVERS`, for the teacher's step.
        loss: one of `flow_vla_core.generators.losses.LOSSES`.

    Raises:
        ConfigError: for an unknown solver or loss, or fewer than one step or interval.

    Example:
        >>> from flow_vla_core.generators.flow_matching import FlowMatchingConfig
        >>> sizes, network = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)
        >>> student = ConsistencyDistillationConfig().build(sizes, network)
        >>> student.learn_from(FlowMatchingConfig().build(sizes, network))
        >>> student.sample(Condition(torch.zeros(5, 3)), steps=2).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 1, intervals: int = 8,
                 solver: str = 'midpoint', loss: str = 'squared') -> None:
        super().__init__(sizes, steps)
        if solver not in SOLVERS:
            raise ConfigError(f'generator.solver: {solver!r}; {closest(solver, SOLVERS)}')
        if intervals < 1:
            raise ConfigError(f'generator.intervals: {intervals}; allowed: 1 or more')
        self.function = ConsistencyFunction(network)
        self.intervals, self.solver = intervals, solver
        self._distance = find_loss(loss)

    def _begin_as(self, teacher: Generator) -> None:
        velocity_of(teacher)
        adopt(self.function.network, getattr(teacher, 'network', None))

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t = grid_time(len(actions), self.intervals, generator).to(actions)
        here = noise + t[:, None, None] * (actions - noise)
        with torch.no_grad():
            target = self.function(self._step(here, t, condition), t + 1 / self.intervals, condition)
        return self._distance(self.function(here, t, condition) - target, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return self.function.sample(condition, noise, steps, prefix, generator)

    def _step(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Follow the teacher's velocity over one interval."""
        velocity = velocity_of(self.teacher)
        return solve(lambda x, passed: velocity(x, t + passed, condition), x, 1, self.solver, t1=1 / self.intervals)
