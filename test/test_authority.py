"""Who drives: a person before the policy, until they let go; and a plan that starts anew at every change of hands."""

from __future__ import annotations

import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ChunkOverruled, ChunkTooOld
from flow_vla_core.execution import Authority, ChunkFollower, ExecutionState
from flow_vla_core.execution.continuation import Succession
from flow_vla_core.types import ActionChunk, Actor

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
NOW = 10 ** 12
MEASURED = {'ee_position': np.array([0.0, 0.6, 0.2])}


def chunk(stamp: int = NOW, speed: float = 0.1, rows: int = 10) -> ActionChunk:
    return ActionChunk(stamp, DT, np.tile(np.array([speed, 0, 0, 1], np.float32), (rows, 1)), id=7, confidence=1.0)


def test_the_policy_is_overruled_until_the_person_lets_go_and_then_has_to_look_again() -> None:
    authority = Authority()
    authority.check(chunk(), Actor.POLICY, NOW)
    authority.take(Actor.POLICY, NOW)
    assert authority.changes(Actor.PERSON) and not authority.changes(Actor.POLICY)
    authority.take(Actor.PERSON, NOW)
    with pytest.raises(ChunkOverruled, match='chunk 7 came while a person drives'):
        authority.check(chunk(NOW + 10 ** 9), Actor.POLICY, NOW + 10 ** 9)
    assert authority.release(NOW + 2 * DT) and not authority.release(NOW + 2 * DT)
    with pytest.raises(ChunkTooOld, match='before it was told to wait'):
        authority.check(chunk(NOW + 2 * DT - 1), Actor.POLICY, NOW + 3 * DT)
    authority.check(chunk(NOW + 2 * DT), Actor.POLICY, NOW + 3 * DT)
    assert not authority.changes(Actor.POLICY)


def test_silence_hands_back_only_where_that_is_asked_for() -> None:
    patient, quick = Authority(), Authority(hand_back=10 ** 9)
    for authority in (patient, quick):
        authority.take(Actor.PERSON, NOW)
        assert not authority.expired(NOW + 10 ** 9 - 1)
    assert quick.expired(NOW + 10 ** 9) and not patient.expired(NOW + 10 ** 15)
    quick.take(Actor.POLICY, NOW)
    assert not quick.expired(NOW + 10 ** 12)


def test_when_time_goes_backwards_the_person_stays_and_the_waiting_ends() -> None:
    authority = Authority(hand_back=10 ** 9)
    authority.take(Actor.PERSON, NOW)
    authority.wait(NOW)
    early = NOW // 2
    authority.check(chunk(early), Actor.PERSON, early)
    assert authority.person_drives and not authority.expired(early + 10 ** 9 - 1)
    assert authority.expired(early + 10 ** 9)


@pytest.mark.parametrize(('driver', 'state', 'source'), [
    (Actor.NOBODY, ExecutionState.IDLE, Actor.NOBODY), (Actor.POLICY, ExecutionState.FOLLOWING, Actor.POLICY),
    (Actor.POLICY, ExecutionState.SLOWING, Actor.NOBODY), (Actor.PERSON, ExecutionState.FOLLOWING, Actor.PERSON),
    (Actor.PERSON, ExecutionState.HOLDING, Actor.PERSON), (Actor.PERSON, ExecutionState.STOPPED, Actor.NOBODY)])
def test_who_acts(driver: Actor, state: ExecutionState, source: Actor) -> None:
    authority = Authority()
    authority.take(driver, NOW)
    assert authority.source(state) == source


@pytest.mark.parametrize('schedule', ['asynchronous', 'synchronous', 'ensembling'])
def test_a_take_over_blends_nothing_and_stays_within_the_acceleration(schedule: str) -> None:
    follower = ChunkFollower(CONTRACT, control_hz=200.0, schedule=schedule)
    follower.accept(chunk(NOW, 0.2, 40), NOW)
    speeds = [follower.command(NOW + tick * DT // 10, MEASURED).values[0] for tick in range(20)]
    now = NOW + 2 * DT
    assert follower.accept(chunk(NOW - DT, -0.1, 40), now, anew=True)   # older than the plan in force, and yet
    speeds += [follower.command(now + tick * DT // 10, MEASURED).values[0] for tick in range(40)]
    assert np.abs(np.diff(speeds)).max() <= 8.0 * 0.005 + 1e-6
    assert speeds[19] == pytest.approx(0.2) and speeds[-1] == pytest.approx(-0.1)


def test_a_plan_that_was_not_followed_is_not_continued() -> None:
    chunks = Succession(CONTRACT, replan_steps=5, realtime='prefix')
    for start in (NOW, NOW + 20 * DT):
        chunks.publish(chunk(start, rows=12), now=start + DT)
        chunks.disown(start)                       # said before it was published
        assert chunks.continuation(start + 5 * DT, '').delay == 1
        chunks.disown(start + 2 * DT)              # the executor follows something else by now
        assert chunks.continuation(start + 5 * DT, '') is None
        assert chunks.is_due(start + 5 * DT, '') and not chunks.is_due(start + 4 * DT, '')
