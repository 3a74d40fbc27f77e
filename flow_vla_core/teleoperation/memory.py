"""Position, velocity and acceleration of what is seen from time to time."""

from __future__ import annotations

import numpy as np

__all__ = ['FadingMemory']


class FadingMemory:
    r"""Estimates a motion from its positions.

    The parabola that fits all positions best, each counting :math:`\theta = e^{-\mu T}` times as much as the one after
    it, in closed form: :math:`\alpha = 1 - \theta^3`, :math:`\beta = 3 (1 - \theta)^2 (1 + \theta) / 2` and
    :math:`\gamma = (1 - \theta)^3 / 2` of the surprise :math:`r` correct the prediction, by :math:`\alpha r`,
    :math:`\beta r / T` and :math:`2 \gamma r / T^2` (Brookner, Tracking and Kalman Filtering Made Easy, 1998, the
    critically damped g-h-k filter). That fit is exact where positions come evenly; a steady acceleration is followed
    without lag also where they don't.

    Args:
        values: (n,) of the motion, at rest.
        gain: mu, 1/s.

    Example:
        >>> memory = FadingMemory(np.zeros(1), gain=40.0)
        >>> for tick in range(1, 81):
        ...     memory.see(np.array([4.0 * (0.025 * tick) ** 2]), 0.025)
        >>> [round(float(part[0]), 3) for part in (memory.values, memory.rates, memory.curvatures)]
        [16.0, 16.0, 8.0]
    """

    def __init__(self, values: np.ndarray, gain: float) -> None:
        self.values, self._gain = values, gain
        self.rates = self.curvatures = np.zeros_like(values)

    def see(self, values: np.ndarray, elapsed: float) -> None:
        """Take in values (n,), ``elapsed`` s, above 0, after those before."""
        fade = np.exp(-self._gain * elapsed)
        rates = self.rates + elapsed * self.curvatures
        expected = self.values + elapsed * (self.rates + elapsed * self.curvatures / 2)
        surprise = values - expected
        self.values = expected + (1 - fade ** 3) * surprise
        self.rates = rates + 1.5 * (1 - fade) ** 2 * (1 + fade) / elapsed * surprise
        self.curvatures = self.curvatures + (1 - fade) ** 3 / elapsed ** 2 * surprise
