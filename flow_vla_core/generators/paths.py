"""Paths from noise (t = 0) to data (t = 1), and their velocities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
import math

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, InputError

__all__ = ['PATHS', 'Path', 'StraightPath', 'VariancePreservingPath', 'expand_time']


class Path(ABC):
    """Declares where a point is on its way from noise to data, and how fast it moves.

    Example:
        >>> class Late(Path):
        ...     def mix(self, noise, data, t):
        ...         return noise + expand_time(t, noise) ** 2 * (data - noise)
        ...     def velocity(self, noise, data, t):
        ...         return 2 * expand_time(t, noise) * (data - noise)
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
        return noise + expand_time(t, noise) * self.velocity(noise, data, t)

    def velocity(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Point from one to the other at any time."""
        return data - (1 - self.smallest) * noise if self.smallest else data - noise


class VariancePreservingPath(Path):
    """Moves on a circle: ``x_t = cos(pi t / 2) noise + sin(pi t / 2) data``, whose variance stays 1 if both have 1.

    The trigonometric interpolant (arXiv 2303.08797); its coefficients are those of diffusion's cosine schedule.

    Example:
        >>> path = VariancePreservingPath()
        >>> path.mix(torch.zeros(1, 2), torch.ones(1, 2), 1.0)
        tensor([[1., 1.]])
    """

    def mix(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Stand between the two, on the arc."""
        angle = math.pi / 2 * expand_time(t, noise)
        return angle.cos() * noise + angle.sin() * data

    def velocity(self, noise: Tensor, data: Tensor, t: Tensor | float) -> Tensor:
        """Point along the arc."""
        angle = math.pi / 2 * expand_time(t, noise)
        return math.pi / 2 * (angle.cos() * data - angle.sin() * noise)


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
    t = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    if not ((t >= 0) & (t <= 1)).all():
        raise InputError(f't: from {t.min().item():.6g} to {t.max().item():.6g}; allowed: from 0 to 1')
    if t.ndim == 0:
        return t
    if t.ndim > like.ndim or t.shape[0] != like.shape[0] or any(
            size not in (1, whole) for size, whole in zip(t.shape, like.shape)):
        raise InputError(f't: shape {tuple(t.shape)}; allowed: () or {tuple(like.shape[:1])}')
    return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))
