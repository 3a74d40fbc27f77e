"""The interface of limiters."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from flow_vla_core.execution.motion import Motion

__all__ = ['Limiter']


class Limiter(ABC):
    """Declares how the commands of one action part (n values) are bounded; it remembers the last one."""

    @property
    @abstractmethod
    def needs_position(self) -> bool:
        """Whether the measured position of the end effector is needed."""

    @property
    @abstractmethod
    def last(self) -> np.ndarray | None:
        """The last command (n,); None if there is none to give yet."""

    @property
    @abstractmethod
    def rates(self) -> np.ndarray:
        """Velocities (n,) of the last command, unit/s; of a rotation its angular velocity, rad/s."""

    @property
    @abstractmethod
    def moving(self) -> bool:
        """Whether the last command was not rest."""

    @abstractmethod
    def clear(self) -> None:
        """Forget the last command."""

    @abstractmethod
    def start_at(self, values: np.ndarray) -> None:
        """Begin at the measured values (n,), NaN where unknown, unless there is a command already."""

    @abstractmethod
    def follow(self, goal: Motion, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Bound what the plan asks for now; ``elapsed`` s since the last command, ``position`` (3,) measured."""

    @abstractmethod
    def rest(self, elapsed: float, position: np.ndarray | None = None) -> np.ndarray:
        """Slow down, then stay."""

    @abstractmethod
    def unlimited(self, goal: Motion) -> np.ndarray:
        """Return the command (n,) that a goal would be without limits."""
