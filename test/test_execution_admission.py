"""Chunks of positions that jump are refused; what limits can smooth is not."""

from __future__ import annotations

import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ChunkJump, Code
from flow_vla_core.execution import ChunkFollower
from flow_vla_core.types import ActionChunk

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
NOW = 1_000 * DT


def make_follower(kind: str = 'joint_position', **changes: object) -> ChunkFollower:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    names = ['rx', 'ry', 'rz'] if kind == 'ee_pose' else ['one', 'two', 'three']
    limits = {'min': [-4.0] * 3, 'max': [4.0] * 3, 'velocity': [2.0, 1.0, 2.0]}
    values['actions'] = [{
        'name': 'arm', 'kind': kind, 'names': names, 'unit': 'rad', 'limits': limits | changes,
        'message': 'geometry_msgs/PoseStamped' if kind == 'ee_pose' else 'trajectory_msgs/JointTrajectory',
        'topic': 'arm'}]
    return ChunkFollower(RobotContract.parse(values))


def make_chunk(*rows: object, stamp: int = NOW) -> ActionChunk:
    return ActionChunk(stamp, DT, np.array(rows, np.float32), id=7)


@pytest.mark.parametrize(('wide', 'refused'), [(0.14, False), (0.16, True)])
def test_a_step_of_more_than_three_times_the_velocity_is_a_jump(wide: float, refused: bool) -> None:
    chunk = make_chunk([0, 0, 0], [0, 0, 0], [0, wide, 0])
    if not refused:
        assert make_follower().accept(chunk, NOW)
        return
    with pytest.raises(ChunkJump, match=r'chunk 7 goes 0.16 from action 1 to the next in arm.two; allowed: 0.15') as e:
        make_follower().accept(chunk, NOW)
    assert e.value.code == Code.CHUNK_JUMP


@pytest.mark.parametrize(('start', 'age', 'refused'), [(0.49, 0, False), (0.51, 0, True), (0.49, 1, True)])
def test_a_start_that_is_not_reached_in_the_rest_of_the_plan_is_a_jump(start: float, age: int, refused: bool) -> None:
    follower = make_follower()
    follower.accept(make_chunk([0, 0, 0], stamp=NOW - DT), NOW - DT)
    follower.command(NOW - DT)
    chunk = make_chunk(*[[0, start, 0]] * 10, stamp=NOW - age * DT)
    if not refused:
        assert follower.accept(chunk, NOW)
        return
    with pytest.raises(ChunkJump, match='from the last command in arm.two'):
        follower.accept(chunk, NOW)


def test_the_first_chunk_of_all_may_begin_anywhere() -> None:
    assert make_follower().accept(make_chunk([3.0, 3.0, 3.0]), NOW)


@pytest.mark.parametrize(('wide', 'refused'), [(0.14, False), (0.17, True)])
def test_a_rotation_jumps_by_its_angle_also_across_half_a_turn(wide: float, refused: bool) -> None:
    chunk = make_chunk([np.pi - wide / 2, 0, 0], [-np.pi + wide / 2, 0, 0])
    if not refused:
        assert make_follower('ee_pose').accept(chunk, NOW)
        return
    with pytest.raises(ChunkJump, match='goes 0.17 from action 0'):
        make_follower('ee_pose').accept(chunk, NOW)


def test_velocities_and_grippers_never_jump() -> None:
    actions = np.array([[-0.2, 0.2, 0.2, -1], [0.2, -0.2, -0.2, 1]] * 4, np.float32)
    assert ChunkFollower(CONTRACT).accept(ActionChunk(NOW, DT, actions), NOW)
