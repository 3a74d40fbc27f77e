"""How an attempt to follow an instruction ends, decided without a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from flow_vla.msg import ExecutionStatus, PolicyStatus
from flow_vla_core.errors import Code
from flow_vla_ros.attempt import Attempt, Outcome, Patience, View

WORDS = 'open the drawer'
PATIENCE = Patience(ready=3.0, acting=5.0, stop=2.0, success=0.5)


def view(clock: float, **changes: Any) -> View:
    """See a robot that acts, at a time, s; ``policy_...`` and ``execution_...`` change a field of a status."""
    policy = PolicyStatus(state=PolicyStatus.RUNNING, instruction=WORDS)
    execution = ExecutionStatus(state=ExecutionStatus.FOLLOWING)
    for key in [key for key in changes if key.startswith(('policy_', 'execution_'))]:
        status, _, field = key.partition('_')
        setattr(policy if status == 'policy' else execution, field, changes.pop(key))
    return replace(View(clock, clock, policy, execution), **changes)


def outcome(*views: View, timeout: float = 0.0) -> Outcome | None:
    """Show an attempt what is given and return what it decides in the end."""
    attempt = Attempt(WORDS, timeout, PATIENCE, clock=0.0)
    for seen in views:
        decided = attempt.judge(seen)
    return decided


@pytest.mark.parametrize(('views', 'code', 'said'), [
    ([view(100.0)], None, ''),
    ([view(1.0, cancelled=True)], Code.CANCELLED, ''),
    ([view(1.0, execution_state=ExecutionStatus.STOPPED, execution_message='by hand')], Code.STOPPED, 'by hand'),
    ([view(1.0, success=True), view(1.4, success=True)], None, ''),
    ([view(1.0, success=True), view(1.6, success=True)], Code.OK, ''),
    ([view(1.0, success=True), view(1.3), view(1.4, success=True), view(1.6, success=True)], None, ''),
    ([view(3.1, policy=None)], Code.NOT_READY, 'the policy is not there'),
    ([view(2.9, policy=None), view(3.1), view(6.0, policy=None)], None, ''),
    ([view(3.1, policy_state=PolicyStatus.INACTIVE)], Code.NOT_READY, 'the policy is not active'),
    ([view(3.1, execution=None)], Code.NOT_READY, 'the executor is not there'),
    ([view(5.1, policy_code=Code.STREAM_STALE, policy_message='front is old')], Code.NOT_ACTING,
     'STREAM_STALE: front is old'),
    ([view(4.9, policy_code=Code.STREAM_STALE), view(5.1), view(10.0, policy_code=Code.STREAM_STALE)], None, ''),
    ([view(5.1, policy_instruction='close it')], Code.NOT_ACTING, "'close it'"),
    ([view(5.1, execution_state=ExecutionStatus.HOLDING, execution_code=Code.CHUNK_JUMP,
           execution_message='too far')], Code.NOT_ACTING, 'CHUNK_JUMP: too far')])
def test_how_it_ends(views: list[View], code: Code | None, said: str) -> None:
    decided = outcome(*views)
    assert (decided and decided.code) == code
    assert decided is None or said in decided.message


def test_its_time_runs_out_by_the_robots_clock() -> None:
    assert outcome(replace(view(50.0), elapsed=9.9), timeout=10.0) is None
    assert outcome(replace(view(9.0), elapsed=10.0), timeout=10.0).code == Code.TIMED_OUT


def test_a_decision_stays_and_is_answered_when_the_robot_stands_still() -> None:
    attempt = Attempt(WORDS, 0.0, PATIENCE, clock=0.0)
    assert attempt.finished(view(0.5)) is None
    assert attempt.judge(view(1.0, cancelled=True)).code == attempt.judge(view(1.1, success=True)).code
    assert attempt.stopping
    holding = view(1.2, execution_state=ExecutionStatus.HOLDING)
    assert attempt.finished(holding) is None          # before anybody told it to
    assert attempt.finished(replace(view(1.3), held=True)) is None
    assert attempt.finished(replace(holding, held=True)).code == Code.CANCELLED


def test_a_robot_that_does_not_stand_still_in_time_is_told_of() -> None:
    attempt = Attempt(WORDS, 0.0, PATIENCE, clock=0.0)
    attempt.judge(view(1.0, cancelled=True))
    assert attempt.finished(replace(view(2.9), held=True)) is None
    decided = attempt.finished(replace(view(3.1), held=True))
    assert decided.code == Code.NOT_READY and 'CANCELLED' in decided.message


def test_without_an_executor_there_is_nothing_to_wait_for() -> None:
    attempt = Attempt(WORDS, 0.0, PATIENCE, clock=0.0)
    assert attempt.judge(view(3.1, execution=None)).code == Code.NOT_READY
    assert attempt.finished(view(3.2, execution=None)).code == Code.NOT_READY
