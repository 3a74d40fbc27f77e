"""A generator for actions of several kinds: numbers, rotations and classes, with one density."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.flows.base import log_normal
from flow_vla_core.generators.base import FamilyConfig, LikelihoodGenerator, begin_with, masked_mean, repeat
from flow_vla_core.generators.classes import ClassSequence, NoClasses
from flow_vla_core.generators.layout import Layout, PartConfig
from flow_vla_core.generators.manifold import Field, Point, integrate, trace_back, turn_of_columns
from flow_vla_core.generators.times import TIMES
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import SOLVERS
from flow_vla_core.types import Condition

__all__ = ['MultimodalFlow', 'MultimodalFlowConfig']


@dataclass(frozen=True)
class MultimodalFlowConfig(FamilyConfig):
    """Sets up `MultimodalFlow`, whose arguments these are.

    Example:
        >>> MultimodalFlowConfig((PartConfig('rotation', 1), PartConfig('continuous', 1))).kept(7)
        (0, 1, 2, 3, 4, 5)
    """

    family: str = field(default='multimodal', init=False)
    parts: tuple[PartConfig, ...] = ()
    steps: int = 5
    solver: str = 'midpoint'
    time: str = 'uniform'
    draws: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> MultimodalFlow:
        """Make it; the network sees rotations as 6 numbers and classes one-hot."""
        layout = Layout(self.parts, sizes.action_dim)
        width = layout.vectors + 6 * layout.rotations + sum(layout.counts)
        classes = ClassSequence(sizes.horizon, sizes.condition_dim, layout.counts, network.width) \
            if layout.counts else NoClasses()
        return MultimodalFlow(network.build(replace(sizes, action_dim=width)), classes, layout, sizes,
                              steps=self.steps, solver=self.solver, time=self.time, draws=self.draws)

    def kept(self, action_dim: int) -> tuple[int, ...]:
        """Return the numbers of rotations, which no normalisation may bend."""
        return Layout(self.parts, action_dim).places('rotation')

    @classmethod
    def dummy(cls, sizes: Sizes) -> MultimodalFlowConfig:
        """Return settings with as many kinds as fit: continuous and, if there is room, classes and a rotation."""
        parts, room = [], sizes.action_dim
        for part in (PartConfig('discrete', 3), PartConfig('rotation', 1)):
            if part.width < room:
                parts.append(part)
                room -= part.width
        return cls((PartConfig('continuous', room), *parts), steps=2, draws=2)

    @classmethod
    def fake_actions(cls, sizes: Sizes, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw numbers, rotations and classes as in `dummy`."""
        layout = Layout(cls.dummy(sizes).parts, sizes.action_dim)
        return layout.join(*layout.split(torch.randn(batch, sizes.horizon, sizes.action_dim, generator=generator)))


class MultimodalFlow(LikelihoodGenerator):
    """Makes chunks of classes, numbers and rotations that belong together: ``p(classes | k) p(rest | classes, k)``.

    Classes are drawn step by step from a recurrent network (`ClassSequence`). Given them and the condition k, one flow
    moves all numbers and rotations of a chunk at once, on the product manifold ``R^N x SO(3)^K`` (Riemannian flow
    matching, arXiv 2302.03660; for rotations arXiv 2310.02391): from a Gaussian and uniform rotations along geodesics,
    ``x_t = (1 - t) x_0 + t x_1`` and ``R_t = R_0 exp(t log(R_0^T R_1))``, whose velocities are ``x_1 - x_0`` and
    ``log(R_0^T R_1)``. The loss is their mean squared error plus the mean negative log-likelihood of a step's classes.

    The density follows from the instantaneous change of variables on the manifold (arXiv 2302.03660),
    ``log p(x_1) = log p(x_0) - int div v dt``, with the exact divergence and an adaptive solver (tolerance 1e-5). It
    refers to the Lebesgue measure for numbers and the uniform distribution for rotations, and counts classes. The noise
    decides everything: 6 Gaussian numbers are two columns of a uniform rotation, one is by its quantile a class.

    Args:
        network: velocity network over numbers, rotations of 6 numbers and one-hot classes.
        classes: `ClassSequence` or `NoClasses`.
        layout: which numbers of an action are what.
        sizes: of chunk and condition.
        steps: solver steps of a sample.
        solver: one of `flow_vla_core.solvers.SOLVERS`.
        time: how t is drawn in training, one of `TIMES`.
        draws: draws of noise and time for each condition in training.

    Raises:
        ConfigError: for an unknown solver or distribution, or fewer than one step or draw.
        InputError: in training, for rotations whose columns are not orthonormal.

    Example:
        >>> parts = (PartConfig('continuous', 3), PartConfig('rotation', 1), PartConfig('discrete', 2))
        >>> config = MultimodalFlowConfig(parts)
        >>> generator = config.build(Sizes(4, 10, 3), NetworkConfig('mlp', 8, 1))
        >>> chunk = generator.sample(Condition(torch.zeros(5, 3)))
        >>> chunk.shape, chunk[..., 9].abs().unique().tolist()
        (torch.Size([5, 4, 10]), [1.0])
    """

    def __init__(self, network: nn.Module, classes: ClassSequence | NoClasses, layout: Layout, sizes: Sizes, *,
                 steps: int = 5, solver: str = 'midpoint', time: str = 'uniform', draws: int = 4) -> None:
        super().__init__(sizes, steps)
        for key, value, allowed in (('solver', solver, SOLVERS), ('time', time, TIMES)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        if draws < 1:
            raise ConfigError(f'generator.draws: {draws}; allowed: 1 or more')
        self.network, self.classes, self.layout = network, classes, layout
        self.solver, self.draws = solver, draws
        self._draw_time = TIMES[time]

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        self.layout.check(actions)
        surprise = -self.classes.log_prob(self.layout.split(actions)[1], condition.vector).to(actions.dtype)
        return self._velocity_error(*repeat(self.draws, actions, condition, mask), generator) + \
            masked_mean(surprise[..., None], mask)

    def _velocity_error(self, actions: Tensor, condition: Condition, mask: Tensor | None,
                        generator: torch.Generator | None) -> Tensor:
        data, classes = self.layout.split(actions)
        noise, _ = self.layout.gauss(torch.randn(actions.shape, generator=generator).to(actions))
        t = self._draw_time(len(actions), generator).to(actions)
        way = noise.reach(data)
        velocity = self._velocity(noise.move(t[:, None, None] * way), t, self.classes.one_hot(classes), condition)
        return masked_mean((velocity - way).square(), mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        """Choose classes, then integrate from noise. A prefix moves on its own geodesic, where the network sees it."""
        begin, uniform = self.layout.gauss(noise)
        known, known_classes = (None, None) if prefix is None else self.layout.split(prefix)
        classes = self.classes.sample(uniform, condition.vector, known_classes)
        way = None if known is None else begin[:, :prefix.shape[1]].reach(known)
        free = self._field(classes, condition)
        end = integrate(lambda point, t: begin_with(way, free(point, t)), begin, steps, self.solver)
        return begin_with(prefix, self.layout.join(end, classes))

    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        self.layout.check(actions)
        point, classes = self.layout.split(actions)
        origin, grown = trace_back(self._field(classes, condition), point)
        likelihood = self.classes.log_prob(classes, condition.vector).to(actions.dtype).sum(1)
        return log_normal(origin.vectors.flatten(1)) - grown + likelihood

    def _field(self, classes: Tensor, condition: Condition) -> Field:
        """Return the tangent that leads on from a point at t, a number."""
        shown = self.classes.one_hot(classes)
        return lambda point, t: self._velocity(point, point.vectors.new_full((len(classes),), t), shown, condition)

    def _velocity(self, point: Point, t: Tensor, shown: Tensor, condition: Condition) -> Tensor:
        """Ask the network at a point for the tangent there: t (B,), one-hot classes (B, H, .) -> (B, H, N + 3K)."""
        columns = point.rotations[..., :2].mT.flatten(-3)
        seen = torch.cat([point.vectors, columns, shown.to(columns)], -1)
        found = self.network(seen, t, condition).to(columns.dtype)
        straight, rest = found[..., :self.layout.vectors], found[..., self.layout.vectors:]
        ambient = rest[..., :columns.shape[-1]].unflatten(-1, (self.layout.rotations, 6))
        return point.join(straight, turn_of_columns(point.rotations, ambient))
