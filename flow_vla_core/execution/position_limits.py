"""Bounds on positions (kinds ``joint_position``, ``ee_pose``, ``gripper``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flow_vla_core.execution import rotations
from flow_vla_core.execution.limiter import Limiter
from flow_vla_core.execution.motion import Motion
from flow_vla_core.execution.tracking import Tracker

__all__ = ['JoinedLimiter', 'PositionLimiter', 'RotationLimiter']


class PositionLimiter(Limiter):
    """Bounds positions: the command stays in its range, and a tracker says how it moves there.

    Args:
        low: (n,) of the range, may be infinite.
        high: (n,).
        tracker: bounds the motion.
    """

    needs_position = False

    def __init__(self, low: np.ndarray, high: np.ndarray, tracker: Tracker) -> None:
        self._low, self._high, self._tracker = low, high, tracker
        self.clear()

    @property
    def last(self) -> np.ndarray | None:
        """The last command (n,)."""
        return None if self._motion is None else self._motion.values

    @property
    def rates(self) -> np.ndarray:
        """Velocities (n,) of the last command."""
        return np.zeros(len(self._low)) if self._motion is None else self._motion.rates

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return self._motion is not None and self._motion.moving

    def clear(self) -> None:
        """Forget the last command."""
        self._motion: Motion | None = None

    def start_at(self, values: np.ndarray) -> None:
        """Begin at the measured position (n,), unless there is a command already."""
        if self._motion is None and np.isfinite(values).all():
            self._motion = Motion.at_rest(np.clip(values, self._low, self._high))

    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound the positions that the plan asks for."""
        self.start_at(goal.values)
        if elapsed > 0:
            self._motion = self._tracker.track(self._motion, goal, elapsed)
        return self._motion.values

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down, then hold."""
        if self._motion is None:
            return np.zeros(len(self._low))
        if elapsed > 0:
            self._motion = self._tracker.brake(self._motion, elapsed)
        return self._motion.values

    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (n,) that a goal would be without limits."""
        return goal.values


class RotationLimiter(Limiter):
    """Bounds how fast a rotation turns: as an angle, whatever the axis, also near half a turn.

    Each tick a tracker moves in the rotation vectors seen from the last command, (0, 0, 0) being that command. The
    range bounds what the plan asks for.

    Args:
        low: (3,) of the range of the rotation vector, rad.
        high: (3,).
        tracker: bounds the motion.
    """

    needs_position = False

    def __init__(self, low: np.ndarray, high: np.ndarray, tracker: Tracker) -> None:
        self._low, self._high, self._tracker = low, high, tracker
        self.clear()

    @property
    def last(self) -> np.ndarray | None:
        """The last command (3,), a rotation vector of at most pi."""
        return None if self._turn is None else rotations.to_vector(self._turn)

    @property
    def rates(self) -> np.ndarray:
        """Angular velocity (3,) of the last command, in the frame of the pose."""
        return np.zeros(3) if self._turn is None else rotations.rotate(self._turn, self._motion.rates)

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return self._motion.moving

    def clear(self) -> None:
        """Forget the last command."""
        self._turn: np.ndarray | None = None
        self._motion = Motion.at_rest(np.zeros(3))

    def start_at(self, values: np.ndarray) -> None:
        """Begin at the measured rotation vector (3,), unless there is a command already."""
        if self._turn is None and np.isfinite(values).all():
            self._turn = rotations.from_vector(np.clip(values, self._low, self._high))

    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound the rotation that the plan asks for."""
        self.start_at(goal.values)
        if elapsed > 0:
            self._turn_by(self._tracker.track(self._motion, self._seen(goal), elapsed))
        return self.last

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down, then hold."""
        if self._turn is None:
            return np.zeros(3)
        if elapsed > 0:
            self._turn_by(self._tracker.brake(self._motion, elapsed))
        return self.last

    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (3,) that a goal would be without limits."""
        return rotations.to_vector(rotations.from_vector(goal.values))

    def _seen(self, goal: Motion) -> Motion:
        """Turn a goal into the frame of the last command."""
        back = self._turn * np.array([1.0, -1.0, -1.0, -1.0])
        wanted = rotations.from_vector(np.clip(goal.values, self._low, self._high))
        return Motion(rotations.between(self._turn, wanted), rotations.rotate(back, goal.rates),
                      rotations.rotate(back, goal.curvatures))

    def _turn_by(self, motion: Motion) -> None:
        turn = rotations.multiply(self._turn, rotations.from_vector(motion.values))
        self._turn = turn / np.linalg.norm(turn)
        self._motion = Motion(np.zeros(3), motion.rates, motion.curvatures)


class JoinedLimiter(Limiter):
    """Joins limiters for different values of one part.

    Args:
        limiters: each with the places of its values in the part; together they have every place once.
    """

    def __init__(self, limiters: Sequence[tuple[np.ndarray, Limiter]]) -> None:
        self._limiters = limiters
        self._size = sum(len(place) for place, _ in limiters)

    @property
    def needs_position(self) -> bool:
        """Whether one of them does."""
        return any(limiter.needs_position for _, limiter in self._limiters)

    @property
    def last(self) -> np.ndarray | None:
        """The last command (n,)."""
        values = [limiter.last for _, limiter in self._limiters]
        return None if any(value is None for value in values) else self._join(values)

    @property
    def rates(self) -> np.ndarray:
        """Velocities (n,) of the last command."""
        return self._join([limiter.rates for _, limiter in self._limiters])

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return any(limiter.moving for _, limiter in self._limiters)

    def clear(self) -> None:
        """Forget the last command."""
        for _, limiter in self._limiters:
            limiter.clear()

    def start_at(self, values: np.ndarray) -> None:
        """Begin at the measured values (n,), unless there is a command already."""
        for place, limiter in self._limiters:
            limiter.start_at(values[place])

    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound what the plan asks for now."""
        return self._join([limiter.follow(goal[place], elapsed, position) for place, limiter in self._limiters])

    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down, then stay."""
        return self._join([limiter.rest(elapsed, position) for _, limiter in self._limiters])

    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (n,) that a goal would be without limits."""
        return self._join([limiter.unlimited(goal[place]) for place, limiter in self._limiters])

    def _join(self, values: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.empty(self._size)
        for (place, _), value in zip(self._limiters, values):
            joined[place] = value
        return joined
