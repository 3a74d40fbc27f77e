"""The fastest stop within bounds on acceleration and jerk, in closed form."""

from __future__ import annotations

import numpy as np

__all__ = ['Stop', 'stopping_speed']


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


class Stop:
    r"""Brings velocity and acceleration to 0 in the shortest time: jerk -J, none, +J, for each component.

    Without a change of sign, for :math:`v + a |a| / 2J \ge 0`, the acceleration goes down to
    :math:`-p = -\min(A, \sqrt{J v + a^2 / 2})`, stays there for :math:`(v + a^2 / 2J - p^2 / J) / p`, and goes back
    to 0; every state on the way has the rest of this very stop as its own.

    Args:
        velocity: (n,) v.
        acceleration: (n,) a.
        down: (n,) largest deceleration A where the velocity is positive, above 0.
        up: (n,) the same where it is negative.
        jerk: (n,) J, above 0.

    Example:
        >>> stop = Stop(np.ones(1), np.zeros(1), np.full(1, 2.0), np.full(1, 2.0), np.full(1, 8.0))
        >>> [round(float(part[0]), 6) for part in stop.at(1.0)]
        [0.375, 0.0, 0.0]
    """

    def __init__(self, velocity: np.ndarray, acceleration: np.ndarray, down: np.ndarray, up: np.ndarray,
                 jerk: np.ndarray) -> None:
        positive = velocity + acceleration * np.abs(acceleration) / (2 * jerk) >= 0
        self._sign = sign = np.where(positive, 1.0, -1.0)
        self._jerk, self._velocity, self._acceleration = jerk, sign * velocity, sign * acceleration
        square = np.maximum(jerk * self._velocity + self._acceleration ** 2 / 2, 0)
        bound = np.where(positive, down, up)
        self._peak = peak = np.minimum(np.sqrt(square), bound)
        first = np.maximum(self._acceleration + peak, 0) / jerk
        second = np.maximum(square - peak ** 2, 0) / (jerk * bound)
        self._times = first, second, peak / jerk

    @property
    def duration(self) -> np.ndarray:
        """Time (n,) to rest, s."""
        return sum(self._times)

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute way, velocity and acceleration (n,) after a time, s; infinite for the end."""
        way, velocity, acceleration = np.zeros_like(self._velocity), self._velocity, self._acceleration
        left = time
        for jerk, span in zip((-self._jerk, 0.0, self._jerk), self._times):
            part = np.minimum(left, span)
            way = way + part * (velocity + part * (acceleration / 2 + part * jerk / 6))
            velocity = velocity + part * (acceleration + part * jerk / 2)
            acceleration = acceleration + part * jerk
            left = np.maximum(left - span, 0)
        moves = self._sign * (time < self.duration)
        return self._sign * way, moves * velocity, moves * acceleration

    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the lowest and the highest way (n,) that the stop goes through; 0 is one of them."""
        end = self.at(np.inf)[0] * self._sign
        # A velocity against the sign is turned by the acceleration first: at the smaller root of v + a t - J t^2 / 2.
        root = np.sqrt(np.maximum(self._acceleration ** 2 + 2 * self._jerk * self._velocity, 0))
        turn = np.where(self._velocity < 0, self._acceleration - root, 0) / self._jerk
        back = turn * (self._velocity + turn * (self._acceleration / 2 - turn * self._jerk / 6))
        back, end = self._sign * back, self._sign * end
        return np.minimum(np.minimum(back, end), 0), np.maximum(np.maximum(back, end), 0)
