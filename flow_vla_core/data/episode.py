"""One demonstration as arrays on the policy's time grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ['OUTCOMES', 'Episode']

OUTCOMES = ('success', 'failure', 'unknown')


@dataclass(frozen=True)
class Episode:
    """Holds one demonstration at the grid times ``start + k * policy_dt``.

    Args:
        stamps: (N,) int64 grid times, ns.
        images: camera name -> (N, Y, X, C) uint8, as the policy sees them; they may lie in a file.
        state: (N, S) float32.
        actions: (N, A) float32: the command in force at each grid time.
        instruction: the words.
        task: free label.
        outcome: ``success``, ``failure`` or ``unknown``.
        source: the bag.
        complete: False if the bag is damaged or has a gap; a warning said so.
        actors: (N,) uint8, who acted: values of `Actor`, NOBODY where nothing is known.
    """

    stamps: np.ndarray
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    instruction: str
    task: str
    outcome: str
    source: Path
    complete: bool = True
    actors: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.actors is None:
            object.__setattr__(self, 'actors', np.zeros(len(self.stamps), np.uint8))

    def __len__(self) -> int:
        return len(self.stamps)
