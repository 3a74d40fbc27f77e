"""Real-time chunking: a new chunk is led to go on where the plan in force is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import math

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, InputError, closest
from flow_vla_core.generators.paths import Path
from flow_vla_core.solvers import Field

__all__ = ['SCHEDULES', 'Guide', 'guidance_weight', 'prefix_weights', 'pull', 'steer']

SCHEDULES: Mapping[str, Callable[[Tensor], Tensor]] = {
    'exponential': lambda share: share * torch.expm1(share) / (math.e - 1),
    'linear': lambda share: share,
    'ones': torch.ones_like,
    'zeros': torch.zeros_like,
}


def prefix_weights(horizon: int, delay: int, execute: int, schedule: str = 'exponential') -> Tensor:
    """Return how firmly each action of a chunk is held to the plan in force: (H,) float64.

    1 for the first d actions, which will have been executed; 0 for the last s, which the plan did not reach; between
    them, with ``c = (H - s - i) / (H - s - d + 1)``, ``c (e^c - 1) / (e - 1)``, or c, or 1, or 0. Real-time execution
    of action chunking flow policies (arXiv 2506.07339, equation 5).

    Args:
        horizon: H.
        delay: d, from 0 to H - s.
        execute: s, steps from one chunk to the next, from 1 to H.
        schedule: one of `SCHEDULES`.

    Raises:
        ConfigError: for an unknown schedule.
        InputError: if not 0 <= d <= H - s < H.

    Example:
        >>> prefix_weights(6, 1, 2, 'linear')
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000, 0.0000], dtype=torch.float64)
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f'schedule: {schedule!r}; {closest(schedule, SCHEDULES)}')
    end = horizon - execute
    if not 0 <= delay <= end < horizon:
        raise InputError(f'delay: {delay}, execute: {execute}; allowed: 0 <= delay <= {horizon} - execute < {horizon}')
    place = torch.arange(horizon, dtype=torch.float64)
    between = SCHEDULES[schedule]((end - place) / (end - delay + 1))
    return torch.where(place < delay, 1.0, torch.where(place < end, between, 0.0))


def guidance_weight(noise: float, data: float, turn: float, beta: float) -> float:
    """Return how strongly guidance acts on the velocity: at most beta.

    Where the path is ``x_t = a noise + b data``, a change g of the score of x changes its velocity by ``a w / b g``
    with ``w = a b' - a' b``. The score of the target is the error of the estimated data by their variance,
    ``r^2 = a^2 / (a^2 + b^2)``, so the weight is ``w (a^2 + b^2) / (a b)``; on the straight path that is
    ``(1 - t) / (t r^2)`` (arXiv 2506.07339, equations 2 and 4; arXiv 2310.04432).

    Args:
        noise: a.
        data: b.
        turn: w, above 0.
        beta: bound, which holds at both ends of the path.

    Example:
        >>> [round(guidance_weight(1 - t, t, 1.0, 10.0), 2) for t in (0.0, 0.1, 0.5)]
        [10.0, 9.11, 2.0]
    """
    below = noise * data
    above = turn * (noise ** 2 + data ** 2)
    return beta if above >= beta * below else above / below


@dataclass(frozen=True)
class Guide:
    """Holds what a chunk is led to go on from.

    Args:
        actions: (B, n, A) of the plan in force from the chunk's first step on, n at most H; never padded.
        weights: (n,) or more, how firmly each is held to, from 0 to 1; see `prefix_weights`.
        beta: bound of the guidance, 0 or more.

    Raises:
        InputError: for another shape, or a beta that is negative.

    Example:
        >>> guide = Guide(torch.zeros(1, 3, 2), prefix_weights(6, 1, 2, 'linear'))
        >>> guide.error(torch.ones(1, 6, 2))[0, :, 0]
        tensor([-1.0000, -0.7500, -0.5000,  0.0000,  0.0000,  0.0000])
    """

    actions: Tensor
    weights: Tensor
    beta: float = 5.0

    def __post_init__(self) -> None:
        actions, weights = self.actions, self.weights
        if actions.ndim != 3 or weights.ndim != 1 or not 0 < actions.shape[1] <= len(weights):
            raise InputError(f'guide: actions of shape {tuple(actions.shape)} and weights of {tuple(weights.shape)}; '
                             'allowed: (B, n, A) and (n or more,), n above 0')
        if not self.beta >= 0:
            raise InputError(f'guide: beta {self.beta}; allowed: 0 or more')

    def normalised(self, change: Callable[[Tensor], Tensor]) -> Guide:
        """Return the same with other units."""
        return replace(self, actions=change(self.actions))

    def to(self, like: Tensor) -> Guide:
        """Return a copy on the device and of the type of ``like``."""
        return Guide(self.actions.to(like), self.weights.to(like), self.beta)

    def error(self, clean: Tensor) -> Tensor:
        """Return ``W (Y - A)``, which is 0 beyond what is left of the plan: (B, H, A)."""
        count = self.actions.shape[1]
        error = self.weights[:count, None].to(clean) * (self.actions.to(clean) - clean[:, :count])
        return torch.nn.functional.pad(error, (0, 0, 0, clean.shape[1] - count))


def pull(estimate: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, guide: Guide) -> tuple[Tensor, Tensor]:
    """Return what was computed on the way to an estimate A(x) of the actions, and ``J^T W (Y - A(x)), J = dA/dx``.

    One vector-Jacobian product through all that ``estimate`` does. Works under `torch.no_grad`; nothing that is
    returned has a gradient.

    Args:
        estimate: x (B, H, A) -> what is needed besides, estimated actions (B, H, A).
        x: (B, H, A).
        guide: Y and W.

    Raises:
        InputError: inside `torch.inference_mode`, and for tensors made there.

    Example:
        >>> guide = Guide(torch.ones(1, 1, 1), torch.ones(1))
        >>> pull(lambda x: (x, 3 * x), torch.zeros(1, 2, 1), guide)[1].flatten()
        tensor([3., 0.])
    """
    if torch.is_inference_mode_enabled() or x.is_inference():
        raise InputError('guided chunks need a gradient, which torch.inference_mode forbids; allowed: torch.no_grad')
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        beside, clean = estimate(x)
        found, = torch.autograd.grad(clean, x, guide.error(clean.detach()))
    return beside.detach(), found


def steer(field: Field, guide: Guide, path: Path) -> Field:
    """Return the field that leads to chunks which go on from the plan in force.

    ``v + min(beta, (1 - t) / (t r^2)) J^T W (Y - A)`` on the straight path, with the estimate ``A = x + (1 - t) v`` of
    the actions and its true Jacobian J: real-time chunking (arXiv 2506.07339, equations 1 to 4).

    Args:
        field: velocity v of x (B, H, A) at t.
        guide: where to go on from.
        path: that the field was learned on.

    Raises:
        InputError: from the field, as for `pull`.

    Example:
        >>> from flow_vla_core.generators.paths import StraightPath
        >>> guide = Guide(torch.ones(1, 1, 1), torch.ones(1))
        >>> steer(lambda x, t: 0 * x, guide, StraightPath())(torch.zeros(1, 2, 1), 0.5).flatten()
        tensor([2., 0.])
    """
    def steered(x: Tensor, t: float) -> Tensor:
        noise, data, turn = path.shares(t)

        def estimate(x: Tensor) -> tuple[Tensor, Tensor]:
            velocity = field(x, t)
            return velocity, path.clean(x, velocity, t)

        velocity, correction = pull(estimate, x, guide)
        return velocity + guidance_weight(noise, data, turn, guide.beta) * correction

    return steered
