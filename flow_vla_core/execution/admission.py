"""What a chunk has to be before it may move the robot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import (
    ChunkFromFuture,
    ChunkJump,
    ChunkNotFinite,
    ChunkShape,
    ChunkStep,
    ChunkTooOld,
    ChunkUnsure,
)
from flow_vla_core.execution import rotations
from flow_vla_core.execution.interpolation import rotation_of
from flow_vla_core.execution.schedules import Plan
from flow_vla_core.types import ActionChunk

__all__ = ['Admission']

MARGIN = 3.0        # a step between two actions may be so many times what the velocity allows: limits smooth the rest


class Admission:
    """Refuses chunks that can't be followed, with a numbered error each.

    Positions are refused when two actions in a row are further apart than ``MARGIN`` times what the velocity limit
    allows in a step, or when the action that is due is further from the last command than that limit allows in the
    whole rest of the plan. A confidence that was not measured counts as 0 where one is asked for.

    Args:
        contract: says the parts, their limits and the step.
        future_tolerance: a chunk may be stamped this far ahead of the clock, ns.
        least_confidence: refuse a chunk that is less sure, 0 to 1.
    """

    def __init__(self, contract: RobotContract, future_tolerance: int, least_confidence: float) -> None:
        self._dim, self._dt = contract.action_dim, contract.rates.policy_dt_ns
        self._future_tolerance, self._least = future_tolerance, least_confidence
        places = zip(contract.actions, contract.action_slices.values())
        self._positions = [(number, part, place) for number, (part, place) in enumerate(places)
                           if part.kind in ('joint_position', 'ee_pose') and part.limits.velocity is not None]

    def check_content(self, chunk: ActionChunk) -> None:
        """Raise `ChunkShape`, `ChunkNotFinite`, `ChunkStep`, `ChunkUnsure` or `ChunkJump`."""
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != self._dim or not chunk.horizon:
            raise ChunkShape(f'chunk {chunk.id} has the shape {chunk.actions.shape}, '
                             f'the contract wants (H, {self._dim})')
        if not np.isfinite(chunk.actions).all():
            row, column = np.argwhere(~np.isfinite(chunk.actions))[0]
            raise ChunkNotFinite(f'chunk {chunk.id}: action {row}, value {column} is {chunk.actions[row, column]}')
        if chunk.dt != self._dt:
            raise ChunkStep(f'chunk {chunk.id} has steps of {_seconds(chunk.dt)}, '
                            f'the contract has {_seconds(self._dt)}')
        if self._least > 0 and not chunk.confidence >= self._least:
            raise ChunkUnsure(f'chunk {chunk.id} has the confidence {chunk.confidence:.3g}; '
                              f'allowed: {self._least:.3g} to 1')
        for _, part, place in self._positions:
            self._check_steps(chunk, part, chunk.actions[:, place].astype(np.float64))

    def check_times(self, plan: Plan, newest: Plan | None, now: int) -> None:
        """Raise `ChunkFromFuture` or `ChunkTooOld`; ``newest`` is the plan in force."""
        chunk = plan.chunk
        if chunk.stamp > now + self._future_tolerance:
            raise ChunkFromFuture(f'chunk {chunk.id} is stamped {_seconds(chunk.stamp - now)} ahead of the clock; '
                                  f'allowed: {_seconds(self._future_tolerance)}')
        if plan.end <= now:
            raise ChunkTooOld(f'chunk {chunk.id} is {_seconds(now - chunk.stamp)} old, its plan ended '
                              f'{_seconds(now - plan.end)} ago')
        if newest is not None and chunk.stamp < newest.chunk.stamp:
            raise ChunkTooOld(f'chunk {chunk.id} is {_seconds(newest.chunk.stamp - chunk.stamp)} older than the chunk '
                              f'{newest.chunk.id} in force')

    def check_start(self, plan: Plan, due: np.ndarray, last: Sequence[np.ndarray | None], now: int) -> None:
        """Raise `ChunkJump` if the values (A,) that are due can't be reached from the last commands of the parts."""
        left = (plan.end - max(now, plan.begin)) * 1e-9
        for number, part, place in self._positions:
            if (before := last[number]) is None:
                continue
            ways = _ways(part, np.stack([before, due[place]]))[0]
            if (wrong := np.flatnonzero(ways > np.array(part.limits.velocity) * left)).size:
                raise ChunkJump(f'chunk {plan.chunk.id} is {ways[wrong[0]]:.3g} from the last command in '
                                f'{part.name}.{part.names[wrong[0]]}; allowed: '
                                f'{part.limits.velocity[wrong[0]] * left:.3g} in the rest of the plan')

    def _check_steps(self, chunk: ActionChunk, part: ActionPart, actions: np.ndarray) -> None:
        allowed = MARGIN * np.array(part.limits.velocity) * self._dt * 1e-9
        ways = _ways(part, actions)
        if (ways > allowed).any():
            row, column = np.argwhere(ways > allowed)[0]
            raise ChunkJump(f'chunk {chunk.id} goes {ways[row, column]:.3g} from action {row} to the next in '
                            f'{part.name}.{part.names[column]}; allowed: {allowed[column]:.3g}')


def _ways(part: ActionPart, values: np.ndarray) -> np.ndarray:
    """Compute the ways (H - 1, n) between positions (H, n), of a rotation the angle."""
    ways = np.abs(np.diff(values, axis=0))
    if (turn := rotation_of(part)) is not None:
        turns = rotations.from_vector(values[:, turn])
        angles = np.linalg.norm(rotations.between(turns[:-1], turns[1:]), axis=1)
        ways[:, turn] = angles[:, None]
    return ways


def _seconds(nanoseconds: int) -> str:
    return f'{nanoseconds * 1e-9:.3f} s'
