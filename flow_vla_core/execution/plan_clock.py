"""The clock of plans, which runs slower than ROS time when the robot is slowed down."""

from __future__ import annotations

from bisect import bisect_right

__all__ = ['PlanClock']

KNOTS = 64  # changes of speed that are remembered; older plans are long over


class PlanClock:
    """Counts :math:`\\theta(t)`, the integral of the speed, so that a plan from stamp s is at theta(now) - theta(s).

    Example:
        >>> clock = PlanClock()
        >>> clock.change(0, 1.0); clock.change(100, 0.5)
        >>> clock.between(50, 200)
        100
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all changes."""
        self._times: list[int] = []
        self._readings: list[float] = []
        self._speeds: list[float] = []

    def change(self, now: int, speed: float) -> None:
        """Run at ``speed`` from ``now``, ns, on."""
        if self._speeds and self._speeds[-1] == speed:
            return
        reading = self._read(now) if self._speeds else 0.0
        self._times.append(now)
        self._readings.append(reading)
        self._speeds.append(speed)
        for knots in (self._times, self._readings, self._speeds):
            del knots[:-KNOTS]

    def between(self, start: int, end: int) -> int:
        """Return the time that passes on this clock from one ROS time to another, ns."""
        if len(self._speeds) <= 1:
            return round((end - start) * (self._speeds[0] if self._speeds else 1.0))
        return round(self._read(end) - self._read(start))

    def _read(self, time: int) -> float:
        index = max(bisect_right(self._times, time) - 1, 0)
        return self._readings[index] + (time - self._times[index]) * self._speeds[index]
