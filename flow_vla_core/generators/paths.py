"""Paths from noise (t = 0) to data (t = 1), and their velocities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
import math

import torch
from torch import Tensor

from flow_vla_core.checks import bounds_of
from flow_vla_core.errors import ConfigError, InputError

__all__ = ['PATHS', 'Path', 'StraightPath', 'VariancePreservingPath', 'expand_time']


class Path(ABC):
    """Declares where a point ``x_t = a noise + b data`` is on its way from noise to data, and how fast it moves.

    Example:
        >>> class Late(Path):
        ...     def mix(self, noise, data, t):
        ...         return noise + expand_time(t, noise) ** 2 * (data - noise)
        ...     def velocity(self, noise, data, t):
        ...         return 2 * expand_time(t, noise) * (data - noise)
        ...     def shares(self, t):
        ...         return 1 - t ** 2, t ** 2, 2 * t
        ...     def clean(self, x, velocity, t):
        ...         return x + (1 - t ** 2) * velocity / (2 * t)
        >>> Late().mix(torch.zeros(1, 2), torch.ones(1, 2), 0.5)
        tensor([[0.2500, 0.2500]])
    """

    @abstractmethod
    def mix(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Return the point x_t (B, ...) at t, which is a number, (), (B,) or (B, 1).

        Raises:
            InputError: for a time of another shape or outside [0, 1].
        """

    @abstractmethod
    def velocity(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Return dx_t/dt (B, ...), with t as for `mix`."""

    @abstractmethod
    def shares(self, t: float) -> tuple[float, float, float]:
        """Return a, b and ``a db/dt - b da/dt`` at t."""

    @abstractmethod
    def clean(self, x: Tensor, velocity: Tensor, t: float) -> Tensor:
        """Return the data that a point x (B, ...) with this velocity at t is on its way to."""


class StraightPath(Path):
    """Moves in a straight line: ``x_t = (1 - (1 - s) t) noise + t data``, ``dx_t/dt = data - (1 - s) noise``.

    The conditional optimal-transport path (arXiv 2210.02747, equations 20 to 22).

    Args:
        smallest: noise s that is left at the end, in [0, 1).

    Raises:
        ConfigError: for another s.

    Example:
        >>> path = StraightPath()
        >>> path.mix(torch.zeros(1, 2), torch.ones(1, 2), 0.25)
        tensor([[0.2500, 0.2500]])
    """

    def __init__(self, smallest: float = 0.0) -> None:
        if not 0 <= smallest < 1:
            raise ConfigError(f'path: smallest noise {smallest}; allowed: from 0 to below 1')
        self.smallest = smallest

    def mix(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Stand between the two, on the line."""
        return torch.addcmul(noise, expand_time(t, noise), self.velocity(noise, data, t))

    def velocity(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Point from one to the other at any time."""
        return data - (1 - self.smallest) * noise if self.smallest else data - noise

    def shares(self, t: float) -> tuple[float, float, float]:
        """Return ``1 - (1 - s) t``, t and 1."""
        return 1 - (1 - self.smallest) * t, t, 1.0

    def clean(self, x: Tensor, velocity: Tensor, t: float) -> Tensor:
        """Go on straight: to the end, and what is left of the noise back."""
        return (1 - self.smallest) * x + (1 - (1 - self.smallest) * t) * velocity


class VariancePreservingPath(Path):
    """Moves on a circle: ``x_t = cos(q) noise + sin(q) data`` with ``q = q_0 + t (pi / 2 - q_0)``.

    Its variance stays 1 if noise and data have 1. From q_0 = 0 it is the trigonometric interpolant (arXiv 2303.08797),
    whose coefficients are those of diffusion's cosine schedule; diffusion that begins with a little of the data has
    another.

    Args:
        start: angle q_0 at t = 0, in [0, pi / 2), rad.

    Raises:
        ConfigError: for another angle.

    Example:
        >>> VariancePreservingPath().mix(torch.zeros(1, 2), torch.ones(1, 2), 1.0)
        tensor([[1., 1.]])
    """

    def __init__(self, start: float = 0.0) -> None:
        if not 0 <= start < math.pi / 2:
            raise ConfigError(f'path: starts at {start} rad; allowed: from 0 to below pi / 2')
        self.start, self.rate = start, math.pi / 2 - start

    def mix(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Stand between the two, on the arc."""
        angle = self.start + self.rate * expand_time(t, noise)
        return angle.cos() * noise + angle.sin() * data

    def velocity(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Point along the arc."""
        angle = self.start + self.rate * expand_time(t, noise)
        return self.rate * (angle.cos() * data - angle.sin() * noise)

    def shares(self, t: float) -> tuple[float, float, float]:
        """Return cosine and sine of the angle, and its rate."""
        angle = self.start + self.rate * t
        return math.cos(angle), math.sin(angle), self.rate

    def clean(self, x: Tensor, velocity: Tensor, t: float) -> Tensor:
        """Project back from the tangent."""
        noise, data, rate = self.shares(t)
        return data * x + noise / rate * velocity


PATHS: Mapping[str, type[Path]] = {'straight': StraightPath, 'variance_preserving': VariancePreservingPath}


def expand_time(t: Tensor | float, like: Tensor) -> Tensor:
    """Shape times so that each belongs to its own element of ``like`` (B, ...), whatever the other sizes are.

    Args:
        t: a number, (), (B,), (B, 1), or as many leading dimensions of ``like`` as there are times for.
        like: gives shape, type and device.

    Raises:
        InputError: for another shape, or a time outside [0, 1].

    Example:
        >>> expand_time(torch.tensor([0.0, 0.5]), torch.zeros(2, 2, 2)).shape
        torch.Size([2, 1, 1])
    """
    if not isinstance(t, Tensor):
        _check_range(t, t)
        return torch.full((), t, dtype=like.dtype, device=like.device)
    t = t.to(like)
    if t.numel():
        _check_range(*bounds_of(t))
    if t.ndim == 0:
        return t
    if t.ndim > like.ndim or t.shape[0] != like.shape[0] or any(
            size not in (1, whole) for size, whole in zip(t.shape, like.shape)):
        raise InputError(f't: shape {tuple(t.shape)}; allowed: () or {tuple(like.shape[:1])}')
    return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))


def _check_range(least: float, most: float) -> None:
    if not 0 <= least <= most <= 1:
        raise InputError(f't: from {least:.6g} to {most:.6g}; allowed: from 0 to 1')
