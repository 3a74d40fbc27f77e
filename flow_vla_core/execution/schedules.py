"""Which actions of which chunks are due when."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.execution import rotations
from flow_vla_core.execution.interpolation import Curve
from flow_vla_core.execution.motion import Motion
from flow_vla_core.types import ActionChunk

__all__ = ['Asynchronous', 'Ensembling', 'Plan', 'Schedule', 'Synchronous', 'make_schedule']

ScheduleName = Literal['asynchronous', 'synchronous', 'ensembling']


@dataclass(frozen=True)
class Plan:
    """Holds an accepted chunk.

    Args:
        chunk: as it came.
        curve: through its actions.
        begin: time of its first action, ns.
        end: time from which on it is no longer followed, ns.
        delay: policy steps from its stamp to its arrival.
        sure: whether it is followed at full speed.
    """

    chunk: ActionChunk
    curve: Curve
    begin: int
    end: int
    delay: float = 0.0
    sure: bool = True


class Schedule(ABC):
    """Declares when the actions of a chunk are due, which plans stay, and what they ask for together."""

    @abstractmethod
    def span(self, chunk: ActionChunk, now: int) -> tuple[int, int]:
        """Return the times, ns, of the first action and of the end of a chunk that arrives now."""

    @abstractmethod
    def keep(self, plans: tuple[Plan, ...], new: Plan) -> tuple[Plan, ...]:
        """Return the plans in force after a new one has come, oldest first."""

    @abstractmethod
    def blend(self, motions: Sequence[Motion]) -> Motion:
        """Combine what the plans in force ask for, oldest first, at least one."""


class Asynchronous(Schedule):
    """Follows the newest chunk by its stamps: what was due while it was made is left out."""

    def span(self, chunk: ActionChunk, now: int) -> tuple[int, int]:
        """Return the chunk's own times."""
        return chunk.stamp, chunk.end

    def keep(self, plans: tuple[Plan, ...], new: Plan) -> tuple[Plan, ...]:
        """Keep the new one."""
        return (new,)

    def blend(self, motions: Sequence[Motion]) -> Motion:
        """Take the newest."""
        return motions[-1]


class Synchronous(Schedule):
    """Follows each chunk from its arrival on, whatever its stamp, and waits for the next: receding horizon.

    Args:
        execute: so many actions of a chunk are executed; None for all.
    """

    def __init__(self, execute: int | None = None) -> None:
        self._execute = execute

    def span(self, chunk: ActionChunk, now: int) -> tuple[int, int]:
        """Return times from now on."""
        steps = chunk.horizon if self._execute is None else min(self._execute, chunk.horizon)
        return now, now + steps * chunk.dt

    def keep(self, plans: tuple[Plan, ...], new: Plan) -> tuple[Plan, ...]:
        """Keep the new one."""
        return (new,)

    def blend(self, motions: Sequence[Motion]) -> Motion:
        """Take the newest."""
        return motions[-1]


class Ensembling(Schedule):
    r"""Averages all chunks that have an action for the time, with weights :math:`w_i = e^{-m i}`, i = 0 the oldest.

    Rotations are averaged as quaternions. Temporal ensembling, ACT (arXiv 2304.13705, section IV-A).

    Args:
        turning: places (3,) of rotation vectors in the action vector.
        decay: m; a small one lets new chunks count sooner.
    """

    def __init__(self, turning: Sequence[np.ndarray] = (), decay: float = 0.01) -> None:
        self._turning, self._decay = turning, decay

    def span(self, chunk: ActionChunk, now: int) -> tuple[int, int]:
        """Return the chunk's own times."""
        return chunk.stamp, chunk.end

    def keep(self, plans: tuple[Plan, ...], new: Plan) -> tuple[Plan, ...]:
        """Keep all that have not ended when the new one begins."""
        return (*(plan for plan in plans if plan.end > new.begin), new)

    def blend(self, motions: Sequence[Motion]) -> Motion:
        """Compute the weighted mean."""
        if len(motions) == 1:
            return motions[0]
        weights = np.exp(-self._decay * np.arange(len(motions)))
        weights /= weights.sum()
        values, rates, curvatures = (weights @ np.stack(part) for part in zip(
            *((motion.values, motion.rates, motion.curvatures) for motion in motions)))
        for place in self._turning:
            turns = rotations.from_vector(np.stack([motion.values[place] for motion in motions]))
            values[place] = rotations.to_vector(rotations.mean(turns, weights))
        return Motion(values, rates, curvatures)


def make_schedule(name: ScheduleName, turning: Sequence[np.ndarray] = (), execute: int | None = None) -> Schedule:
    """Build a schedule by its name.

    Raises:
        ConfigError: if there is no such schedule, or ``execute`` is given to one that does not wait.
    """
    schedules = {'asynchronous': Asynchronous, 'synchronous': Synchronous, 'ensembling': Ensembling}
    if name not in schedules:
        raise ConfigError(f'schedule: {name!r} is unknown; {closest(name, schedules)}')
    if execute is not None and (name != 'synchronous' or execute < 1):
        raise ConfigError(f"execute: {execute} with the schedule {name!r}; allowed: 1 or more with 'synchronous'")
    if name == 'synchronous':
        return Synchronous(execute)
    return Ensembling(turning) if name == 'ensembling' else Asynchronous()
