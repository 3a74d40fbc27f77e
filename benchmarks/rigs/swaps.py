"""Gaps between the chunks of a policy into which other checkpoints are swapped."""

from __future__ import annotations

from collections.abc import Sequence
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rigs.results import spread

__all__ = ['Swap', 'describe_swaps', 'gaps_by_swap', 'read_chunks']


@dataclass(frozen=True)
class Swap:
    """Tells of a checkpoint that was swapped in.

    Args:
        checkpoint: its folder.
        asked: wall time at which it was named, ns.
        in_force: wall time at which the policy said that it is in force, ns.
    """

    checkpoint: str
    asked: int
    in_force: int

    @property
    def seconds(self) -> float:
        """From being named to being in force."""
        return (self.in_force - self.asked) / 1e9


def read_chunks(trace: Path, spans: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """Read when a policy published chunks that follow each other.

    Args:
        trace: of the policy.
        spans: first and last stamp, ns, of the stretches in which it acted; both chunks of a pair come from
            observations of the same one. None: it always acted.

    Returns:
        (K, 2) int64 wall times of chunk and next chunk, ns.
    """
    with trace.open() as file:
        rows = [(int(row['observation_stamp']), int(row['published'])) for row in csv.DictReader(file)]
    stamps, published = np.array(rows, np.int64).reshape(-1, 2).T
    pairs = np.stack([published[:-1], published[1:]], 1)
    if spans is None:
        return pairs
    inside = [(first <= stamps[:-1]) & (stamps[1:] <= last) & (stamps[:-1] <= stamps[1:]) for first, last in spans]
    return pairs[np.any(inside, 0)] if inside else pairs[:0]


def gaps_by_swap(chunks: np.ndarray, swaps: Sequence[Swap]) -> dict[str, np.ndarray]:
    """Sort the gaps between chunks, s, by whether a checkpoint was being loaded or swapped in meanwhile.

    Args:
        chunks: (K, 2) wall times of chunk and next chunk, ns.
        swaps: that were made.
    """
    asked, in_force = (np.array([getattr(swap, name) for swap in swaps], np.int64) for name in ('asked', 'in_force'))
    meanwhile = ((chunks[:, :1] <= in_force) & (chunks[:, 1:] >= asked)).any(1)
    gaps = (chunks[:, 1] - chunks[:, 0]) / 1e9
    return {'while_swapping': gaps[meanwhile], 'otherwise': gaps[~meanwhile]}


def describe_swaps(chunks: np.ndarray, swaps: Sequence[Swap]) -> dict[str, Any]:
    """Return how many swaps there were, how long they took, and the gaps between chunks during them and else, s."""
    return {'swaps': len(swaps), 'seconds_to_swap': spread([swap.seconds for swap in swaps]),
            'gaps': {name: spread(gaps) for name, gaps in gaps_by_swap(chunks, swaps).items()}}
