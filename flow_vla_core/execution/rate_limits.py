"""Bounds on velocities and displacements (kinds ``ee_twist``, ``joint_velocity``, ``ee_delta``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flow_vla_core.contract import ActionPart
from flow_vla_core.execution.braking import Stop, stopping_speed
from flow_vla_core.execution.limiter import Limiter
from flow_vla_core.execution.motion import Motion

__all__ = ['JerkRateLimiter', 'RateBounds', 'RateLimiter']

AXES = ('x', 'y', 'z')
ROUNDING = 1e-9


@dataclass(frozen=True)
class RateBounds:
    """Holds what bounds a velocity; a displacement (``ee_delta``) is bounded as the velocity that it means.

    Args:
        low: (n,) unit/s.
        high: (n,) unit/s.
        acceleration: (n,) unit/s^2, may be infinite.
        jerk: (n,) unit/s^3, may be infinite.
        to_rate: velocity of a plan's value of 1.
        from_rate: command of a velocity of 1.
        box: corners (2, n) of the workspace, infinite where there is none.
        axes: which coordinate of the measured position each value moves, 0 where none.
    """

    low: np.ndarray
    high: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    to_rate: float
    from_rate: float
    box: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, part: ActionPart, period: float, step: float) -> RateBounds:
        """Read the bounds of an action part; ``period`` of control and ``step`` of the plan in s."""
        limits, displacement = part.limits, part.kind == 'ee_delta'
        to_rate = 1 / step if displacement else 1.0
        velocity = _filled(limits.velocity, part.dim, np.inf)
        return cls(np.maximum(-velocity, _filled(limits.min, part.dim, -np.inf) * to_rate),
                   np.minimum(velocity, _filled(limits.max, part.dim, np.inf) * to_rate),
                   _filled(limits.acceleration, part.dim, np.inf), _filled(limits.jerk, part.dim, np.inf),
                   to_rate, period if displacement else 1.0, workspace(part),
                   np.array([AXES.index(name) if name in AXES else 0 for name in part.names]))

    @property
    def boxed(self) -> bool:
        """Whether there is a workspace."""
        return bool(np.isfinite(self.box).any())

    def room(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far (n,) each value may go down and up from a measured position (3,); 0 beyond a face."""
        here = np.asarray(position)[self.axes]
        return np.maximum(here - self.box[0], 0), np.maximum(self.box[1] - here, 0)


class RateLimiter(Limiter):
    """Bounds velocity, acceleration and workspace.

    The value is clipped to ``min``, ``max`` and ``velocity``, its change to ``acceleration``; a velocity that would
    carry the measured end effector out of the workspace is lowered in time to stop at its face. Where measured motion
    and acceleration contradict each other, the workspace wins. Outside of it only the way back is open.

    Args:
        bounds: of the part; its jerk is not used.
        period: of control, s.
    """

    def __init__(self, bounds: RateBounds, period: float) -> None:
        self._bounds, self._period, self._boxed = bounds, period, bounds.boxed
        self.clear()

    @property
    def needs_position(self) -> bool:
        """Whether there is a workspace."""
        return self._boxed

    @property
    def last(self) -> np.ndarray:
        """The last command (n,); a velocity at rest is 0."""
        return self._rate * self._bounds.from_rate

    @property
    def rates(self) -> np.ndarray:
        """Velocities (n,) of the last command."""
        return self._rate

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return bool(np.any(self._rate))

    def clear(self) -> None:
        """Forget the last command: from rest."""
        self._rate = np.zeros(len(self._bounds.low))

    def start_at(self, values: np.ndarray) -> None:
        """Do nothing: a velocity begins at 0, wherever the robot is."""

    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound the velocity that the plan asks for."""
        bounds, rate = self._bounds, self._rate
        if elapsed > 0:
            change = bounds.acceleration * elapsed
            rate = np.clip(np.clip(goal.values * bounds.to_rate, bounds.low, bounds.high), rate - change, rate + change)
        if self._boxed and position is not None:
            down, up = (stopping_speed(room, bounds.acceleration, self._period) for room in bounds.room(position))
            rate = np.clip(rate, -down, up)
        self._rate = rate
        return self.last

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down to 0."""
        return self.follow(Motion.at_rest(np.zeros(len(self._rate))), elapsed, position)

    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (n,) that a goal would be without limits."""
        return goal.values * self._bounds.to_rate * self._bounds.from_rate


class JerkRateLimiter(Limiter):
    """Bounds velocity, acceleration, jerk and workspace.

    The plan's velocity is met in the shortest time, in the frame that accelerates with the plan. A component goes
    there only if it could still stop within velocity and workspace afterwards; otherwise it takes one step of its
    fastest stop. Outside of the workspace only the way back is open. The bounds on motion win over the workspace: a
    robot that lags behind its commands may pass a face by as much as it lags.

    Args:
        bounds: of the part, acceleration and jerk finite.
        period: of control, s.
    """

    def __init__(self, bounds: RateBounds, period: float) -> None:
        self._bounds, self._period, self._boxed = bounds, period, bounds.boxed
        self.clear()

    @property
    def needs_position(self) -> bool:
        """Whether there is a workspace."""
        return self._boxed

    @property
    def last(self) -> np.ndarray:
        """The last command (n,); a velocity at rest is 0."""
        return self._motion.values * self._bounds.from_rate

    @property
    def rates(self) -> np.ndarray:
        """Velocities (n,) of the last command."""
        return self._motion.values

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return bool(self._motion.values.any() or self._motion.rates.any())

    def clear(self) -> None:
        """Forget the last command: from rest."""
        self._motion = Motion.at_rest(np.zeros(len(self._bounds.low)))

    def start_at(self, values: np.ndarray) -> None:
        """Do nothing: a velocity begins at 0, wherever the robot is."""

    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound the velocity that the plan asks for."""
        if elapsed > 0:
            wish = self._approach(goal, elapsed)
            safe = self._stoppable(wish, position)
            self._motion = wish if safe.all() else wish.where(safe, self._meet(*np.zeros((2, len(safe))), elapsed))
        return self.last

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down to 0, as fast as the bounds allow."""
        if elapsed > 0:
            self._motion = self._meet(*np.zeros((2, len(self._bounds.low))), elapsed)
        return self.last

    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (n,) that a goal would be without limits."""
        return goal.values * self._bounds.to_rate * self._bounds.from_rate

    def _approach(self, goal: Motion, elapsed: float) -> Motion:
        bounds = self._bounds
        wanted = goal.values * bounds.to_rate
        values = np.clip(wanted, bounds.low, bounds.high)
        slopes = goal.rates * bounds.to_rate
        feasible = (values == wanted) & (np.abs(slopes) < bounds.acceleration)
        return self._meet(values, np.where(feasible, slopes, 0), elapsed)

    def _meet(self, values: np.ndarray, slopes: np.ndarray, elapsed: float) -> Motion:
        """Take one step towards velocities (n,) that change at ``slopes`` (n,) and are reached now."""
        bounds, motion = self._bounds, self._motion
        stop = Stop(motion.values - (values - slopes * elapsed), motion.rates - slopes,
                    bounds.acceleration + slopes, bounds.acceleration - slopes, bounds.jerk)
        _, left, change = stop.at(elapsed)
        return Motion(values + left, slopes + change, np.zeros_like(values))

    def _stoppable(self, wish: Motion, position: np.ndarray | None) -> np.ndarray:
        """Tell which components (n,) stay within velocity and workspace when they stop from there."""
        bounds = self._bounds
        peak = wish.values + wish.rates * np.abs(wish.rates) / (2 * bounds.jerk)
        lowest, highest = np.minimum(wish.values, peak), np.maximum(wish.values, peak)
        safe = (lowest >= bounds.low - ROUNDING) & (highest <= bounds.high + ROUNDING)
        if not self._boxed or position is None:
            return safe
        # The robot keeps this velocity for a period before it hears of the next.
        back, ahead = Stop(wish.values, wish.rates, bounds.acceleration, bounds.acceleration, bounds.jerk).reach()
        down, up = bounds.room(position)
        return (safe & (back + np.minimum(lowest, 0) * self._period >= -down - ROUNDING)
                & (ahead + np.maximum(highest, 0) * self._period <= up + ROUNDING))


def workspace(part: ActionPart) -> np.ndarray:
    """Return the corners (2, n) of a part's workspace box, infinite where there is none."""
    limits = part.limits
    box = np.stack([np.full(part.dim, -np.inf), np.full(part.dim, np.inf)])
    if limits.workspace_min is not None and part.kind.startswith('ee_'):
        for index, name in enumerate(part.names):
            if name in AXES:
                axis = AXES.index(name)
                box[:, index] = limits.workspace_min[axis], limits.workspace_max[axis]
    return box


def _filled(values: tuple[float, ...] | None, dim: int, default: float) -> np.ndarray:
    return np.full(dim, default) if values is None else np.array(values, np.float64)
