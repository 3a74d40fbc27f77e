"""Flow matching: a velocity field that leads from noise (t = 0) to actions (t = 1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.divergence import draw_probe, hutchinson_divergence
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import (
    Continuing,
    FamilyConfig,
    Guidable,
    LikelihoodGenerator,
    repeat,
    squared_error,
)
from flow_vla_core.generators.change_of_variables import ode_log_prob
from flow_vla_core.generators.couplings import COUPLINGS, Coupling, Independent
from flow_vla_core.generators.guidance import NullCondition, blended, heard
from flow_vla_core.generators.paths import PATHS, Path, StraightPath
from flow_vla_core.generators.prepared import PreparedField
from flow_vla_core.generators.realtime import Guide, steer
from flow_vla_core.generators.times import TIMES
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import ADAPTIVE, METHODS, Field, solve, solve_adaptively, visited
from flow_vla_core.types import Condition

__all__ = ['FlowMatching', 'FlowMatchingConfig']


@dataclass(frozen=True)
class FlowMatchingConfig(FamilyConfig):
    """Sets up `FlowMatching`, whose arguments these are; path and coupling by the names in `PATHS` and `COUPLINGS`.

    Example:
        >>> config = FlowMatchingConfig(steps=4, solver='midpoint', drop=0.1, guidance=2.0)
        >>> generator = config.build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    family: str = field(default='flow_matching', init=False)
    steps: int = 5
    solver: str = 'euler'
    time: str = 'beta'
    draws: int = 4
    path: str = 'straight'
    coupling: str = 'independent'
    drop: float = 0.0
    guidance: float = 1.0
    tolerance: float = 1e-5
    prefix_steps: int = 0
    prefix_noise: float = 0.0

    def build(self, sizes: Sizes, network: NetworkConfig) -> FlowMatching:
        """Make it with a network of its own."""
        _check_name('path', self.path, PATHS)
        _check_name('coupling', self.coupling, COUPLINGS)
        return FlowMatching(network.build(sizes), sizes, steps=self.steps, solver=self.solver, time=self.time,
                            draws=self.draws, path=PATHS[self.path](), coupling=COUPLINGS[self.coupling](),
                            drop=self.drop, guidance=self.guidance, tolerance=self.tolerance,
                            prefix_steps=self.prefix_steps, prefix_noise=self.prefix_noise)


class FlowMatching(LikelihoodGenerator, Guidable, Continuing):
    """Learns the velocity of paths from noise to actions: the mean of ``|v(x_t, t, c) - dx_t/dt|^2`` is least.

    On the straight path x_t = (1 - t) noise + t actions the velocity is actions - noise (arXiv 2210.02747, equation 23;
    arXiv 2209.03003); sampling integrates it from noise. The density of what is sampled follows from the instantaneous
    change of variables, with the exact trace of the Jacobian and a solver that keeps to a tolerance: it is that of the
    differential equation, which few steps only approximate. Several draws of noise and time for each condition make
    better use of the encoders, which cost most.

    Args:
        network: velocity network.
        sizes: of chunk and condition.
        steps: solver steps of a sample; adaptive solvers choose their own.
        solver: one of `flow_vla_core.solvers.METHODS`.
        time: how t is drawn in training, one of `TIMES`.
        draws: draws of noise and time for each condition in training.
        path: from noise to actions.
        coupling: which noise goes with which actions in training.
        drop: share of conditions that are replaced by a learned null condition in training, in [0, 1); guidance needs
            some.
        guidance: weight w of classifier-free guidance, see `guided`; 1 follows the condition, 0 ignores it.
        tolerance: relative and absolute, of adaptive solvers and of the likelihood.
        prefix_steps: longest prefix that it learns to go on from. In training a random number of actions, 0 to so many,
            is given as they are at the time 1, and the loss is that of the others: real-time chunking without a
            gradient at inference (arXiv 2512.05964). Longer prefixes are an extrapolation. With 0, a prefix moves on
            its own path from noise to actions.
        prefix_noise: standard deviation, in normalised units, of an offset that is added to the given actions in
            training, one for each chunk and dimension. Actions of an expert tell where it is going to, and a policy
            that is given some of them learns to go on from there instead of looking (causal confusion, arXiv
            1905.11979); with its own actions it then goes on from its own mistakes.

    Raises:
        ConfigError: for an unknown solver or distribution, fewer than one step or draw, or a number out of range.

    Example:
        >>> generator = FlowMatching(NetworkConfig('mlp', 8, 1).build(Sizes(4, 2, 3)), Sizes(4, 2, 3))
        >>> condition = Condition(torch.zeros(5, 3))
        >>> generator.loss(torch.zeros(5, 4, 2), condition).shape
        torch.Size([])
        >>> generator.log_prob(torch.zeros(5, 4, 2), condition).shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, sizes: Sizes, *, steps: int = 5, solver: str = 'euler',
                 time: str = 'beta', draws: int = 4, path: Path | None = None, coupling: Coupling | None = None,
                 drop: float = 0.0, guidance: float = 1.0, tolerance: float = 1e-5, prefix_steps: int = 0,
                 prefix_noise: float = 0.0) -> None:
        super().__init__(sizes, steps)
        _check_name('solver', solver, METHODS)
        _check_name('time', time, TIMES)
        _check_range('draws', draws, draws >= 1, '1 or more')
        _check_range('drop', drop, 0 <= drop < 1, 'from 0 to below 1')
        _check_range('guidance', guidance, guidance == 1 or (drop > 0 and guidance >= 0),
                     '0 or more, and only 1 if drop is 0')
        _check_range('tolerance', tolerance, tolerance > 0, 'above 0')
        _check_range('prefix_steps', prefix_steps, 0 <= prefix_steps < sizes.horizon,
                     f'from 0 to below {sizes.horizon}')
        _check_range('prefix_noise', prefix_noise, prefix_noise >= 0, '0 or more')
        self.network, self.prefix_steps, self.prefix_noise = network, prefix_steps, prefix_noise
        self.solver, self.draws, self.drop, self.guidance, self.tolerance = solver, draws, drop, guidance, tolerance
        self.path, self.coupling = path or StraightPath(), coupling or Independent()
        self.null = NullCondition(sizes) if drop else None
        self._draw_time = TIMES[time]

    @property
    def is_fixed(self) -> bool:
        """Whether the solver's steps are."""
        return self.solver not in ADAPTIVE

    def pair_loss(self, noise: Tensor, actions: Tensor, condition: Condition, mask: Tensor | None = None,
                  generator: torch.Generator | None = None) -> Tensor:
        """Return the loss on given pairs of noise and actions (B, H, A), with t drawn once for each.

        Args:
            noise: where the paths begin.
            actions: where they end.
            condition: of the actions.
            mask: (B, H) bool, false for actions that don't count.
            generator: source of randomness.
        """
        t = self._draw_time(len(actions), generator).to(actions)
        if self.null is not None:
            condition = self.null.drop(condition, self.drop, generator)
        if not (self.training and self.prefix_steps):
            found = self.network(self.path.mix(noise, actions, t), t, condition).to(actions.dtype)
            return squared_error(found, self.path.velocity(noise, actions, t), mask)
        known = self._draw_known(actions, generator)
        t = torch.where(known, 1.0, t[:, None])
        mixed = torch.where(known[..., None], self._disturb(actions, generator), self.path.mix(noise, actions, t))
        found = self.network(mixed, t, condition).to(actions.dtype)
        return squared_error(found, self.path.velocity(noise, actions, t), ~known if mask is None else mask & ~known)

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity (B, H, A), guided, at points x (B, H, A) and times t (B,)."""
        times, told = (t if self.guidance in (0, 1) else torch.cat([t, t])), self._told(condition)
        return blended(lambda x, _: self.network(x, times, told), self.guidance)(x, math.nan).to(x.dtype)

    def field(self, condition: Condition) -> Field:
        """Return the velocity that samples follow: a function of x (B, H, A) and t, a number."""
        return blended(PreparedField(self.network, self._told(condition)), self.guidance)

    def estimate_log_prob(self, actions: Tensor, condition: Condition, probe: str = 'rademacher',
                          generator: torch.Generator | None = None) -> Tensor:
        """Estimate `log_prob` (B,) without bias, for a cost that does not grow with H A (Hutchinson's trace).

        Args:
            actions: (B, H, A).
            condition: of the same B.
            probe: kind of noise, one of `flow_vla_core.divergence.PROBES`; drawn once for the whole solution.
            generator: source of randomness.

        Raises:
            InputError: for other shapes, NaN or infinity, or an unknown kind.
        """
        self._check(actions, condition)
        divergence = partial(hutchinson_divergence, noise=draw_probe(probe, actions, generator))
        return ode_log_prob(self.field(condition), actions, divergence, rtol=self.tolerance, atol=self.tolerance)

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        actions, condition, mask = repeat(self.draws, actions, condition, mask)
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        noise = self.coupling.pair(noise, actions, condition, mask)
        return self.pair_loss(noise, actions, condition, mask, generator)

    def _draw_known(self, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        """Choose which actions are given in training: (B, H) bool, the first few."""
        batch, horizon, _ = actions.shape
        count = torch.randint(0, self.prefix_steps + 1, (batch, 1), generator=generator)
        return (torch.arange(horizon) < count).to(actions.device)

    def _disturb(self, actions: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.prefix_noise == 0:
            return actions
        return actions + self.prefix_noise * torch.randn(actions[:, :1].shape, generator=generator).to(actions)

    def go_on(self, condition: Condition, noise: Tensor, steps: int, begun: Tensor, known: Tensor) -> Tensor:
        """Integrate from noise; the network sees what is known as it learned to, wherever the solver has taken it."""
        field = self._prepared(condition, noise, steps, known if self.prefix_steps else None)

        def velocity(x: Tensor, t: float) -> Tensor:
            seen = begun if self.prefix_steps else self.path.mix(noise, begun, t)
            return field(torch.where(known[:, None], seen, x), t)

        return torch.where(known[:, None], begun, self._integrate(velocity, noise, steps))

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        if prefix is None:
            return self._integrate(self._prepared(condition, noise, steps), noise, steps)
        count, horizon = prefix.shape[1], noise.shape[1]
        known = torch.arange(horizon, device=noise.device) < count
        return self.go_on(condition, noise, steps, functional.pad(prefix, (0, 0, 0, horizon - count)), known)

    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        return self._integrate(steer(self._prepared(condition, noise, steps), guide, self.path), noise, steps)

    def _prepared(self, condition: Condition, noise: Tensor, steps: int,
                  known: Tensor | None = None) -> Field:
        """Make the field for a sample: the times at which the solver will ask are prepared."""
        field = PreparedField(self.network, self._told(condition), known)
        return blended(field.prepare(visited(steps, self.solver), noise), self.guidance)

    def _integrate(self, velocity: Field, noise: Tensor, steps: int) -> Tensor:
        if self.solver in ADAPTIVE:
            return solve_adaptively(velocity, noise, self.solver, rtol=self.tolerance, atol=self.tolerance).end
        return solve(velocity, noise, steps, self.solver)

    def _told(self, condition: Condition) -> Condition:
        return heard(condition, None if self.null is None else self.null.like(condition), self.guidance)

    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        return ode_log_prob(self.field(condition), actions, rtol=self.tolerance, atol=self.tolerance)


def _check_name(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')


def _check_range(key: str, value: float, fits: bool, allowed: str) -> None:
    if not fits:
        raise ConfigError(f'generator.{key}: {value}; allowed: {allowed}')
