"""Counts of what the executor does, as its status and its line on ``/diagnostics``."""

from __future__ import annotations

from collections import Counter
import math
import time

from flow_vla.msg import ExecutionStatus
from flow_vla_core.errors import Code
from flow_vla_core.execution import Command, ExecutionState
from flow_vla_core.types import Actor
from flow_vla_ros import codecs

__all__ = ['ExecutionReport']

GRAVE = (Code.EMERGENCY_STOP, Code.CLOCK_JUMP, Code.STATE_STALE, Code.ECHO_MISSING, Code.COMMAND_NOT_FINITE)
EXPLANATIONS = {
    Code.NO_CHUNK: 'no chunk to follow',
    Code.STATE_STALE: 'the measured position that the workspace limit needs is missing or too old',
    Code.EMERGENCY_STOP: 'emergency stop, until reset_estop is called',
    Code.CLOCK_JUMP: 'ROS time went backwards, waiting for a new chunk',
}


class ExecutionReport:
    """Keeps counts since activation, the last command and the last refusal.

    Args:
        late_after: a tick that begins so long after the one before is late, s.
    """

    def __init__(self, late_after: float) -> None:
        self._late_after = late_after
        self.clear()

    def clear(self) -> None:
        """Begin to count anew."""
        self._command: Command | None = None
        self._complaint: tuple[Code, str] = (Code.OK, '')
        self._refusal: tuple[Code, str] | None = None
        self._refusals: Counter[Code] = Counter()
        self._reported: tuple[ExecutionState, Code, Actor] | None = None
        self._source = Actor.NOBODY
        self._began: float | None = None
        self._slowest = self._work = 0.0
        self._ticks = self._late = self._limited = self._accepted = 0

    def accept(self, source: Actor) -> None:
        """Note a chunk, and whose it is that is in force now."""
        self._accepted += 1
        self._refusal, self._source = None, source

    def release(self) -> None:
        """Note that a person has let go."""
        self._source = Actor.NOBODY

    def refuse(self, code: Code, message: str) -> None:
        """Note a chunk that was not; what a watchdog complains of is told as long as it does.

        That the policy is overruled is told while the robot rests: while a person moves it, all is well.
        """
        self._refusals[code] += 1
        following = self._command is not None and self._command.state == ExecutionState.FOLLOWING
        if code in GRAVE:
            self._complaint = (code, message)
        elif code != Code.CHUNK_OVERRULED or not following:
            self._refusal = (code, message)

    def drop(self, message: str) -> None:
        """Note a command that was not sent."""
        self._refusal = (Code.COMMAND_NOT_FINITE, message)

    def begin_tick(self) -> bool:
        """Note that a tick begins; tell whether it is late."""
        before, self._began = self._began, time.monotonic()
        late = before is not None and self._began - before > self._late_after
        self._ticks += 1
        self._late += late
        return late

    def end_tick(self, command: Command, complaint: tuple[Code, str], source: Actor = Actor.NOBODY) -> None:
        """Note the tick's command, what a watchdog complained of, and who acts."""
        self._command, self._complaint, self._source = command, complaint, source
        self._limited += command.limited
        self._work = time.monotonic() - self._began
        self._slowest = max(self._slowest, self._work)

    def rest(self) -> None:
        """Note that there are no commands any more."""
        self._command, self._complaint, self._source = None, (Code.OK, ''), Actor.NOBODY

    @property
    def work_ms(self) -> float:
        """Own work of the last tick, from its beginning until its commands were sent, ms."""
        return 1e3 * self._work

    @property
    def changed(self) -> bool:
        """Whether state, code or who acts are others than in the last status."""
        return (*self.summary()[:2], self._source) != self._reported

    def summary(self) -> tuple[ExecutionState, Code, str]:
        """Return state, the gravest code, and what it means here."""
        command = self._command
        state, code = (ExecutionState.IDLE, Code.NO_CHUNK) if command is None else (command.state, command.code)
        if self._complaint[0] != Code.OK and code != Code.EMERGENCY_STOP:
            return state, *self._complaint
        if code not in GRAVE and self._refusal is not None:
            return state, *self._refusal
        return state, code, EXPLANATIONS.get(code, '')

    def status(self, now: int) -> ExecutionStatus:
        """Build the status for a time, ns."""
        state, code, message = self.summary()
        status = ExecutionStatus(
            state=state, source=self._source, code=code, message=message, ticks=self._ticks, late_ticks=self._late,
            limited_ticks=self._limited, accepted_chunks=self._accepted, refused_chunks=self._refusals.total(),
            refusal_codes=list(self._refusals), refusal_counts=list(self._refusals.values()), confidence=math.nan,
            speed=self._command.speed if self._command else 0.0, tick_ms=self._slowest * 1e3)
        status.header.stamp = codecs.to_time(now)
        if state == ExecutionState.FOLLOWING:
            self._describe_chunk(status, now)
        self._reported, self._slowest = (state, code, self._source), 0.0
        return status

    def diagnostics(self, now: int) -> tuple[bool, Code, str, dict[str, object]]:
        """Say whether all is well, the code, what it means, and numbers to look at."""
        state, code, message = self.summary()
        command = self._command
        values: dict[str, object] = {
            'state': state.name, 'who acts': self._source.name, 'speed': f'{command.speed:.2f}' if command else '',
            'ticks': self._ticks, 'late ticks': self._late, 'limited ticks': self._limited,
            'accepted chunks': self._accepted, 'refused chunks': self._refusals.total(),
            **{f'refused: {code.name}': count for code, count in self._refusals.items()}}
        if state == ExecutionState.FOLLOWING:
            values |= {'age of chunk': f'{(now - command.chunk_stamp) * 1e-9:.3f} s',
                       'delay': f'{command.delay:.1f} policy steps', 'confidence': f'{command.confidence:.2f}'}
        return code in (Code.OK, Code.NO_CHUNK), code, message, values

    def _describe_chunk(self, status: ExecutionStatus, now: int) -> None:
        command = self._command
        status.chunk_id, status.chunk_step = command.chunk_id, command.chunk_step
        status.chunk_age = codecs.to_duration(max(now - command.chunk_stamp, 0))
        status.delay, status.confidence = float(command.delay), float(command.confidence)
