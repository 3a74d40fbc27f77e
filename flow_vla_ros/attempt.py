"""Decides when an attempt to follow an instruction ends, and how."""

from __future__ import annotations

from dataclasses import dataclass

from flow_vla.msg import ExecutionStatus, PolicyStatus
from flow_vla_core.errors import Code

__all__ = ['Attempt', 'Outcome', 'Patience', 'View']

AT_REST = (ExecutionStatus.IDLE, ExecutionStatus.HOLDING, ExecutionStatus.STOPPED)


@dataclass(frozen=True)
class Outcome:
    """Says how an attempt ended: a code of ExecuteInstruction, and why in words."""

    code: Code
    message: str = ''


@dataclass(frozen=True)
class Patience:
    """Says how long an attempt puts up with what, in s.

    Args:
        ready: policy or executor is missing or not active.
        acting: the policy can't act, or nothing is followed.
        stop: the robot has not come to rest after it was told to.
        success: the success condition has to hold for so long.
    """

    ready: float = 3.0
    acting: float = 5.0
    stop: float = 3.0
    success: float = 0.0


@dataclass(frozen=True)
class View:
    """Holds what is known at one time.

    Args:
        clock: s, of a clock that never stands still.
        elapsed: s of ROS time since the goal came.
        policy: newest status, None if there is none, or none that is fresh.
        execution: newest status, likewise.
        success: whether the success condition holds.
        cancelled: whether somebody asked for the end.
        held: whether the executor had answered a call to hold when it sent that status.
    """

    clock: float
    elapsed: float
    policy: PolicyStatus | None = None
    execution: ExecutionStatus | None = None
    success: bool = False
    cancelled: bool = False
    held: bool = False

    @property
    def at_rest(self) -> bool:
        """Whether the executor says that the robot stands still, and will."""
        return self.held and self.execution is not None and self.execution.state in AT_REST


class Attempt:
    """Follows one instruction from the goal to its outcome, then until the robot stands still.

    Args:
        instruction: the words.
        timeout: s, 0 for none.
        patience: with what goes wrong.
        clock: s, when the goal came.

    Example:
        >>> attempt = Attempt('open the drawer', timeout=20.0, patience=Patience(), clock=0.0)
        >>> attempt.judge(View(clock=1.0, elapsed=1.0)) is None
        True
        >>> attempt.judge(View(clock=2.0, elapsed=2.0, cancelled=True)).code.name
        'CANCELLED'
    """

    def __init__(self, instruction: str, timeout: float, patience: Patience, clock: float) -> None:
        self._instruction, self._timeout, self._patience = instruction, timeout, patience
        self._ready = self._acting = clock
        self._succeeding: float | None = None
        self._stopping: float | None = None
        self._outcome: Outcome | None = None

    @property
    def stopping(self) -> bool:
        """Whether the outcome is known and the robot is being stopped."""
        return self._outcome is not None

    def judge(self, view: View) -> Outcome | None:
        """Return the outcome as soon as there is one, otherwise None; from then on it stays."""
        if self._outcome is None:
            self._outcome = self._decide(view)
            self._stopping = view.clock
        return self._outcome

    def finished(self, view: View) -> Outcome | None:
        """Return what to answer, once the robot stands still or has had its time to; None while it moves."""
        if self._outcome is None:
            return None
        if view.at_rest or (self._outcome.code == Code.NOT_READY and view.execution is None):
            return self._outcome
        if view.clock - self._stopping <= self._patience.stop:
            return None
        return Outcome(Code.NOT_READY, f'the executor does not say that the robot stands still; before: '
                                       f'{self._outcome.code.name}')

    def hindrance(self, view: View) -> tuple[Code, str]:
        """Return why nothing is done towards the instruction at the moment; ``OK`` and nothing if all is well."""
        if missing := _missing(view):
            return Code.NOT_READY, missing
        if view.policy.instruction != self._instruction:
            return Code.NOT_ACTING, f'the policy still has the instruction {view.policy.instruction!r}'
        if view.policy.code != Code.OK:
            return Code(view.policy.code), view.policy.message
        if view.execution.state != ExecutionStatus.FOLLOWING:
            return Code(view.execution.code), view.execution.message or 'nothing is followed'
        return Code.OK, ''

    def _decide(self, view: View) -> Outcome | None:
        if view.cancelled:
            return Outcome(Code.CANCELLED)
        if view.execution is not None and view.execution.state == ExecutionStatus.STOPPED:
            return Outcome(Code.STOPPED, view.execution.message)
        if self._succeeded(view):
            return Outcome(Code.OK)
        if 0 < self._timeout <= view.elapsed:
            return Outcome(Code.TIMED_OUT, f'no success within {self._timeout:g} s')
        return self._lost_patience(view)

    def _succeeded(self, view: View) -> bool:
        if not view.success:
            self._succeeding = None
            return False
        self._succeeding = view.clock if self._succeeding is None else self._succeeding
        return view.clock - self._succeeding >= self._patience.success

    def _lost_patience(self, view: View) -> Outcome | None:
        code, message = self.hindrance(view)
        if code != Code.NOT_READY:
            self._ready = view.clock
        if code == Code.OK:
            self._acting = view.clock
        if view.clock - self._ready > self._patience.ready:
            return Outcome(Code.NOT_READY, message)
        if code != Code.NOT_READY and view.clock - self._acting > self._patience.acting:
            return Outcome(Code.NOT_ACTING, f'{code.name}: {message}')
        return None


def _missing(view: View) -> str:
    if view.policy is None:
        return 'the policy is not there'
    if view.policy.state == PolicyStatus.INACTIVE:
        return 'the policy is not active'
    return 'the executor is not there, or not active' if view.execution is None else ''
