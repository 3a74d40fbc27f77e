"""What goes to the robot at one control tick."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
import math

import numpy as np

from flow_vla_core.errors import Code

__all__ = ['Command', 'ExecutionState']


class ExecutionState(IntEnum):
    """Numbers what the executor does; the same as in ExecutionStatus.msg (a test compares them)."""

    IDLE = 0
    FOLLOWING = 1
    SLOWING = 2
    HOLDING = 3
    STOPPED = 4


@dataclass(frozen=True)
class Command:
    """Holds what goes to the robot at one control tick.

    Args:
        values: (A,) float32 in the contract's units.
        parts: names of the action parts that have a command; a position that was neither commanded nor measured yet
            has none, and 0 in ``values``.
        state: what the follower does.
        code: why it does not follow, or ``OK``.
        limited: whether a limit changed the command.
        chunk_id: the chunk in force, 0 for none.
        chunk_step: index of the action in force.
        chunk_stamp: stamp of the chunk in force, ns.
        velocities: (A,) float32, rate of change of each value that is a position, per s (of a rotation the angular
            velocity, of a gripper without a velocity limit 0); a velocity's own value.
        confidence: of the chunk in force, NaN where it is not measured.
        delay: policy steps from the stamp of the chunk in force to its arrival.
        speed: scale of motion in force, 0 to 1.
    """

    values: np.ndarray
    parts: tuple[str, ...]
    state: ExecutionState
    code: Code = Code.OK
    limited: bool = False
    chunk_id: int = 0
    chunk_step: int = 0
    chunk_stamp: int = 0
    velocities: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    confidence: float = math.nan
    delay: float = 0.0
    speed: float = 1.0
