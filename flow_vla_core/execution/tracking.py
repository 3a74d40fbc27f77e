"""Moves values towards a plan within bounds on their derivatives; one tick at a time, without state."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import ruckig

from flow_vla_core.execution.braking import Stop, stopping_speed
from flow_vla_core.execution.motion import Motion, bounded

__all__ = ['FreeTracker', 'JerkTracker', 'RampTracker', 'Tracker', 'TurnTracker']

FEASIBLE = 0.9      # of the acceleration: a plan that asks for more is tracked as if it did not accelerate
ROOM = 1e-3         # of the velocity
ROUNDING = 1e-9
GAIN = 20.0         # 1/s: what is left to a plan that is near fades with exp(-GAIN t)
NEAR = 2.0          # of the jerk: a plan is near if the linear law asks for no more
COARSE = 0.3        # of a tick in 1 / GAIN: with fewer ticks the gain would be too much


class Tracker(ABC):
    """Declares how values move on: towards a goal, or to rest."""

    @abstractmethod
    def track(self, motion: Motion, goal: Motion, elapsed: float) -> Motion:
        """Return what comes ``elapsed`` s, above 0, after ``motion``; the goal is where the plan is by then."""

    @abstractmethod
    def brake(self, motion: Motion, elapsed: float) -> Motion:
        """Return what comes ``elapsed`` s, above 0, after ``motion`` on the way to rest."""


class FreeTracker(Tracker):
    """Bounds the range alone: the goal is met at once.

    Args:
        low: (n,) of the range.
        high: (n,).
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self._low, self._high = low, high

    def track(self, motion: Motion, goal: Motion, elapsed: float) -> Motion:
        """Go to the goal."""
        values = bounded(goal.values, self._low, self._high)
        return Motion(values, np.where(values == goal.values, goal.rates, 0), np.zeros_like(values))

    def brake(self, motion: Motion, elapsed: float) -> Motion:
        """Stay."""
        return Motion.at_rest(motion.values)


class RampTracker(Tracker):
    r"""Bounds range, velocity and acceleration, each by finite differences.

    The plan's own velocity is matched, and what is left to it is covered at the speed from which one can still stop.

    Args:
        low: (n,) of the range, may be infinite as all bounds may.
        high: (n,).
        velocity: (n,).
        acceleration: (n,).
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> None:
        self._low, self._high, self._velocity, self._acceleration = low, high, velocity, acceleration

    def track(self, motion: Motion, goal: Motion, elapsed: float) -> Motion:
        """Close in on the goal without passing it."""
        values = bounded(goal.values, self._low, self._high)
        drift = np.where(values == goal.values, bounded(goal.rates, -self._velocity, self._velocity), 0)
        left = values - motion.values - drift * elapsed
        return self._step(motion, drift + np.sign(left) * stopping_speed(np.abs(left), self._acceleration, elapsed),
                          elapsed)

    def brake(self, motion: Motion, elapsed: float) -> Motion:
        """Slow down, then stay."""
        return self._step(motion, np.zeros_like(motion.rates), elapsed)

    def _step(self, motion: Motion, rate: np.ndarray, elapsed: float) -> Motion:
        change = self._acceleration * elapsed
        rate = bounded(rate, -self._velocity, self._velocity)
        rate = bounded(rate, motion.rates - change, motion.rates + change)
        down = stopping_speed(motion.values - self._low, self._acceleration, elapsed)
        up = stopping_speed(self._high - motion.values, self._acceleration, elapsed)
        rate = bounded(rate, -down, up)
        return Motion(bounded(motion.values + rate * elapsed, self._low, self._high), rate, np.zeros_like(rate))


class TurnTracker(Tracker):
    """Bounds the lengths of velocity and acceleration of a vector, whatever its direction; for rotations.

    Args:
        velocity: bound, may be infinite.
        acceleration: bound, may be infinite.
    """

    def __init__(self, velocity: float, acceleration: float) -> None:
        self._velocity, self._acceleration = velocity, np.array(acceleration)

    def track(self, motion: Motion, goal: Motion, elapsed: float) -> Motion:
        """Close in on the goal without passing it."""
        drift = _shorten(goal.rates, self._velocity)
        left = goal.values - motion.values - drift * elapsed
        distance = np.linalg.norm(left)
        speed = stopping_speed(distance, self._acceleration, elapsed)
        return self._step(motion, drift + left * (speed / distance if distance > 0 else 0), elapsed)

    def brake(self, motion: Motion, elapsed: float) -> Motion:
        """Slow down, then stay."""
        return self._step(motion, np.zeros_like(motion.rates), elapsed)

    def _step(self, motion: Motion, rate: np.ndarray, elapsed: float) -> Motion:
        rate = _shorten(rate, self._velocity)
        rate = motion.rates + _shorten(rate - motion.rates, self._acceleration * elapsed)
        return Motion(motion.values + rate * elapsed, rate, np.zeros_like(rate))


class JerkTracker(Tracker):
    r"""Bounds range, velocity, acceleration and jerk: gentle near the plan, time-optimal on the way to it.

    The difference :math:`e(s) = x(s) - (x^* + v^* s + a^* s^2 / 2)` to the plan's motion is brought to rest at 0. From
    afar this is done by ruckig's online trajectory generation (Berscheid and Kroeger, arXiv 2105.04830), whose jerk is
    that of :math:`x`. Near the plan, up to where it asks for twice the bound on jerk, it is done by the linear law
    :math:`\dddot e = -\lambda^3 e - 3 \lambda^2 \dot e - 3 \lambda \ddot e`, cut to the bounds, whose three poles are
    :math:`-\lambda`: time-optimal ways go from one bound to the other, and meet a plan where it would be if it went on
    accelerating as it does now; one whose acceleration jumps from action to action never lets them come to rest.
    A steady plan is met without lag, one with the jerk :math:`j^*` with a lag of up to :math:`j^* / \lambda^3`.

    A component goes anywhere only if it could still stop within all bounds afterwards; otherwise, or when ruckig fails,
    it takes one step of its fastest stop, after which it can stop again. So no bound is ever passed, whatever the goals
    are.

    Args:
        low: (n,) of the range, may be infinite.
        high: (n,).
        velocity: (n,), finite as the others.
        acceleration: (n,).
        jerk: (n,).
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray,
                 jerk: np.ndarray) -> None:
        self._low, self._high, self._velocity = low, high, velocity
        self._acceleration, self._jerk = acceleration, jerk
        dim = len(low)
        self._generator, self._path = ruckig.Ruckig(dim), ruckig.Trajectory(dim)
        self._input = ruckig.InputParameter(dim)
        self._input.synchronization = ruckig.Synchronization.No
        self._input.max_jerk = jerk.tolist()

    def track(self, motion: Motion, goal: Motion, elapsed: float) -> Motion:
        """Take one step towards the goal, or of the stop."""
        goal = self._feasible(goal)
        wish, safe = self._settle(motion, goal, elapsed)
        # A plan that accelerates soon passes the bound on velocity; one that is steady does not.
        for way in (goal, Motion(goal.values, goal.rates, np.zeros_like(goal.curvatures))):
            if safe.all():
                return wish
            other, other_safe = self._attempt(motion, way, elapsed)
            wish, safe = wish.where(safe, other), safe | other_safe
        return wish if safe.all() else wish.where(safe, self.brake(motion, elapsed))

    def brake(self, motion: Motion, elapsed: float) -> Motion:
        """Take one step of the fastest stop."""
        way, rates, curvatures = self._stop(motion).at(elapsed)
        return Motion(bounded(motion.values + way, self._low, self._high), rates, curvatures)

    def _stop(self, motion: Motion) -> Stop:
        return Stop(motion.rates, motion.curvatures, self._acceleration, self._acceleration, self._jerk)

    def _feasible(self, goal: Motion) -> Motion:
        values = bounded(goal.values, self._low, self._high)
        inside = values == goal.values
        # A frame as fast as the bound would leave no room to move in it.
        top = (1 - ROOM) * self._velocity
        rates = bounded(goal.rates, -top, top)
        feasible = inside & (rates == goal.rates) & (np.abs(goal.curvatures) < FEASIBLE * self._acceleration)
        return Motion(values, np.where(inside, rates, 0), np.where(feasible, goal.curvatures, 0))

    def _settle(self, motion: Motion, goal: Motion, elapsed: float) -> tuple[Motion, np.ndarray]:
        """Return the next state with what is left to the goal fading, and which components (n,) of it may be used."""
        gain = min(GAIN, COARSE / elapsed)
        left = _left(motion, goal, elapsed)
        wanted = -gain * (gain * (gain * left.values + 3 * left.rates) + 3 * left.curvatures)
        curvatures = motion.curvatures + bounded(wanted, -self._jerk, self._jerk) * elapsed
        change = bounded(curvatures, -self._acceleration, self._acceleration) - motion.curvatures
        wish = Motion(motion.values + elapsed * (motion.rates + elapsed * (motion.curvatures / 2 + change / 6)),
                      motion.rates + elapsed * (motion.curvatures + change / 2), motion.curvatures + change)
        near = np.abs(wanted) <= NEAR * self._jerk
        return wish, near & self._allowed(motion, wish, elapsed) & self._stoppable(wish)

    def _attempt(self, motion: Motion, goal: Motion, elapsed: float) -> tuple[Motion, np.ndarray]:
        """Return the next state on the way to the goal, in its frame, and which components (n,) of it may be used."""
        if (found := self._find(motion, goal, elapsed)) is None:
            return motion, np.zeros(len(self._low), bool)
        return found, self._allowed(motion, found, elapsed) & self._stoppable(found)

    def _find(self, motion: Motion, goal: Motion, elapsed: float) -> Motion | None:
        """Ask ruckig for the next state; None if it finds no way."""
        rates, curvatures, given, left = goal.rates, goal.curvatures, self._input, _left(motion, goal, elapsed)
        given.current_position, given.current_velocity = left.values.tolist(), left.rates.tolist()
        given.current_acceleration = left.curvatures.tolist()
        given.max_velocity = (self._velocity - rates).tolist()
        given.min_velocity = (-self._velocity - rates).tolist()
        given.max_acceleration = (self._acceleration - curvatures).tolist()
        given.min_acceleration = (-self._acceleration - curvatures).tolist()
        try:
            result = self._generator.calculate(given, self._path)
        except ruckig.RuckigError:
            return None
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            return None
        way, speed, change = np.array(self._path.at_time(elapsed)[:3])
        return Motion(goal.values + way, rates + speed, curvatures + change)

    def _allowed(self, motion: Motion, wish: Motion, elapsed: float) -> np.ndarray:
        """Tell which components (n,) are joined to ``motion`` within all bounds; NaN is not."""
        jerk = self._jerk * elapsed * (1 + ROUNDING)
        change = wish.curvatures - motion.curvatures
        speed = wish.rates - motion.rates - motion.curvatures * elapsed
        way = wish.values - motion.values - elapsed * (motion.rates + motion.curvatures * elapsed / 2)
        return ((np.abs(change) <= jerk + ROUNDING) & (np.abs(speed) <= jerk * elapsed / 2 + ROUNDING)
                & (np.abs(way) <= jerk * elapsed ** 2 / 6 + 1e-3 * ROUNDING)
                & (np.abs(wish.curvatures) <= self._acceleration + ROUNDING)
                & (np.abs(wish.values - motion.values) <= self._velocity * elapsed + 1e-3 * ROUNDING))

    def _stoppable(self, wish: Motion) -> np.ndarray:
        """Tell which components (n,) stay within range and velocity when they stop from there."""
        peak = wish.rates + wish.curvatures * np.abs(wish.curvatures) / (2 * self._jerk)
        top = np.maximum(np.abs(wish.rates), np.abs(peak))
        slow = top <= self._velocity + ROUNDING
        # No stop takes longer than bringing the acceleration to 0 first: most are far from the ends of the range.
        far = top * ((np.abs(wish.curvatures) + self._acceleration) / self._jerk + top / self._acceleration)
        if ((wish.values - far > self._low) & (wish.values + far < self._high)).all():
            return slow
        lowest, highest = self._stop(wish).reach()
        return (slow & (wish.values + lowest >= self._low - 1e-3 * ROUNDING)
                & (wish.values + highest <= self._high + 1e-3 * ROUNDING))


def _left(motion: Motion, goal: Motion, elapsed: float) -> Motion:
    """Return how ``motion`` differs from the plan's motion ``elapsed`` s before it comes to the goal."""
    return Motion(motion.values - goal.values + elapsed * (goal.rates - elapsed * goal.curvatures / 2),
                  motion.rates - goal.rates + elapsed * goal.curvatures, motion.curvatures - goal.curvatures)


def _shorten(vector: np.ndarray, length: float) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector if norm <= length else vector * (length / norm)
