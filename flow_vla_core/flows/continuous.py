"""Continuous flows: bijections that follow a differential equation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
import math

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from flow_vla_core.checks import all_finite
from flow_vla_core.divergence import PROBES, draw_probe, exact_divergence, hutchinson_divergence
from flow_vla_core.errors import ConfigError, SolverError, closest
from flow_vla_core.flows.base import NormalizingFlow, Transform, log_normal

__all__ = ['ESTIMATORS', 'ContinuousNormalizingFlow', 'ContinuousTransform', 'OdeSettings', 'VelocityField']

ADAPTIVE = ('adaptive_heun', 'bosh3', 'dopri5', 'dopri8', 'fehlberg2')
FIXED = ('euler', 'heun3', 'midpoint', 'rk4')
ESTIMATORS = ('exact', *PROBES)
FREQUENCIES = 3


@dataclass(frozen=True)
class OdeSettings:
    """Says how torchdiffeq solves a differential equation.

    Args:
        method: one of torchdiffeq's: ``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2`` and ``adaptive_heun`` choose
            their steps, ``euler``, ``midpoint``, ``heun3`` and ``rk4`` make ``steps`` equal ones.
        rtol: relative tolerance of the methods that choose their steps, above 0.
        atol: absolute tolerance, above 0.
        steps: of the other methods, at least 1.
        adjoint: find gradients by a second equation, solved backwards, whose memory does not grow with the number of
            evaluations (Chen et al., arXiv 1806.07366, algorithm 1). Otherwise the solver's own steps are
            differentiated, which is exact for what was computed.
        most: evaluations of the field that are allowed for one solution, the adjoint's included.

    Raises:
        ConfigError: for an unknown method, or a number that is not allowed.

    Example:
        >>> OdeSettings('rk4', steps=8).solve(lambda t, state: state, (torch.ones(1),), (0.0, 1.0))
        (tensor([2.7183]),)
    """

    method: str = 'dopri5'
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 16
    adjoint: bool = False
    most: int = 10_000

    def __post_init__(self) -> None:
        if self.method not in ADAPTIVE + FIXED:
            raise ConfigError(f'method: {self.method!r}; {closest(self.method, ADAPTIVE + FIXED)}')
        if not (self.rtol > 0 and self.atol > 0):
            raise ConfigError(f'tolerances {self.rtol} and {self.atol}; allowed: above 0')
        if self.steps < 1 or self.most < 1:
            raise ConfigError(f'steps: {self.steps}, most: {self.most}; allowed: 1 or more')

    def solve(self, rates: Callable, state: tuple[Tensor, ...], span: tuple[float, float],
              inputs: Iterable[Tensor] = ()) -> tuple[Tensor, ...]:
        """Return the state at the end of the time span.

        Args:
            rates: called with t () within the span and a state, gives its derivatives.
            state: at the beginning of the span.
            span: first and last time; time may run backwards.
            inputs: tensors inside ``rates`` that the adjoint has to give a gradient.

        Raises:
            SolverError: if steps become too small, and whatever ``rates`` raises.
        """
        fixed = self.method in FIXED
        times = torch.linspace(*span, self.steps + 1 if fixed else 2, dtype=state[0].dtype, device=state[0].device)
        options = {} if fixed else {'step_t': times}  # otherwise it steps past the end, and interpolates less exactly
        run = partial(odeint_adjoint, adjoint_params=tuple(inputs)) if self.adjoint else odeint
        try:
            found = run(rates, state, times, method=self.method, rtol=self.rtol, atol=self.atol, options=options)
        except AssertionError as error:
            raise SolverError(f'{self.method} from t = {span[0]} to {span[1]}: {error}') from error
        return tuple(values[-1] for values in found)


class ContinuousNormalizingFlow(NormalizingFlow):
    """Makes a density out of a velocity field (FFJORD): ``dx/dt = f(x, t, c)``, noise at t = 0 and data at t = 1.

    ``log p(x(1)) = log N(x(0)) - integral from 0 to 1 of tr df/dx dt``; Grathwohl et al., arXiv 1810.01367, section
    2.3 (their time has the data at its end, too). `forward` gives the distribution with the exact trace; `nll`, for
    training, estimates the trace without bias, with noise that stays the same along a solution (section 3.1).

    Training needs a method that chooses its steps: with few equal steps the field learns to make the solver's error
    look like a high likelihood.

    Args:
        dim: number of dimensions D.
        context_dim: width C of the context; 0 for none.
        field: called with x (N, D), t () and context (N, C) or None, gives dx/dt (N, D), each row from its own row; a
            `VelocityField` if left out.
        estimator: of the trace in training: ``rademacher``, ``gaussian`` or ``exact``.
        settings: of the solver.

    Raises:
        ConfigError: for a size that is not allowed or an unknown estimator.
        SolverError: when used, if the field is not finite or takes too many evaluations.

    Example:
        >>> flow = ContinuousNormalizingFlow(2, settings=OdeSettings('rk4', steps=4))
        >>> flow().log_prob(torch.zeros(1, 2))
        tensor([-1.8379], grad_fn=<AddBackward0>)
        >>> flow.evaluations
        16
    """

    def __init__(self, dim: int, context_dim: int = 0, field: nn.Module | None = None, estimator: str = 'rademacher',
                 settings: OdeSettings = OdeSettings()) -> None:
        if estimator not in ESTIMATORS:
            raise ConfigError(f'estimator: {estimator!r}; {closest(estimator, ESTIMATORS)}')
        super().__init__([ContinuousTransform(dim, context_dim, field, settings)])
        self.estimator = estimator

    @property
    def evaluations(self) -> int:
        """Evaluations of the field (NFE) by the last solution; with those of its adjoint, once that has run."""
        return self.transform.transforms[0].evaluations

    def nll(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return ``-log p(x | c)`` in nats, estimated without bias: (..., D) -> (...)."""
        x, context = self(context).broadcast(x)
        probe = None if self.estimator == 'exact' else draw_probe(self.estimator, x, generator)
        z, log_det = self.transform.transforms[0](x, context, probe)
        return -log_normal(z) - log_det


class ContinuousTransform(Transform):
    """Goes along a velocity field from data (t = 1) to noise (t = 0), and back: see `ContinuousNormalizingFlow`.

    With ``dx/dt = f(x, t, c)``, ``log |det dx(0)/dx(1)| = -integral from 0 to 1 of tr df/dx dt`` (Chen et al., arXiv
    1806.07366, theorem 1).

    An adaptive method takes one step size for the whole batch: a row's result depends on the other rows within the
    tolerances.

    Args:
        dim: number of dimensions D.
        context_dim: width C of the context; 0 for none.
        field: as for `ContinuousNormalizingFlow`.
        settings: of the solver.

    Raises:
        ConfigError: for a size that is not allowed.
        SolverError: when used, if the field is not finite or takes too many evaluations.

    Example:
        >>> transform, x = ContinuousTransform(3), torch.ones(2, 3)
        >>> z, log_det = transform(x)
        >>> torch.allclose(transform.inverse(z)[0], x, atol=1e-3)
        True
    """

    def __init__(self, dim: int, context_dim: int = 0, field: nn.Module | None = None,
                 settings: OdeSettings = OdeSettings()) -> None:
        super().__init__(dim, context_dim)
        self.field = VelocityField(dim, context_dim) if field is None else field
        self.settings = settings
        self._counter = _Counter(settings.most)

    @property
    def evaluations(self) -> int:
        """Evaluations of the field (NFE) by the last solution; with those of its adjoint, once that has run."""
        return self._counter.calls

    def forward(self, x: Tensor, context: Tensor | None = None, probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise; with ``probe`` of x's shape, the log-determinant is Hutchinson's estimate."""
        return self._solve(x, context, (1.0, 0.0), probe)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        return self._solve(z, context, (0.0, 1.0))

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """From noise to data, without the trace."""
        end, = self._integrate((z.reshape(-1, self.dim),), context, (0.0, 1.0), None)
        return end.reshape(z.shape)

    def _solve(self, x: Tensor, context: Tensor | None, span: tuple[float, float],
               probe: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = x.reshape(-1, self.dim)
        divergence = exact_divergence
        if probe is not None:
            divergence = partial(hutchinson_divergence, noise=probe.reshape(flat.shape))
        end, log_det = self._integrate((flat, flat.new_zeros(len(flat))), context, span, divergence)
        return end.reshape(x.shape), log_det.reshape(x.shape[:-1])

    def _integrate(self, state: tuple[Tensor, ...], context: Tensor | None, span: tuple[float, float],
                   divergence: Callable | None) -> tuple[Tensor, ...]:
        self._counter = _Counter(self.settings.most)
        if not len(state[0]):
            return state
        context = None if context is None else context.reshape(-1, self.context_dim)
        rates = _Rates(self.field, context, divergence, self._counter)
        inputs = (*self.field.parameters(), *(() if context is None else (context,)))
        return self.settings.solve(rates, state, span, inputs)


class VelocityField(nn.Module):
    """Answers with a velocity for each point: a network of the point, sines and cosines of the time, and the context.

    It is smooth, as solvers of high order ask, and it begins as zero, so that the flow begins as the identity.

    Args:
        dim: number of dimensions D.
        context_dim: width C of the context; 0 for none.
        width: of the hidden layers.
        depth: their number, at least 1.

    Raises:
        ConfigError: for a size that is not allowed.

    Example:
        >>> VelocityField(2, context_dim=3)(torch.ones(5, 2), torch.tensor(0.5), torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, context_dim: int = 0, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        if min(dim, width, depth) < 1 or context_dim < 0:
            raise ConfigError(f'dim {dim}, context_dim {context_dim}, width {width}, depth {depth}; allowed: 1 or more '
                              '(context_dim: 0 or more)')
        widths = [dim + context_dim + 2 * FREQUENCIES] + [width] * depth
        layers = [nn.Sequential(nn.Linear(*pair), nn.SiLU()) for pair in zip(widths, widths[1:])]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, D), (), (N, C) -> (N, D)."""
        angles = math.pi * torch.arange(1, FREQUENCIES + 1, dtype=x.dtype, device=x.device) * t
        time = torch.cat([angles.sin(), angles.cos()]).expand(len(x), -1)
        return self.layers(torch.cat([x, time] if context is None else [x, time, context], -1))


@dataclass
class _Counter:
    """Counts evaluations, up to the most that are allowed."""

    most: int
    calls: int = 0


class _Rates:
    """Answers torchdiffeq with dx/dt, or with that and the divergence, and watches what the field does."""

    def __init__(self, field: nn.Module, context: Tensor | None, divergence: Callable | None,
                 counter: _Counter) -> None:
        self.field, self.context, self.divergence, self.counter = field, context, divergence, counter

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.counter.calls += 1
        if self.counter.calls > self.counter.most:
            raise SolverError(f'more than {self.counter.most} evaluations of the field, at t = {t.item():.6g}')
        x, field = state[0], partial(self.field, t=t, context=self.context)
        rates = (field(x),) if self.divergence is None else self.divergence(field, x)
        if not all(map(all_finite, rates)):
            raise SolverError(f'the field is not finite at t = {t.item():.6g}, evaluation {self.counter.calls}')
        return rates
