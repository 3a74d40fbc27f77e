"""Densities of chunks that an ordinary differential equation makes out of Gaussian noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flow_vla_core.divergence import exact_divergence
from flow_vla_core.flows.base import log_normal
from flow_vla_core.solvers import Field, solve_adaptively

__all__ = ['Divergence', 'ode_log_prob']

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]


def ode_log_prob(field: Field, x: Tensor, divergence: Divergence = exact_divergence, *, rtol: float = 1e-5,
                 atol: float = 1e-5) -> Tensor:
    """Return ``log p(x_1) = log N(x_0) - integral of div f(x_t, t) from 0 to 1``, in nats: (B,).

    The instantaneous change of variables (arXiv 1806.07366, theorem 1), integrated from the data (t = 1) back to the
    noise (t = 0).

    Args:
        field: dx/dt of x (B, ...) at t, a number, which leads from standard Gaussian noise to x; elements of the batch
            must not depend on each other.
        x: (B, ...) at t = 1.
        divergence: `exact_divergence`, or `hutchinson_divergence` with its noise bound by `functools.partial`.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.

    Raises:
        SolverError: if the equation can't be solved.

    Example:
        >>> with torch.no_grad():  # both axes are stretched by e: -2 - log(2 pi)
        ...     ode_log_prob(lambda x, t: x, torch.zeros(1, 2))
        tensor([-3.8379])
    """
    def extended(state: Tensor, t: float) -> Tensor:
        here = state[:, :-1].reshape(x.shape)
        value, rate = divergence(lambda inner: field(inner, t), here)
        return torch.cat([value.flatten(1), rate[:, None]], 1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
    end = solve_adaptively(extended, start, t0=1.0, t1=0.0, rtol=rtol, atol=atol).end
    return log_normal(end[:, :-1]) + end[:, -1]
