"""What all sources of a person's chunks have in common: their length, their numbers and the time between two."""

from __future__ import annotations

import math

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.types import ActionChunk

__all__ = ['ChunkSeries']

LONGEST = 0.25  # s between two chunks that are bridged


class ChunkSeries:
    """Makes one chunk after another.

    Args:
        contract: gives the step.
        reach: a chunk says how to go on for so long if nothing follows it, s.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> series = ChunkSeries(RobotContract.load(find_contract('metaworld')), reach=0.2)
        >>> series.elapsed(10 ** 9), series.elapsed(11 * 10 ** 8), series.horizon
        (0.0, 0.1, 4)
    """

    def __init__(self, contract: RobotContract, reach: float) -> None:
        self.step = contract.rates.policy_dt
        self.horizon = max(2, math.ceil(reach / self.step - 1e-9))
        self._step_ns, self._now, self._id = contract.rates.policy_dt_ns, None, 0

    def begin_anew(self) -> None:
        """Let no time have passed when the next chunk comes."""
        self._now: int | None = None

    def elapsed(self, now: int) -> float:
        """Return the time since the last call, s; 0 for the first, and no more than is bridged."""
        before, self._now = self._now, now
        return 0.0 if before is None else min(max((now - before) * 1e-9, 0.0), LONGEST)

    def make(self, now: int, actions: np.ndarray) -> ActionChunk:
        """Make the chunk for a time, ns, of actions (H, A)."""
        self._id += 1
        return ActionChunk(now, self._step_ns, actions.astype(np.float32), self._id, confidence=1.0)
