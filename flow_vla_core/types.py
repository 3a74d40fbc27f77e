"""What crosses a layer: observations, conditions and action chunks.

Shapes, for the whole package: ``B`` batch, ``T`` tokens or time, ``H`` horizon, ``A`` action,
``S`` state, ``C Y X`` image. Stamps are integers in nanoseconds of ROS time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # only those who compute need it: the executor starts without
    import torch

__all__ = ['ActionChunk', 'Actor', 'Batch', 'Condition', 'Continuation', 'Generated', 'Observation']


class Actor(IntEnum):
    """Numbers who acts; the same as in ExecutionStatus.msg (a test compares them)."""

    NOBODY = 0
    POLICY = 1
    PERSON = 2


@dataclass(frozen=True)
class Observation:
    """Holds what the robot saw at one reference time.

    Args:
        stamp: reference time, ns.
        images: camera name -> (T, Y, X, C) uint8, oldest first, the size that the policy sees.
        state: (T, S) float32, the contract's state streams side by side.
        instruction: the words in force at the reference time.
        stamps: stream name -> stamps of the T samples used, ns.
    """

    stamp: int
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: str
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionChunk:
    """Holds a plan: action ``i`` is meant for ``stamp + i * dt``.

    Args:
        stamp: reference time of the observation that it answers, ns.
        dt: time between two actions, ns.
        actions: (H, A) float32 in the contract's units.
        id: counts up from 1 within one run of a policy.
        instruction: the words that it answers.
        generation_time: wall time that it took, ns.
        delay: this many actions at the front continue the plan before, which runs meanwhile.
        confidence: 0 (a guess) to 1 (sure), NaN where it is not measured.
    """

    stamp: int
    dt: int
    actions: np.ndarray
    id: int = 0
    instruction: str = ''
    generation_time: int = 0
    delay: int = 0
    confidence: float = math.nan

    @property
    def horizon(self) -> int:
        """Number of actions H."""
        return len(self.actions)

    @property
    def end(self) -> int:
        """Time at which the last action stops being in force, ns."""
        return self.stamp + self.horizon * self.dt


@dataclass(frozen=True)
class Continuation:
    """Says which plan is running while a new chunk is made, so that the new one can begin where that one is.

    Args:
        actions: (n, A) float32 in the contract's units, what is left of the plan in force, from the new chunk's stamp
            on; n may be anything from 1 to H, it is never padded.
        delay: d, so many of them the new chunk begins with, at most n: those that will have been executed when it
            arrives, and those by which the robot goes over to it.
        execute: s, steps from one chunk to the next.
    """

    actions: np.ndarray
    delay: int
    execute: int


@dataclass(frozen=True)
class Generated:
    """Holds what an engine answers.

    Args:
        actions: (H, A) float32 in the contract's units.
        confidence: 0 (a guess) to 1 (sure), NaN where it is not measured.
    """

    actions: np.ndarray
    confidence: float = math.nan


@dataclass(frozen=True)
class Batch:
    """Holds observations as tensors, before the encoders.

    Args:
        images: camera name -> (B, T, C, Y, X) uint8.
        state: (B, T, S) float32 in the contract's units.
        words: (B, T) int64 token numbers, 0 for padding.
    """

    images: Mapping[str, torch.Tensor]
    state: torch.Tensor
    words: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy on another device."""
        return Batch({name: image.to(device, non_blocking=True) for name, image in self.images.items()},
                     self.state.to(device, non_blocking=True), self.words.to(device, non_blocking=True))


@dataclass(frozen=True)
class Condition:
    """Holds what a generator is told, after the encoders.

    Args:
        vector: (B, D) summary of the whole observation.
        tokens: (B, T, D) its parts, for networks that attend to them; None if there are none.
    """

    vector: torch.Tensor
    tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.vector)

    def expand(self, samples: int) -> Condition:
        """Repeat every element for several samples: (B, ...) -> (B * samples, ...)."""
        return self._map(lambda part: part.repeat_interleave(samples, 0))

    def __getitem__(self, index: slice | torch.Tensor) -> Condition:
        """Choose elements of the batch."""
        return self._map(lambda part: part[index])

    def to(self, device: torch.device | str) -> Condition:
        """Return a copy on another device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def with_vector(self, vector: torch.Tensor) -> Condition:
        """Return the same with another vector."""
        return replace(self, vector=vector)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Condition:
        return Condition(change(self.vector), None if self.tokens is None else change(self.tokens))
