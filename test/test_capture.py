"""Demonstrations captured through the nodes, as the command does it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS tests need the ROS wheels or a sourced distribution')
pytest.importorskip('metaworld')

import bag_tools

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import find_bags, read_episode, read_metadata
from flow_vla_core.errors import ConfigError
from flow_vla_core.simulation.metaworld import MetaWorldRobot
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_ros.capture import capture_demos, lost_messages

STEPS = {'out': None, 'tasks': 'coffee-button', 'seed': 3, 'noise': 0.3, 'contract': 'metaworld', 'hold_steps': 4}


@pytest.fixture(scope='module')
def contract():
    return RobotContract.load(find_contract('metaworld'))


@pytest.fixture(scope='module')
def bags(ros_environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp('bags')
    capture_demos(**{**STEPS, 'out': folder, 'episodes': 1})
    return folder


def test_a_bag_holds_what_the_expert_did_in_this_scene(bags, contract):
    (bag,) = find_bags(bags)
    assert read_metadata(bag)['task'] == 'coffee-button#3' and read_metadata(bag)['outcome'] == 'success'
    episode = read_episode(bag, contract)
    robot = MetaWorldRobot(contract, ExecutionNoise(0.3))
    robot.reset('coffee-button', 3)
    for state, action in zip(episode.state, episode.actions):
        np.testing.assert_allclose(state, np.concatenate(list(robot.state().values())), atol=1e-5)
        np.testing.assert_allclose(action, robot.expert_action(), atol=1e-5)
        robot.step(robot.expert_action())
    assert robot.success and episode.instruction == robot.instruction
    assert lost_messages(bag, contract) == 0


def test_an_interrupted_capture_goes_on_where_it_was(bags):
    before = find_bags(bags)
    capture_demos(**{**STEPS, 'out': bags, 'episodes': 2})
    assert set(before) < set(find_bags(bags))
    assert sorted(read_metadata(bag)['task'] for bag in find_bags(bags)) == ['coffee-button#3', 'coffee-button#4']


def test_an_unknown_task_is_named(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'coffee-button'"):
        capture_demos(**{**STEPS, 'out': tmp_path, 'tasks': 'coffee-buton', 'episodes': 1})


def test_a_message_lost_on_the_way_is_noticed(tmp_path):
    samples = bag_tools.steps(6)
    whole = bag_tools.record(tmp_path / 'whole', samples)
    holes = [sample for sample in samples
             if sample[:2] not in (('/camera/front/image_raw', bag_tools.START + 2 * bag_tools.DT),
                                   ('/gripper/command', bag_tools.START + 4 * bag_tools.DT))]
    broken = bag_tools.record(tmp_path / 'broken', holes)
    late = bag_tools.record(tmp_path / 'late', [sample for sample in samples if sample[0] != '/ee_pose'
                                                or sample[1] >= bag_tools.START + 3 * bag_tools.DT])
    assert lost_messages(whole, bag_tools.CONTRACT) == 0
    assert lost_messages(broken, bag_tools.CONTRACT) == 2
    assert lost_messages(late, bag_tools.CONTRACT) == 2
    without = [sample for sample in samples if sample[0] != '/joint_states']
    assert lost_messages(bag_tools.record(tmp_path / 'without', without), bag_tools.CONTRACT) == 6
