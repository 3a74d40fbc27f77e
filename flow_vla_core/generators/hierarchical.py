"""A flow over plans above a flow over actions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, begin_with, masked_mean, repeat
from flow_vla_core.generators.candidates import CANDIDATES, more_noise, nearest_beginning
from flow_vla_core.generators.plans import PlanDecoder, PlanEncoder
from flow_vla_core.generators.prepared import PreparedField
from flow_vla_core.generators.times import TIMES
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import METHODS, solve, visited
from flow_vla_core.types import Condition

__all__ = ['HierarchicalFlow', 'HierarchicalFlowConfig']


@dataclass(frozen=True)
class HierarchicalFlowConfig(FamilyConfig):
    """Sets up `HierarchicalFlow`; the network's width is that of all its parts.

    Args:
        waypoints: L, number of a plan's waypoints.
        plan_width: P, numbers of a waypoint.
        plan_noise: as for `HierarchicalFlow`, like all that follow.
        steps: solver steps of each level.
        solver: one of `flow_vla_core.solvers.METHODS`.
        time: how t is drawn in training.
        draws: draws of noise and time for each condition in training.

    Example:
        >>> HierarchicalFlowConfig().build(Sizes(5, 2, 3), NetworkConfig('mlp', 8, 1)).plan_shape
        (4, 4)
    """

    family: str = field(default='hierarchical', init=False)
    waypoints: int = 4
    plan_width: int = 4
    plan_noise: float = 0.1
    steps: int = 5
    solver: str = 'midpoint'
    time: str = 'uniform'
    draws: int = 4

    def build(self, sizes: Sizes, network: NetworkConfig) -> HierarchicalFlow:
        """Make it with two networks of the same kind: one over plans, one over single actions."""
        if min(self.waypoints, self.plan_width) < 1:
            raise ConfigError(f'generator.waypoints: {self.waypoints}, plan_width: {self.plan_width}; allowed: 1 or '
                              'more')
        plan = self.waypoints, self.plan_width
        planner = network.build(Sizes(*plan, sizes.condition_dim, sizes.token_dim))
        actor = network.build(Sizes(1, sizes.action_dim, sizes.condition_dim + network.width))
        return HierarchicalFlow(
            PlanEncoder(sizes, *plan, network.width), PlanDecoder(sizes.horizon, *plan, network.width), planner, actor,
            sizes, plan_noise=self.plan_noise, steps=self.steps, solver=self.solver,
            time=self.time, draws=self.draws)

    @classmethod
    def dummy(cls, sizes: Sizes) -> HierarchicalFlowConfig:
        """Return settings for small plans."""
        return cls(3, 2, steps=2, draws=2)


class HierarchicalFlow(Generator):
    """Makes a plan first, then each action by itself after the plan: ``p(a | k) = int p(z | k) prod_h p(a_h | z, k)``.

    The upper flow moves Gaussian noise to a latent plan z of L waypoints; a decoder spreads z over time; the lower flow
    moves noise to each action, given its share of the plan and the condition k. All that actions have in common has to
    be in the plan. Both levels are flow matching on straight paths (arXiv 2210.02747) and are trained at once with the
    encoder that reads plans off chunks,

    ``loss = |v(a_t, t; z, k) - (a - e)|^2 + |u(z_s, s; k) - (sg(z) - e')|^2, z = encoder(a) + noise``.

    The lower level decides what a plan holds: its gradient reaches the encoder through the decoder. The upper level
    learns such plans and has no say in them (sg stops its gradient), since the plan that it would find easiest is the
    same for every chunk. Actions that don't count are hidden from the encoder.

    The noise that a sample is given is the lower level's; plans draw theirs from ``generator``. With a prefix, of 16
    samples that one is taken which begins most like it.

    Args:
        encoder: (B, H, A), mask -> plan (B, L, P).
        decoder: plan -> (B, H, W).
        planner: velocity network over plans.
        actor: velocity network over single actions (B, 1, A), whose condition is k and W numbers.
        sizes: of chunk and condition.
        plan_noise: standard deviation of noise on plans in training, for plans of mean square 1.
        steps: solver steps of each level.
        solver: one of `flow_vla_core.solvers.METHODS`.
        time: how t is drawn in training, one of `TIMES`.
        draws: draws of noise and time for each condition in training, of the lower level as many actions of its chunk.

    Raises:
        ConfigError: for an unknown solver or distribution, fewer than one step or draw, or a negative noise.

    Example:
        >>> generator = HierarchicalFlowConfig().build(Sizes(6, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> condition = Condition(torch.zeros(5, 3))
        >>> plan = generator.plan(torch.zeros(5, 6, 2))
        >>> generator.act(plan, condition, torch.randn(5, 6, 2)).shape
        torch.Size([5, 6, 2])
    """

    def __init__(self, encoder: PlanEncoder, decoder: PlanDecoder, planner: nn.Module, actor: nn.Module, sizes: Sizes,
                 *, plan_noise: float = 0.1, steps: int = 5, solver: str = 'midpoint',
                 time: str = 'uniform', draws: int = 4) -> None:
        super().__init__(sizes, steps)
        for key, value, allowed in (('solver', solver, METHODS), ('time', time, TIMES)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        for key, value, least in (('draws', draws, 1), ('plan_noise', plan_noise, 0)):
            if value < least:
                raise ConfigError(f'generator.{key}: {value}; allowed: {least} or more')
        self.encoder, self.decoder, self.planner, self.actor = encoder, decoder, planner, actor
        self.plan_noise, self.solver, self.draws = plan_noise, solver, draws
        self._draw_time = TIMES[time]

    @property
    def plan_shape(self) -> tuple[int, int]:
        """Number of waypoints L and of the numbers P of each."""
        return self.encoder.shape

    def plan(self, actions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read plans off chunks: (B, H, A), (B, H) -> (B, L, P)."""
        counted = actions.new_ones(actions.shape[:2], dtype=torch.bool) if mask is None else mask
        return self.encoder(actions, counted)

    def act(self, plan: Tensor, condition: Condition, noise: Tensor, steps: int | None = None) -> Tensor:
        """Make the actions that follow from plans (B, L, P), out of noise (B, H, A)."""
        singles, told = noise.reshape(-1, 1, noise.shape[2]), self._tell(plan, condition)
        return _integrate(self.actor, singles, told, steps or self.steps, self.solver).reshape(noise.shape)

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        plan = self.plan(actions, mask)
        plan = plan + self.plan_noise * torch.randn(plan.shape, generator=generator).to(plan)
        plans, several, _ = repeat(self.draws, plan.detach(), condition, None)
        upper = self._error(self.planner, plans, several, generator)
        known = None if mask is None else mask.any(1).repeat_interleave(self.draws)[:, None].expand(upper.shape[:2])
        return self._act_error(plan, actions, condition, mask, generator) + masked_mean(upper, known)

    def _act_error(self, plan: Tensor, actions: Tensor, condition: Condition, mask: Tensor | None,
                   generator: torch.Generator | None) -> Tensor:
        """Return the mean squared error of the lower level, at some actions of each chunk."""
        batch, horizon, dim = actions.shape
        chosen = torch.randint(horizon, (batch, self.draws), generator=generator)
        rows = (torch.arange(batch)[:, None] * horizon + chosen).flatten().to(actions.device)
        told, singles = self._tell(plan, condition)[rows], actions.reshape(-1, 1, dim)[rows]
        return masked_mean(self._error(self.actor, singles, told, generator),
                           None if mask is None else mask.reshape(-1, 1)[rows])

    def _error(self, network: nn.Module, data: Tensor, condition: Condition,
               generator: torch.Generator | None) -> Tensor:
        """Return the squared errors of the velocity on straight paths to data (B, ., .)."""
        noise = torch.randn(data.shape, generator=generator).to(data)
        t = self._draw_time(len(data), generator).to(data)
        mixed = noise + t[:, None, None] * (data - noise)
        return (network(mixed, t, condition).to(data.dtype) - (data - noise)).square()

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        if prefix is not None:
            condition, noise = condition.expand(CANDIDATES), more_noise(noise, CANDIDATES, generator)
        begin = torch.randn(len(noise), *self.plan_shape, generator=generator).to(noise)
        plan = _integrate(self.planner, begin, condition, steps, self.solver)
        made = self.act(plan, condition, noise, steps)
        return made if prefix is None else begin_with(prefix, nearest_beginning(prefix, made))

    def _tell(self, plan: Tensor, condition: Condition) -> Condition:
        """Return the condition of each single action: (B, L, P), B conditions -> B * H conditions."""
        share = self.decoder(plan)
        vector = condition.vector[:, None].expand(-1, share.shape[1], -1)
        return Condition(torch.cat([vector, share.to(vector)], -1).flatten(0, 1))


def _integrate(network: nn.Module, noise: Tensor, condition: Condition, steps: int, solver: str) -> Tensor:
    field = PreparedField(network, condition).prepare(visited(steps, solver), noise)
    return solve(field, noise, steps, solver)
