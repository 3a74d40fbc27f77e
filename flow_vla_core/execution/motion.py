"""Values with their first two derivatives: what plans ask for, and what limiters hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ['Motion', 'bounded']


def bounded(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Clip values (n,) to a range; `np.clip` takes three times as long for so few."""
    return np.minimum(np.maximum(values, low), high)


@dataclass(frozen=True)
class Motion:
    """Holds values and how they change.

    Args:
        values: (n,) positions, or velocities for the kinds that are velocities.
        rates: (n,) first derivative, per s; of a rotation its angular velocity.
        curvatures: (n,) second derivative, per s^2; of a rotation its angular acceleration.
    """

    values: np.ndarray
    rates: np.ndarray
    curvatures: np.ndarray

    @classmethod
    def at_rest(cls, values: np.ndarray) -> Motion:
        """Build one that does not change, at values (n,)."""
        values = np.asarray(values, np.float64)
        return cls(values, np.zeros(values.shape), np.zeros(values.shape))

    @property
    def moving(self) -> bool:
        """Whether anything changes."""
        return bool(self.rates.any() or self.curvatures.any())

    def __getitem__(self, place: slice | np.ndarray) -> Motion:
        """Choose components."""
        return Motion(self.values[place], self.rates[place], self.curvatures[place])

    def where(self, keep: np.ndarray, other: Motion) -> Motion:
        """Take the components of another motion where ``keep`` (n,) is False."""
        return Motion(np.where(keep, self.values, other.values), np.where(keep, self.rates, other.rates),
                      np.where(keep, self.curvatures, other.curvatures))

    def slowed(self, speed: float, velocities: np.ndarray) -> Motion:
        """Play it at ``speed`` times the pace; ``velocities`` (n,) says which values are velocities."""
        if speed == 1:
            return self
        factor = np.where(velocities, speed, 1.0)
        return Motion(self.values * factor, self.rates * factor * speed, self.curvatures * factor * speed ** 2)
