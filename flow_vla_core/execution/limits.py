"""Chooses the limiter of an action part; nothing changes a command after it."""

from __future__ import annotations

import numpy as np

from flow_vla_core.contract import ActionPart
from flow_vla_core.errors import ContractError
from flow_vla_core.execution.interpolation import rotation_of
from flow_vla_core.execution.limiter import Limiter
from flow_vla_core.execution.position_limits import JoinedLimiter, PositionLimiter, RotationLimiter
from flow_vla_core.execution.rate_limits import JerkRateLimiter, RateBounds, RateLimiter, workspace
from flow_vla_core.execution.tracking import FreeTracker, JerkTracker, RampTracker, Tracker, TurnTracker

__all__ = ['make_limiter']

RATES = ('ee_twist', 'joint_velocity', 'ee_delta')


def make_limiter(part: ActionPart, period: float, step: float) -> Limiter:
    """Build the limiter of an action part; ``period`` of control and ``step`` of the plan in s.

    Raises:
        ContractError: if the part has a bound on jerk but none on velocity or acceleration.
    """
    limits = part.limits
    missing = [key for key in ('velocity', 'acceleration') if getattr(limits, key) is None]
    if limits.jerk is not None and missing:
        raise ContractError(f'actions.{part.name}.limits.jerk needs limits.{missing[0]} beside it')
    if part.kind in RATES:
        bounds = RateBounds.of(part, period, step)
        return RateLimiter(bounds, period) if limits.jerk is None else JerkRateLimiter(bounds, period)
    turn = rotation_of(part)
    if turn is None:
        return _position_limiter(part, np.arange(part.dim))
    rest = np.setdiff1d(np.arange(part.dim), turn)
    others = [(rest, _position_limiter(part, rest))] if len(rest) else []
    return JoinedLimiter([(turn, _rotation_limiter(part, turn)), *others])


def _position_limiter(part: ActionPart, place: np.ndarray) -> Limiter:
    box = workspace(part)[:, place]
    low = np.maximum(np.array(part.limits.min)[place], box[0])
    high = np.minimum(np.array(part.limits.max)[place], box[1])
    velocity, acceleration, jerk = _bounds(part, place)
    if jerk is not None:
        tracker: Tracker = JerkTracker(low, high, velocity, acceleration, jerk)
    elif np.isfinite([*velocity, *acceleration]).any():
        tracker = RampTracker(low, high, velocity, acceleration)
    else:
        tracker = FreeTracker(low, high)
    return PositionLimiter(low, high, tracker)


def _rotation_limiter(part: ActionPart, place: np.ndarray) -> Limiter:
    """Build a limiter for the angle: the smallest of the three bounds counts.

    With a bound on jerk each axis of the body gets 1 / sqrt(3) of it, so that all together stay within it.
    """
    low, high = np.array(part.limits.min)[place], np.array(part.limits.max)[place]
    velocity, acceleration, jerk = _bounds(part, place)
    if jerk is None:
        return RotationLimiter(low, high, TurnTracker(velocity.min(), acceleration.min()))
    share = (np.full(3, bound.min() / np.sqrt(3)) for bound in (velocity, acceleration, jerk))
    return RotationLimiter(low, high, JerkTracker(np.full(3, -np.inf), np.full(3, np.inf), *share))


def _bounds(part: ActionPart, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    limits = part.limits
    velocity, acceleration = (np.full(len(place), np.inf) if bound is None else np.array(bound)[place]
                              for bound in (limits.velocity, limits.acceleration))
    return velocity, acceleration, None if limits.jerk is None else np.array(limits.jerk)[place]
