"""Solvers of dx/dt = f(x, t): fixed steps for the hot path, adaptive ones where accuracy counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchdiffeq import odeint

from flow_vla_core.checks import all_finite
from flow_vla_core.errors import ConfigError, SolverError, closest

__all__ = ['ADAPTIVE', 'Field', 'METHODS', 'SOLVERS', 'Solution', 'solve', 'solve_adaptively', 'visited']

Field = Callable[[Tensor, float], Tensor]
Step = Callable[[Field, Tensor, float, float], Tensor]


def _euler(field: Field, x: Tensor, t: float, h: float) -> Tensor:
    return x.add(field(x, t), alpha=h)


def _midpoint(field: Field, x: Tensor, t: float, h: float) -> Tensor:
    return x.add(field(x.add(field(x, t), alpha=h / 2), t + h / 2), alpha=h)


def _heun(field: Field, x: Tensor, t: float, h: float) -> Tensor:
    slope = field(x, t)
    return x.add(slope + field(x.add(slope, alpha=h), t + h), alpha=h / 2)


def _rk4(field: Field, x: Tensor, t: float, h: float) -> Tensor:
    a = field(x, t)
    b = field(x.add(a, alpha=h / 2), t + h / 2)
    c = field(x.add(b, alpha=h / 2), t + h / 2)
    d = field(x.add(c, alpha=h), t + h)
    return x.add((a + d).add(b + c, alpha=2), alpha=h / 6)


SOLVERS: Mapping[str, Step] = {'euler': _euler, 'midpoint': _midpoint, 'heun': _heun, 'rk4': _rk4}
ADAPTIVE = ('dopri5', 'bosh3', 'dopri8')
METHODS = (*SOLVERS, *ADAPTIVE)


def solve(field: Field, x: Tensor, steps: int, method: str = 'euler', *, t0: float = 0.0, t1: float = 1.0) -> Tensor:
    """Integrate from t0 to t1, which may lie before t0.

    Euler calls the field once a step, midpoint and Heun twice, RK4 four times; their errors fall with the first, second
    and fourth power of the step. Adaptive methods choose their steps themselves, with the tolerances that
    `solve_adaptively` has by default.

    Args:
        field: dx/dt; gets x of any shape and t as a number.
        x: where to begin.
        steps: number of equal steps, at least 1.
        method: one of `METHODS`.
        t0: where x is.
        t1: where to end.

    Raises:
        ConfigError: for an unknown method or fewer than one step.
        SolverError: as `solve_adaptively` does, if the method is adaptive.

    Example:
        >>> solve(lambda x, t: x, torch.ones(1, dtype=torch.float64), 20, 'rk4')
        tensor([2.7183], dtype=torch.float64)
    """
    if method in ADAPTIVE:
        return solve_adaptively(field, x, method, t0=t0, t1=t1).end
    if method not in SOLVERS:
        raise ConfigError(f'no solver {method!r}; {closest(method, METHODS)}')
    if steps < 1:
        raise ConfigError(f'{steps} solver steps; allowed: 1 or more')
    step, span = SOLVERS[method], t1 - t0
    for index in range(steps):
        x = step(field, x, t0 + span * index / steps, span / steps)
    return x


@cache
def visited(steps: int, method: str = 'euler') -> tuple[float, ...]:
    """Return the times at which `solve` from 0 to 1 asks the field, in order; none for adaptive methods.

    Raises:
        ConfigError: for an unknown method or fewer than one step.

    Example:
        >>> visited(2, 'midpoint')
        (0.0, 0.25, 0.5, 0.75)
    """
    times: dict[float, None] = {}

    def remember(x: Tensor, t: float) -> Tensor:
        times[t] = None
        return x

    if method not in ADAPTIVE:
        solve(remember, torch.zeros(()), steps, method)
    return tuple(times)


@dataclass(frozen=True)
class Solution:
    """Holds what an adaptive solver found.

    Args:
        end: x at t1.
        evaluations: calls of the field (NFE).

    Example:
        >>> Solution(torch.zeros(2), 14).evaluations
        14
    """

    end: Tensor
    evaluations: int


def solve_adaptively(field: Field, x: Tensor, method: str = 'dopri5', *, t0: float = 0.0, t1: float = 1.0,
                     rtol: float = 1e-5, atol: float = 1e-5, most: int = 10_000) -> Solution:
    """Integrate from t0 to t1 with steps that keep the estimated error within tolerances (torchdiffeq).

    One error is estimated for the whole batch: an element's result depends on the others within the tolerances.

    Args:
        field: as for `solve`.
        x: where to begin.
        method: one of `ADAPTIVE`.
        t0: where x is.
        t1: where to end.
        rtol: relative tolerance, above 0.
        atol: absolute tolerance, above 0.
        most: calls of the field that are allowed.

    Raises:
        ConfigError: for an unknown method or a tolerance that is not above 0.
        SolverError: for a field that is not finite, or that takes too many calls or too small steps.

    Example:
        >>> found = solve_adaptively(lambda x, t: x, torch.ones(1, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        >>> found.end
        tensor([2.7183], dtype=torch.float64)
    """
    if method not in ADAPTIVE:
        raise ConfigError(f'no adaptive solver {method!r}; {closest(method, ADAPTIVE)}')
    if not (rtol > 0 and atol > 0):
        raise ConfigError(f'tolerances {rtol} and {atol}; allowed: above 0')
    counted, span = _Counted(field, sorted((t0, t1)), most), torch.tensor([t0, t1], dtype=x.dtype, device=x.device)
    try:
        end = odeint(counted, x, span, method=method, rtol=rtol, atol=atol, options={'step_t': span[1:]})[-1]
    except AssertionError as error:
        raise SolverError(f'{method} from t = {t0} to {t1} after {counted.calls} evaluations: {error}') from error
    return Solution(end, counted.calls)


class _Counted:
    """Calls a field with t as a number inside the interval, and watches how often and what it answers."""

    def __init__(self, field: Field, interval: Sequence[float], most: int) -> None:
        self.field, self.interval, self.most, self.calls = field, interval, most, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        first, last = self.interval
        now = min(max(t.item(), first), last)  # the guess of the first step may look beyond the end
        self.calls += 1
        if self.calls > self.most:
            raise SolverError(f'more than {self.most} evaluations of the field, at t = {now:.6g}')
        value = self.field(x, now)
        if not all_finite(value):
            raise SolverError(f'the field is not finite at t = {now:.6g}, evaluation {self.calls}')
        return value
