"""Fixed-step solvers of dx/dt = f(x, t) from t = 0 to t = 1, for the hot path."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from flow_vla_core.errors import ConfigError, closest

__all__ = ['SOLVERS', 'solve']

Field = Callable[[torch.Tensor, float], torch.Tensor]
Step = Callable[[Field, torch.Tensor, float, float], torch.Tensor]


def _euler(field: Field, x: torch.Tensor, t: float, h: float) -> torch.Tensor:
    return x + h * field(x, t)


def _midpoint(field: Field, x: torch.Tensor, t: float, h: float) -> torch.Tensor:
    return x + h * field(x + h / 2 * field(x, t), t + h / 2)


def _heun(field: Field, x: torch.Tensor, t: float, h: float) -> torch.Tensor:
    slope = field(x, t)
    return x + h / 2 * (slope + field(x + h * slope, t + h))


def _rk4(field: Field, x: torch.Tensor, t: float, h: float) -> torch.Tensor:
    a = field(x, t)
    b = field(x + h / 2 * a, t + h / 2)
    c = field(x + h / 2 * b, t + h / 2)
    d = field(x + h * c, t + h)
    return x + h / 6 * (a + 2 * b + 2 * c + d)


SOLVERS: Mapping[str, Step] = {'euler': _euler, 'midpoint': _midpoint, 'heun': _heun, 'rk4': _rk4}


def solve(field: Field, x: torch.Tensor, steps: int, method: str = 'euler') -> torch.Tensor:
    """Integrate from t = 0 to t = 1 on t = i / steps.

    Euler calls the field once a step, midpoint and Heun twice, RK4 four times; their errors fall with the first, second
    and fourth power of the step.

    Args:
        field: dx/dt; gets x of any shape and t as a number.
        x: where to begin.
        steps: number of steps, at least 1.
        method: one of `SOLVERS`.

    Raises:
        ConfigError: for an unknown method or fewer than one step.
    """
    if method not in SOLVERS:
        raise ConfigError(f'no solver {method!r}; {closest(method, SOLVERS)}')
    if steps < 1:
        raise ConfigError(f'{steps} solver steps; allowed: 1 or more')
    for index in range(steps):
        x = SOLVERS[method](field, x, index / steps, 1 / steps)
    return x
