"""Schedules, the clock of plans, speed and confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ChunkUnsure, Code, ConfigError
from flow_vla_core.execution import ChunkFollower, ExecutionState, Motion, make_schedule
from flow_vla_core.execution.plan_clock import PlanClock
from flow_vla_core.types import ActionChunk

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
NOW = 1_000 * DT
MEASURED = {'ee_position': np.array([0.0, 0.6, 0.2])}


def make_chunk(*rows: float, stamp: int = NOW, id: int = 1, confidence: float = math.nan) -> ActionChunk:
    """Make a chunk of velocities along x."""
    actions = np.zeros((len(rows), 4), np.float32)
    actions[:, 0] = rows
    return ActionChunk(stamp, DT, actions, id=id, confidence=confidence)


def speeds(follower: ChunkFollower, start: int, ticks: int) -> list[float]:
    return [round(float(follower.command(start + tick * DT, MEASURED).values[0]), 4) for tick in range(ticks)]


def arm(velocity: float = 10.0, **limits: object) -> RobotContract:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['rates']['control_hz'], values['state'][1]['unit'] = 100.0, 'rad'
    values['actions'] = [{
        'name': 'arm', 'kind': 'joint_position', 'names': ['gripper'], 'unit': 'rad',
        'limits': {'min': [-9.0], 'max': [9.0], 'velocity': [velocity], **limits},
        'message': 'trajectory_msgs/JointTrajectory', 'topic': 'arm'}]
    return RobotContract.parse(values)


def test_synchronous_begins_when_the_chunk_arrives_and_waits_for_the_next() -> None:
    follower = ChunkFollower(CONTRACT, schedule='synchronous', execute=2)
    follower.accept(make_chunk(0.01, 0.02, 0.03, stamp=NOW - 2 * DT), NOW)
    assert speeds(follower, NOW, 3) == [0.01, 0.02, 0]
    assert follower.command(NOW + 3 * DT, MEASURED).state == ExecutionState.HOLDING
    follower.accept(make_chunk(0.04, stamp=NOW - 100 * DT + DT * 101, id=2), NOW + 4 * DT)
    command = follower.command(NOW + 4 * DT, MEASURED)
    assert (command.values[0], command.chunk_step, command.delay) == (np.float32(0.04), 0, 3.0)


def test_asynchronous_begins_at_the_stamp() -> None:
    follower = ChunkFollower(CONTRACT)
    follower.accept(make_chunk(0.01, 0.02, 0.03, stamp=NOW - DT), NOW)
    assert speeds(follower, NOW, 3) == [0.02, 0.03, 0]


def test_ensembling_weights_the_oldest_most_and_only_plans_that_cover_the_time() -> None:
    follower = ChunkFollower(CONTRACT, schedule='ensembling')
    follower.accept(make_chunk(0.03, 0.03, 0.03, id=1), NOW)
    follower.accept(make_chunk(0.06, 0.06, 0.06, stamp=NOW + DT, id=2), NOW + DT)
    follower.accept(make_chunk(0.09, 0.09, 0.09, stamp=NOW + 2 * DT, id=3), NOW + 2 * DT)
    old, middle, new = np.exp(-0.01 * np.arange(3))
    expected = (0.03 * old + 0.06 * middle + 0.09 * new) / (old + middle + new)
    command = follower.command(NOW + 2 * DT, MEASURED)
    assert command.values[0] == pytest.approx(expected)
    assert command.chunk_id == 3
    # The first has ended: the second is now the oldest.
    later = follower.command(NOW + 3 * DT, MEASURED).values[0]
    assert later == pytest.approx((0.06 * old + 0.09 * middle) / (old + middle))


def test_ensembling_averages_rotations_across_half_a_turn() -> None:
    turns = np.array([[np.pi - 0.1, 0, 0], [-np.pi + 0.3, 0, 0]])
    motions = [Motion.at_rest(turn) for turn in turns]
    mean = make_schedule('ensembling', [np.arange(3)]).blend(motions)
    weights = np.exp(-0.01 * np.arange(2))
    reference = Rotation.from_rotvec(turns).mean(weights)
    assert (Rotation.from_rotvec(mean.values).inv() * reference).magnitude() < 1e-7


@pytest.mark.parametrize(('arguments', 'problem'), [
    ({'schedule': 'sync'}, "schedule: 'sync' is unknown; did you mean 'synchronous'"),
    ({'execute': 3}, "execute: 3 with the schedule 'asynchronous'"),
    ({'schedule': 'synchronous', 'execute': 0}, 'execute: 0'),
    ({'least_confidence': 1.5}, 'least_confidence: 1.5'), ({'careful_below': -1.0}, 'careful_below: -1.0')])
def test_bad_settings_are_refused(arguments: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ChunkFollower(CONTRACT, **arguments)


def test_the_clock_of_plans_adds_up_the_speed() -> None:
    clock = PlanClock()
    assert clock.between(5, 25) == 20
    for time, speed in ((0, 1.0), (100, 0.5), (200, 0.0), (300, 1.0)):
        clock.change(time, speed)
    assert clock.between(50, 100) == 50
    assert clock.between(50, 400) == 50 + 50 + 0 + 100
    assert clock.between(-50, 0) == 50


def test_half_speed_takes_the_same_way_in_twice_the_time() -> None:
    plan = np.linspace(0, 0.8, 9, dtype=np.float32)[:, None]
    follower = ChunkFollower(arm())
    follower.speed = 0.5
    follower.command(NOW, {'gripper': np.zeros(1)})
    follower.accept(ActionChunk(NOW, DT, plan), NOW)
    commands = [follower.command(NOW + tick * DT // 5) for tick in range(1, 21)]
    command = commands[-1]
    assert command.values[0] == pytest.approx(0.2)
    assert command.velocities[0] == pytest.approx(0.5 * 0.1 / 0.05)
    assert (command.speed, command.chunk_step) == (0.5, 2)
    assert follower.command(NOW + 9 * DT).code == Code.NO_CHUNK  # its own time is over


def test_half_speed_halves_velocities() -> None:
    follower = ChunkFollower(CONTRACT)
    follower.speed = 0.5
    follower.command(NOW - DT, MEASURED)
    follower.accept(make_chunk(0.1, 0.12, 0.14, 0.16), NOW)
    assert speeds(follower, NOW, 3) == [0.05, 0.055, 0.06]


def test_no_speed_holds_and_the_plan_goes_on_from_there() -> None:
    follower = ChunkFollower(CONTRACT)
    follower.accept(make_chunk(*[0.1, 0.11, 0.12, 0.13, 0.14, 0.15]), NOW)
    assert speeds(follower, NOW, 2) == [0.1, 0.11]
    follower.speed = 0.0
    command = follower.command(NOW + 2 * DT, MEASURED)
    assert (command.state, command.code, command.values[0]) == (ExecutionState.HOLDING, Code.OK, 0)
    follower.command(NOW + 3 * DT, MEASURED)
    follower.speed = 1.0
    assert follower.command(NOW + 4 * DT, MEASURED).values[0] == pytest.approx(0.12)
    assert follower.command(NOW + 5 * DT, MEASURED).values[0] == pytest.approx(0.13)


@pytest.mark.parametrize('speed', [-0.1, 1.1, math.nan])
def test_a_speed_outside_of_0_to_1_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match='speed'):
        ChunkFollower(CONTRACT).speed = speed


@pytest.mark.parametrize('confidence', [0.2, math.nan])
def test_an_unsure_chunk_is_refused(confidence: float) -> None:
    follower = ChunkFollower(CONTRACT, least_confidence=0.3)
    with pytest.raises(ChunkUnsure, match=r'chunk 1 has the confidence .*; allowed: 0.3 to 1'):
        follower.accept(make_chunk(0.1, confidence=confidence), NOW)
    assert follower.accept(make_chunk(0.1, confidence=0.3), NOW)


@pytest.mark.parametrize(('confidence', 'speed'), [(0.9, 1.0), (0.5, 1.0), (0.4, 0.5), (math.nan, 0.5)])
def test_a_chunk_that_is_not_sure_is_followed_at_half_speed(confidence: float, speed: float) -> None:
    follower = ChunkFollower(CONTRACT, careful_below=0.5)
    follower.accept(make_chunk(0.1, 0.1, confidence=confidence), NOW)
    command = follower.command(NOW, MEASURED)
    assert command.values[0] == pytest.approx(0.1 * speed)
    assert command.speed == speed
    np.testing.assert_equal(command.confidence, confidence)


def test_cubic_commands_carry_their_velocities() -> None:
    follower = ChunkFollower(arm(acceleration=[1e3], jerk=[1e6]), interpolation='cubic')
    follower.command(NOW - DT // 5, {'gripper': np.zeros(1)})
    plan = np.linspace(0, 1, 9) ** 2 * np.ones((1, 1))
    follower.accept(ActionChunk(NOW, DT, plan.T.astype(np.float32)), NOW)
    commands = [follower.command(NOW + tick * DT // 5) for tick in range(36)]
    values = np.array([float(command.values[0]) for command in commands])
    rates = np.array([float(command.velocities[0]) for command in commands])
    np.testing.assert_allclose(np.diff(values) / 0.01, (rates[:-1] + rates[1:]) / 2, rtol=0.02, atol=0.005)
