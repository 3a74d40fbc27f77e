"""The chunk follower: stamps, refusals, holding, emergency stop, and bounds under adversarial chunks."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import (
    ChunkError,
    ChunkFromFuture,
    ChunkNotFinite,
    ChunkShape,
    ChunkStep,
    ChunkTooOld,
    Code,
)
from flow_vla_core.execution import ChunkFollower, ExecutionState
from flow_vla_core.types import ActionChunk

DT = 50_000_000
NOW = 1_000 * DT
CONTRACT = RobotContract.load(find_contract('metaworld'))
MEASURED = {'ee_position': np.array([0.0, 0.6, 0.2])}


def make_chunk(*rows: float, stamp: int = NOW, **changes: object) -> ActionChunk:
    """Make a chunk whose action ``i`` has the velocity ``rows[i]`` along x and closes the gripper as far."""
    actions = np.zeros((len(rows), 4), np.float32)
    actions[:, 0] = actions[:, 3] = rows
    return replace(ActionChunk(stamp, DT, actions, id=7), **changes)


def make_follower(**arguments: object) -> ChunkFollower:
    return ChunkFollower(CONTRACT, **arguments)


def joints_contract(**limits: object) -> RobotContract:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['state'][1]['unit'] = 'rad'
    values['actions'] = [{'name': 'arm', 'kind': 'joint_position', 'names': ['gripper'], 'unit': 'rad',
                          'limits': limits, 'message': 'trajectory_msgs/JointTrajectory', 'topic': 'arm'}]
    return RobotContract.parse(values)


def test_actions_are_chosen_by_their_stamps_and_those_in_the_past_are_dropped() -> None:
    follower = make_follower()
    follower.accept(make_chunk(0.01, 0.02, 0.03, 0.04), NOW + 2 * DT)
    command = follower.command(NOW + 2 * DT, MEASURED)
    assert (command.chunk_step, command.values[0]) == (2, np.float32(0.03))
    assert (command.state, command.code, command.chunk_id) == (ExecutionState.FOLLOWING, Code.OK, 7)


@pytest.mark.parametrize(('interpolation', 'expected'), [('linear', 0.025), ('hold', 0.02)])
def test_between_two_actions(interpolation: str, expected: float) -> None:
    follower = make_follower(interpolation=interpolation, control_hz=40.0)
    follower.accept(make_chunk(0.02, 0.03), NOW)
    command = follower.command(NOW + DT // 2, MEASURED)
    assert command.values[0] == pytest.approx(expected)
    assert command.values[3] == pytest.approx(0.02)  # a gripper is never interpolated


def test_a_new_chunk_replaces_the_rest_of_the_old_one() -> None:
    follower = make_follower()
    follower.accept(make_chunk(0.1, 0.1, 0.1, 0.1), NOW)
    follower.command(NOW, MEASURED)
    follower.accept(make_chunk(0.05, 0.06, stamp=NOW + DT, id=8), NOW + DT)
    command = follower.command(NOW + DT, MEASURED)
    assert (command.chunk_id, command.chunk_step, command.values[0]) == (8, 0, np.float32(0.05))


def test_before_any_chunk_it_is_idle_at_rest_and_says_nothing_to_the_gripper() -> None:
    command = make_follower().command(NOW, MEASURED)
    assert (command.state, command.code, command.parts) == (ExecutionState.IDLE, Code.NO_CHUNK, ('ee',))
    assert not command.values.any()


def test_after_the_plan_it_slows_down_within_the_acceleration_and_holds() -> None:
    follower = make_follower(control_hz=200.0)
    tick = DT // 10
    follower.accept(make_chunk(0.2, 0.2), NOW)
    commands = [follower.command(NOW + k * tick, MEASURED) for k in range(40)]
    speeds = np.array([command.values[0] for command in commands])
    assert np.abs(np.diff(speeds)).max() <= 8.0 * 0.005 + 1e-6
    states = [command.state for command in commands[18:]]
    assert states == sorted(states)
    assert {ExecutionState.FOLLOWING, ExecutionState.SLOWING, ExecutionState.HOLDING} == set(states)
    last = commands[-1]
    assert (last.code, last.values[0], last.values[3]) == (Code.NO_CHUNK, 0, np.float32(0.2))
    assert last.parts == ('ee', 'gripper')


def test_trust_ends_a_plan_early() -> None:
    follower = make_follower(trust=2 * DT)
    follower.accept(make_chunk(*[0.1] * 10), NOW)
    assert follower.command(NOW + DT, MEASURED).state == ExecutionState.FOLLOWING
    assert follower.command(NOW + 2 * DT, MEASURED).code == Code.NO_CHUNK


@pytest.mark.parametrize(('chunk', 'error'), [
    (make_chunk(0.1, actions=np.zeros((3, 5), np.float32)), ChunkShape),
    (make_chunk(0.1, actions=np.zeros((0, 4), np.float32)), ChunkShape),
    (make_chunk(0.1, actions=np.zeros(4, np.float32)), ChunkShape),
    (make_chunk(0.1, np.nan), ChunkNotFinite),
    (make_chunk(0.1, np.inf), ChunkNotFinite),
    (make_chunk(0.1, dt=DT + 1), ChunkStep),
    (make_chunk(0.1, stamp=NOW + DT + 1), ChunkFromFuture),
    (make_chunk(0.1, stamp=NOW - DT), ChunkTooOld),
    (make_chunk(0.1, stamp=0), ChunkTooOld),
])
def test_a_bad_chunk_is_refused_and_the_plan_stays(chunk: ActionChunk, error: type[ChunkError]) -> None:
    follower = make_follower()
    follower.accept(make_chunk(0.05, 0.05, id=1), NOW)
    with pytest.raises(error, match='chunk 7') as caught:
        follower.accept(chunk, NOW)
    assert caught.value.code == error.code
    assert follower.command(NOW, MEASURED).chunk_id == 1


def test_a_chunk_older_than_the_one_in_force_is_refused() -> None:
    follower = make_follower()
    follower.accept(make_chunk(0.1, 0.1, 0.1), NOW)
    with pytest.raises(ChunkTooOld, match='older than the chunk 7 in force'):
        follower.accept(make_chunk(0.1, 0.1, 0.1, stamp=NOW - DT), NOW)


def test_emergency_stop_latches_and_the_old_plan_is_gone_after_reset() -> None:
    follower = make_follower()
    follower.accept(make_chunk(*[0.1] * 20), NOW)
    follower.command(NOW, MEASURED)
    follower.estop()
    assert not follower.accept(make_chunk(*[0.1] * 20, stamp=NOW + DT), NOW + DT)
    command = follower.command(NOW + DT, MEASURED)
    assert (command.state, command.code, command.values[0]) == (ExecutionState.STOPPED, Code.EMERGENCY_STOP, 0)
    assert follower.command(NOW + 2 * DT, MEASURED).state == ExecutionState.STOPPED
    follower.reset_estop()
    assert follower.command(NOW + 3 * DT, MEASURED).code == Code.NO_CHUNK
    assert follower.accept(make_chunk(*[0.1] * 20, stamp=NOW + 4 * DT), NOW + 4 * DT)
    assert follower.command(NOW + 4 * DT, MEASURED).state == ExecutionState.FOLLOWING


def test_emergency_stop_outlasts_forgetting() -> None:
    follower = make_follower()
    follower.estop()
    follower.clear()
    assert follower.command(NOW, MEASURED).state == ExecutionState.STOPPED


def test_a_late_tick_or_two_at_one_time_allow_no_bigger_change() -> None:
    follower = make_follower(control_hz=200.0)
    follower.accept(make_chunk(*[0.2] * 40), NOW)
    first, again = (float(follower.command(NOW, MEASURED).values[0]) for _ in range(2))
    late = float(follower.command(NOW + 2 * DT, MEASURED).values[0])
    assert first == again == pytest.approx(8.0 * 0.005)
    assert late - again == pytest.approx(8.0 * 0.005)


def test_a_clock_that_jumps_backwards_drops_the_plan_until_the_next_chunk() -> None:
    follower = make_follower()
    follower.accept(make_chunk(*[0.1] * 5), NOW)
    follower.command(NOW, MEASURED)
    early = NOW - 100 * DT
    command = follower.command(early, MEASURED)
    assert (command.code, command.values[0]) == (Code.CLOCK_JUMP, 0)
    assert follower.command(early + DT, MEASURED).state == ExecutionState.HOLDING
    assert follower.accept(make_chunk(0.1, stamp=early + DT), early + DT)
    assert follower.command(early + DT, MEASURED).code == Code.OK


def test_a_chunk_from_after_the_jump_is_taken_before_the_next_tick() -> None:
    follower = make_follower()
    follower.accept(make_chunk(*[0.1] * 5), NOW)
    follower.command(NOW, MEASURED)
    early = NOW - 100 * DT
    assert follower.accept(make_chunk(0.05, 0.05, stamp=early, id=8), early)
    assert follower.command(early, MEASURED).chunk_id == 8


@pytest.mark.parametrize('measured', [None, {}, {'ee_position': np.full(3, np.nan)}])
def test_without_a_measured_position_it_rests_and_goes_on_when_it_is_back(measured: dict | None) -> None:
    follower = make_follower()
    follower.accept(make_chunk(*[0.1] * 5), NOW)
    command = follower.command(NOW, measured)
    assert (command.code, command.values[0]) == (Code.STATE_STALE, 0)
    assert follower.command(NOW + DT, MEASURED).chunk_step == 1


def test_the_streams_that_limits_need_are_named() -> None:
    assert make_follower().needs == {'ee_position'}
    assert ChunkFollower(joints_contract(min=[-1.0], max=[1.0])).needs == {'gripper'}


def test_joints_start_from_where_they_are_measured() -> None:
    contract = joints_contract(min=[-1.0], max=[1.0], velocity=[0.5])
    follower = ChunkFollower(contract)
    assert follower.command(NOW).parts == ()
    assert follower.command(NOW + DT, {'gripper': np.array([0.3])}).parts == ('arm',)
    actions = np.full((4, 1), 0.39, np.float32)
    follower.accept(ActionChunk(NOW + 2 * DT, DT, actions), NOW + 2 * DT)
    command = follower.command(NOW + 2 * DT)
    assert command.values[0] == pytest.approx(0.3 + 0.5 * 0.05)
    assert command.limited


def test_limited_says_whether_a_limit_changed_the_command() -> None:
    follower = make_follower()
    follower.accept(make_chunk(0.1, 0.9), NOW)
    assert not follower.command(NOW, MEASURED).limited
    command = follower.command(NOW + DT, MEASURED)
    assert command.limited
    assert command.values[0] == pytest.approx(0.2)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
numbers = st.floats(width=32)
events = st.lists(st.tuples(
    st.sampled_from(['chunk', 'tick', 'tick', 'tick', 'late', 'jump', 'estop', 'reset', 'blind', 'again']),
    st.lists(st.one_of(finite, numbers, st.floats(-1, 1, width=32)), min_size=4, max_size=4),
    st.integers(-20, 3), st.integers(1, 6)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(events, st.sampled_from([20.0, 60.0, 200.0]), st.sampled_from(['linear', 'cubic', 'hold']))
def test_no_stream_of_chunks_gets_a_command_past_a_bound(events: list, hertz: float, interpolation: str) -> None:
    follower = make_follower(control_hz=hertz, interpolation=interpolation)
    now, period = NOW, round(1e9 / hertz)
    position, velocity = np.array([0.4, 1.0, 0.1]), np.zeros(3)
    follower.command(now)
    for what, values, offset, rows in events:
        if what == 'chunk':
            actions = np.outer(np.linspace(-1, 1, rows), values).astype(np.float32)
            try:
                follower.accept(ActionChunk(now + offset * DT, DT, actions), now)
            except ChunkError:
                continue
            continue
        if what in ('estop', 'reset'):
            follower.estop() if what == 'estop' else follower.reset_estop()
        now += {'late': 7 * period, 'jump': -50 * DT, 'again': 0}.get(what, period)
        elapsed = 0 if what == 'again' else period * 1e-9
        position = position + velocity * elapsed
        assert np.all(position >= np.array([-0.55, 0.35, 0.03]) - 1e-6)
        assert np.all(position <= np.array([0.55, 1.05, 0.45]) + 1e-6)
        command = follower.command(now, None if what == 'blind' else {'ee_position': position})
        assert np.isfinite(command.values).all()
        assert np.all(np.abs(command.values[:3]) <= 0.2 + 1e-6)
        assert abs(command.values[3]) <= 1
        assert np.all(np.abs(command.values[:3] - velocity) <= 8.0 * elapsed + 1e-5)
        velocity = command.values[:3].astype(np.float64)
