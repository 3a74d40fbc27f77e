"""Bounds on commands, one limiter for each action part; nothing changes a command after them."""

from __future__ import annotations

import numpy as np

from flow_vla_core.contract import ActionPart

__all__ = ['PositionLimiter', 'RateLimiter', 'make_limiter', 'stopping_speed']

AXES = ('x', 'y', 'z')


def stopping_speed(distance: np.ndarray, acceleration: np.ndarray, period: float) -> np.ndarray:
    r"""Compute the largest speed from which one can still stop within a distance.

    One more period is driven at speed :math:`v`, then it is braked: the largest :math:`v` with
    :math:`v T + v^2 / 2a \le d` is :math:`v = \sqrt{(aT)^2 + 2ad} - aT`, or :math:`d / T` without a bound on
    acceleration. Where the distance is negative the speed is 0.

    Args:
        distance: (n,) to the place that must not be passed.
        acceleration: (n,) bounds, may be infinite.
        period: T, s, above 0.
    """
    distance = np.maximum(distance, 0)
    with np.errstate(invalid='ignore', over='ignore'):
        gain = acceleration * period
        # The difference of two near numbers, written without cancellation.
        braked = 2 * acceleration * distance / (np.sqrt(gain ** 2 + 2 * acceleration * distance) + gain)
    return np.where(np.isfinite(acceleration), np.minimum(braked, distance / period), distance / period)


class RateLimiter:
    """Bounds velocities and displacements (kinds ``ee_twist``, ``joint_velocity``, ``ee_delta``).

    The value is clipped to ``min``, ``max`` and ``velocity``, its change to ``acceleration``; a velocity that would
    carry the measured end effector out of the workspace is lowered in time to stop at its face. Where measured motion
    and acceleration contradict each other, the workspace wins. Outside of it only the way back is open.

    Args:
        part: of the action; a displacement (``ee_delta``) is bounded as the velocity that it means.
        period: of control, s.
        step: time that one displacement of the plan is for, s.
    """

    def __init__(self, part: ActionPart, period: float, step: float) -> None:
        limits = part.limits
        self._period = period
        self._to_rate = 1 / step if part.kind == 'ee_delta' else 1.0
        self._from_rate = period if part.kind == 'ee_delta' else 1.0
        velocity = _or_infinite(limits.velocity, part.dim)
        self._low = np.maximum(-velocity, -_or_infinite(_negated(limits.min), part.dim) * self._to_rate)
        self._high = np.minimum(velocity, _or_infinite(limits.max, part.dim) * self._to_rate)
        self._acceleration = _or_infinite(limits.acceleration, part.dim)
        self._box = _box(part)
        self._axes = [AXES.index(name) if name in AXES else -1 for name in part.names]
        self.needs_position = limits.workspace_min is not None
        self.clear()

    @property
    def known(self) -> bool:
        """Whether there is a command to give; a velocity at rest is 0."""
        return True

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return bool(np.any(self._rate))

    def clear(self) -> None:
        """Forget the last command: from rest."""
        self._rate = np.zeros(len(self._axes))

    def start_at(self, values: np.ndarray) -> None:
        """Do nothing: a velocity begins at 0, wherever the robot is."""

    def follow(self, target: np.ndarray, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound a target (n,) of the plan; ``elapsed`` s since the last command, ``position`` (3,) measured."""
        rate = np.clip(target * self._to_rate, self._low, self._high)
        if elapsed > 0:
            change = self._acceleration * elapsed
            rate = np.clip(rate, self._rate - change, self._rate + change)
        else:
            rate = self._rate
        if self._box is not None and position is not None:
            rate = self._inside(rate, position)
        self._rate = rate
        return rate * self._from_rate

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down to 0."""
        return self.follow(np.zeros(len(self._axes)), elapsed, position)

    def unlimited(self, target: np.ndarray) -> np.ndarray:
        """Return the command (n,) that a target would be without limits."""
        return target * self._to_rate * self._from_rate

    def _inside(self, rate: np.ndarray, position: np.ndarray) -> np.ndarray:
        low, high = self._box
        rate = rate.copy()
        for index, axis in enumerate(self._axes):
            if axis >= 0:
                room = np.array([position[axis] - low[axis], high[axis] - position[axis]])
                down, up = stopping_speed(room, self._acceleration[index], self._period)
                rate[index] = np.clip(rate[index], -down, up)
        return rate


class PositionLimiter:
    """Bounds positions (kinds ``joint_position``, ``ee_pose``, ``gripper``).

    The command stays between ``min`` and ``max`` and inside the workspace, moves no faster than ``velocity``, and its
    velocity changes no faster than ``acceleration``; it is lowered in time to stop at a bound. At rest the last
    command is held.

    Args:
        part: of the action.
    """

    needs_position = False

    def __init__(self, part: ActionPart) -> None:
        limits = part.limits
        self._low = -_or_infinite(_negated(limits.min), part.dim)
        self._high = _or_infinite(limits.max, part.dim)
        self._velocity = _or_infinite(limits.velocity, part.dim)
        self._acceleration = _or_infinite(limits.acceleration, part.dim)
        if (box := _box(part)) is not None:
            for index, name in enumerate(part.names):
                if name in AXES:
                    self._low[index] = max(self._low[index], box[0][AXES.index(name)])
                    self._high[index] = min(self._high[index], box[1][AXES.index(name)])
        self.clear()

    @property
    def known(self) -> bool:
        """Whether there is a command to give."""
        return self._value is not None

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return bool(np.any(self._rate))

    def clear(self) -> None:
        """Forget the last command."""
        self._value: np.ndarray | None = None
        self._target: np.ndarray | None = None
        self._rate = np.zeros(len(self._low))

    def start_at(self, values: np.ndarray) -> None:
        """Begin at the measured position (n,), unless there is a command already."""
        if self._value is None:
            self._value = np.clip(np.asarray(values, np.float64), self._low, self._high)

    def follow(self, target: np.ndarray, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound a target (n,) of the plan; ``elapsed`` s since the last command."""
        target = np.clip(target, self._low, self._high)
        if self._value is None:
            self._value = target
        before = target if self._target is None else self._target
        self._target = target
        if elapsed > 0:
            # The target's own velocity is matched, and what is left to it is covered without passing it.
            drift = np.clip((target - before) / elapsed, -self._velocity, self._velocity)
            left = target - self._value - drift * elapsed
            self._step(drift + np.sign(left) * stopping_speed(np.abs(left), self._acceleration, elapsed), elapsed)
        return self._value

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down, then hold."""
        self._target = None
        if elapsed > 0 and self._value is not None:
            self._step(np.zeros_like(self._rate), elapsed)
        return np.zeros_like(self._rate) if self._value is None else self._value

    def unlimited(self, target: np.ndarray) -> np.ndarray:
        """Return the command (n,) that a target would be without limits."""
        return target

    def _step(self, rate: np.ndarray, elapsed: float) -> None:
        change = self._acceleration * elapsed
        rate = np.clip(rate, -self._velocity, self._velocity)
        rate = np.clip(rate, self._rate - change, self._rate + change)
        down = stopping_speed(self._value - self._low, self._acceleration, elapsed)
        up = stopping_speed(self._high - self._value, self._acceleration, elapsed)
        self._rate = np.clip(rate, -down, up)
        self._value = np.clip(self._value + self._rate * elapsed, self._low, self._high)


def make_limiter(part: ActionPart, period: float, step: float) -> PositionLimiter | RateLimiter:
    """Build the limiter of an action part; ``period`` of control and ``step`` of the plan in s."""
    if part.kind in ('ee_twist', 'joint_velocity', 'ee_delta'):
        return RateLimiter(part, period, step)
    return PositionLimiter(part)


def _or_infinite(values: tuple[float, ...] | None, dim: int) -> np.ndarray:
    return np.full(dim, np.inf) if values is None else np.array(values, np.float64)


def _negated(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(-value for value in values)


def _box(part: ActionPart) -> tuple[np.ndarray, np.ndarray] | None:
    limits = part.limits
    if limits.workspace_min is None or not part.kind.startswith('ee_'):
        return None
    return np.array(limits.workspace_min), np.array(limits.workspace_max)
