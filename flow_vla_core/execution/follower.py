"""Follows action chunks by their stamps and turns them into bounded commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import ChunkFromFuture, ChunkNotFinite, ChunkShape, ChunkStep, ChunkTooOld, Code
from flow_vla_core.execution.limits import make_limiter
from flow_vla_core.types import ActionChunk

__all__ = ['ChunkFollower', 'Command', 'ExecutionState', 'Interpolation']

Interpolation = Literal['linear', 'hold']


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
    """

    values: np.ndarray
    parts: tuple[str, ...]
    state: ExecutionState
    code: Code = Code.OK
    limited: bool = False
    chunk_id: int = 0
    chunk_step: int = 0
    chunk_stamp: int = 0


class ChunkFollower:
    r"""Follows the newest chunk: at time :math:`\tau` action :math:`\lfloor (\tau - stamp) / dt \rfloor` is in force.

    Positions are interpolated linearly between actions, velocities as told, displacements and grippers never. A chunk
    that is accepted replaces what is left of the one before; its actions in the past are dropped. When the plan has
    run out, or may no longer be trusted, the robot is slowed down within its limits and held. An emergency stop drops
    the plan and latches. When time goes backwards the plan is dropped.

    Args:
        contract: says the parts of the action vector and their limits.
        control_hz: of `command`; the contract's if None.
        interpolation: of velocities between actions, ``linear`` or ``hold``.
        future_tolerance: a chunk may be stamped this far ahead of the clock, ns; one policy step if None.
        trust: a chunk is followed up to this age, ns; to its end if None.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> follower = ChunkFollower(RobotContract.load(find_contract('metaworld')))
        >>> actions = np.full((2, 4), 0.1, np.float32)
        >>> follower.accept(ActionChunk(stamp=0, dt=50_000_000, actions=actions), now=0)
        True
        >>> command = follower.command(0, {'ee_position': np.array([0.0, 0.6, 0.2])})
        >>> command.state.name, command.values[:3].tolist() == actions[0, :3].tolist()
        ('FOLLOWING', True)
    """

    def __init__(self, contract: RobotContract, *, control_hz: float | None = None,
                 interpolation: Interpolation = 'linear', future_tolerance: int | None = None,
                 trust: int | None = None) -> None:
        self._contract = contract
        self._dt = contract.rates.policy_dt_ns
        self._future_tolerance = self._dt if future_tolerance is None else future_tolerance
        self._trust = trust
        self._period = 1 / (control_hz or contract.rates.control_hz)
        self._limiters = [make_limiter(part, self._period, contract.rates.policy_dt) for part in contract.actions]
        self._linear = np.concatenate([np.full(part.dim, _is_linear(part, interpolation)) for part in contract.actions])
        self._sources = [_measured_by(part, contract) for part in contract.actions]
        self._stopped = False
        self.clear()

    @property
    def plan(self) -> ActionChunk | None:
        """The chunk in force."""
        return self._plan

    @property
    def needs(self) -> frozenset[str]:
        """Names of the state streams that `command` makes use of."""
        boxes = {part.position_from for part, limiter in zip(self._contract.actions, self._limiters)
                 if limiter.needs_position}
        return frozenset(boxes | {source[0] for source in self._sources if source is not None})

    def clear(self) -> None:
        """Forget plan and motion; an emergency stop stays."""
        self._plan: ActionChunk | None = None
        self._now: int | None = None
        self._began = False
        self._jumped = False
        for limiter in self._limiters:
            limiter.clear()

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return any(limiter.moving for limiter in self._limiters)

    def drop_plan(self) -> None:
        """Slow down and hold until the next chunk."""
        self._plan = None

    def estop(self) -> None:
        """Drop the plan, slow down and hold until `reset_estop`."""
        self._stopped, self._plan = True, None

    def reset_estop(self) -> None:
        """Wait for a new chunk."""
        self._stopped = False

    def accept(self, chunk: ActionChunk, now: int) -> bool:
        """Put a chunk into force; tell whether it is, which it isn't during an emergency stop.

        Raises:
            ChunkShape: if it is not (H, A) with H at least 1.
            ChunkNotFinite: if it holds NaN or infinity.
            ChunkStep: if its step is not the contract's.
            ChunkFromFuture: if it is stamped ahead of ``now``.
            ChunkTooOld: if all its actions lie in the past, or it is older than the chunk in force.
        """
        self._check_content(chunk)
        self._notice_jump(now)
        if chunk.stamp > now + self._future_tolerance:
            raise ChunkFromFuture(f'chunk {chunk.id} is stamped {_seconds(chunk.stamp - now)} ahead of the clock; '
                                  f'allowed: {_seconds(self._future_tolerance)}')
        if self._end(chunk) <= now:
            raise ChunkTooOld(f'chunk {chunk.id} is {_seconds(now - chunk.stamp)} old, its plan ended '
                              f'{_seconds(now - self._end(chunk))} ago')
        if self._plan is not None and chunk.stamp < self._plan.stamp:
            raise ChunkTooOld(f'chunk {chunk.id} is {_seconds(self._plan.stamp - chunk.stamp)} older than the chunk '
                              f'{self._plan.id} in force')
        if self._stopped:
            return False
        self._plan, self._began, self._jumped = chunk, True, False
        return True

    def command(self, now: int, measured: Mapping[str, np.ndarray] | None = None) -> Command:
        """Compute the command for a time, ns; called once in each control period.

        Args:
            now: ROS time, ns.
            measured: state stream -> (n,) in the contract's units; only fresh ones.
        """
        measured = measured or {}
        elapsed = self._advance(now)
        self._start_from(measured)
        code = self._code(now, measured)
        if code == Code.OK:
            target, step = self._target(now)
            return self._follow(target, step, elapsed, measured)
        return self._rest(code, elapsed, measured)

    def _check_content(self, chunk: ActionChunk) -> None:
        dim = self._contract.action_dim
        if chunk.actions.ndim != 2 or chunk.actions.shape[1] != dim or not chunk.horizon:
            raise ChunkShape(f'chunk {chunk.id} has the shape {chunk.actions.shape}, the contract wants (H, {dim})')
        if not np.isfinite(chunk.actions).all():
            row, column = np.argwhere(~np.isfinite(chunk.actions))[0]
            raise ChunkNotFinite(f'chunk {chunk.id}: action {row}, value {column} is {chunk.actions[row, column]}')
        if chunk.dt != self._dt:
            raise ChunkStep(f'chunk {chunk.id} has steps of {_seconds(chunk.dt)}, '
                            f'the contract has {_seconds(self._dt)}')

    def _end(self, chunk: ActionChunk) -> int:
        return chunk.end if self._trust is None else min(chunk.end, chunk.stamp + self._trust)

    def _advance(self, now: int) -> float:
        """Return the time since the last command, s, at most one period: lateness never allows a bigger change."""
        self._notice_jump(now)
        before, self._now = self._now, now
        return self._period if before is None else min((now - before) * 1e-9, self._period)

    def _notice_jump(self, now: int) -> None:
        if self._now is not None and now < self._now:
            self._now, self._plan, self._jumped = None, None, True

    def _start_from(self, measured: Mapping[str, np.ndarray]) -> None:
        for source, limiter in zip(self._sources, self._limiters):
            if source is not None and source[0] in measured and not limiter.known:
                limiter.start_at(np.asarray(measured[source[0]])[source[1]])

    def _code(self, now: int, measured: Mapping[str, np.ndarray]) -> Code:
        if self._stopped:
            return Code.EMERGENCY_STOP
        if self._jumped:
            return Code.CLOCK_JUMP
        if self._plan is None or self._end(self._plan) <= now:
            return Code.NO_CHUNK
        if any(limiter.needs_position and _position(part, measured) is None
               for part, limiter in zip(self._contract.actions, self._limiters)):
            return Code.STATE_STALE
        return Code.OK

    def _target(self, now: int) -> tuple[np.ndarray, int]:
        actions = self._plan.actions.astype(np.float64)
        step, rest = divmod(max(now - self._plan.stamp, 0), self._dt)
        following = actions[min(step + 1, len(actions) - 1)]
        slope = np.where(self._linear, following - actions[step], 0)
        return actions[step] + slope * (rest / self._dt), step

    def _follow(self, target: np.ndarray, step: int, elapsed: float, measured: Mapping[str, np.ndarray]) -> Command:
        values, wanted = [], []
        for part, place, limiter in self._parts():
            values.append(limiter.follow(target[place], elapsed, _position(part, measured)))
            wanted.append(limiter.unlimited(target[place]))
        values = np.concatenate(values)
        limited = not np.allclose(values, np.concatenate(wanted), rtol=1e-6, atol=1e-9)
        names = tuple(part.name for part in self._contract.actions)
        return Command(values.astype(np.float32), names, ExecutionState.FOLLOWING, Code.OK, limited,
                       self._plan.id, step, self._plan.stamp)

    def _rest(self, code: Code, elapsed: float, measured: Mapping[str, np.ndarray]) -> Command:
        values = np.concatenate([limiter.rest(elapsed, _position(part, measured))
                                 for part, _, limiter in self._parts()])
        names = tuple(part.name for part, _, limiter in self._parts() if limiter.known)
        if self._stopped:
            state = ExecutionState.STOPPED
        elif self.moving:
            state = ExecutionState.SLOWING
        else:
            state = ExecutionState.HOLDING if self._began else ExecutionState.IDLE
        return Command(values.astype(np.float32), names, state, code)

    def _parts(self) -> list[tuple]:
        return list(zip(self._contract.actions, self._contract.action_slices.values(), self._limiters))


def _is_linear(part: ActionPart, interpolation: Interpolation) -> bool:
    if part.kind in ('ee_twist', 'joint_velocity'):
        return interpolation == 'linear'
    return part.kind in ('joint_position', 'ee_pose')


def _measured_by(part: ActionPart, contract: RobotContract) -> tuple[str, list[int]] | None:
    """Find the state stream, and the places in it, that measure what a part of positions commands."""
    for stream in contract.state:
        joints = part.kind == 'joint_position' and stream.field == 'position'
        pose = part.kind == 'ee_pose' and stream.name == part.position_from
        if (joints or pose) and stream.unit == part.unit and set(part.names) <= set(stream.names):
            return stream.name, [stream.names.index(name) for name in part.names]
    return None


def _position(part: ActionPart, measured: Mapping[str, np.ndarray]) -> np.ndarray | None:
    position = measured.get(part.position_from)
    return position if position is not None and np.isfinite(position).all() else None


def _seconds(nanoseconds: int) -> str:
    return f'{nanoseconds * 1e-9:.3f} s'
