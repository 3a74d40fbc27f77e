"""Flow matching: a velocity field that leads from noise (t = 0) to actions (t = 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from flow_vla_core.divergence import draw_probe, hutchinson_divergence
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, LikelihoodGenerator, begin_with, masked_mean, repeat
from flow_vla_core.generators.change_of_variables import ode_log_prob
from flow_vla_core.generators.couplings import COUPLINGS, Coupling, Independent
from flow_vla_core.generators.guidance import NullCondition, guided
from flow_vla_core.generators.paths import PATHS, Path, StraightPath
from flow_vla_core.generators.times import TIMES
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.solvers import ADAPTIVE, METHODS, Field, solve, solve_adaptively
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

    def build(self, sizes: Sizes, network: NetworkConfig) -> FlowMatching:
        """Make it with a network of its own."""
        _check_name('path', self.path, PATHS)
        _check_name('coupling', self.coupling, COUPLINGS)
        return FlowMatching(network.build(sizes), sizes, steps=self.steps, solver=self.solver, time=self.time,
                            draws=self.draws, path=PATHS[self.path](), coupling=COUPLINGS[self.coupling](),
                            drop=self.drop, guidance=self.guidance, tolerance=self.tolerance)


class FlowMatching(LikelihoodGenerator):
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
                 drop: float = 0.0, guidance: float = 1.0, tolerance: float = 1e-5) -> None:
        super().__init__(sizes, steps)
        _check_name('solver', solver, METHODS)
        _check_name('time', time, TIMES)
        _check_range('draws', draws, draws >= 1, '1 or more')
        _check_range('drop', drop, 0 <= drop < 1, 'from 0 to below 1')
        _check_range('guidance', guidance, guidance == 1 or (drop > 0 and guidance >= 0),
                     '0 or more, and only 1 if drop is 0')
        _check_range('tolerance', tolerance, tolerance > 0, 'above 0')
        self.network = network
        self.solver, self.draws, self.drop, self.guidance, self.tolerance = solver, draws, drop, guidance, tolerance
        self.path, self.coupling = path or StraightPath(), coupling or Independent()
        self.null = NullCondition(sizes) if drop else None
        self._draw_time = TIMES[time]

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
        found = self.network(self.path.mix(noise, actions, t), t, condition).to(actions.dtype)
        return masked_mean((found - self.path.velocity(noise, actions, t)).square(), mask)

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the velocity (B, H, A), guided, at points x (B, H, A) and times t (B,)."""
        return self._guided(condition)(x, t).to(x.dtype)

    def field(self, condition: Condition) -> Field:
        """Return the velocity that samples follow: a function of x (B, H, A) and t, a number."""
        velocity = self._guided(condition)
        return lambda x, t: velocity(x, torch.full((len(x),), t, dtype=x.dtype, device=x.device)).to(x.dtype)

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

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        """Integrate from noise. The network sees a prefix on its own path, wherever the solver has taken it."""
        field, known = self.field(condition), None if prefix is None else noise[:, :prefix.shape[1]]

        def velocity(x: Tensor, t: float) -> Tensor:
            return field(x if prefix is None else begin_with(self.path.mix(known, prefix, t), x), t)

        return begin_with(prefix, self._integrate(velocity, noise, steps))

    def _integrate(self, velocity: Field, noise: Tensor, steps: int) -> Tensor:
        if self.solver in ADAPTIVE:
            return solve_adaptively(velocity, noise, self.solver, rtol=self.tolerance, atol=self.tolerance).end
        return solve(velocity, noise, steps, self.solver)

    def _guided(self, condition: Condition) -> Callable[[Tensor, Tensor], Tensor]:
        null = condition if self.null is None else self.null.like(condition)
        return guided(self.network, condition, null, self.guidance)

    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        return ode_log_prob(self.field(condition), actions, rtol=self.tolerance, atol=self.tolerance)


def _check_name(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')


def _check_range(key: str, value: float, fits: bool, allowed: str) -> None:
    if not fits:
        raise ConfigError(f'generator.{key}: {value}; allowed: {allowed}')
