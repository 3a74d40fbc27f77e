"""The simulated robot without ROS: units, seeds, the pair of tasks that shares its scene, disturbances."""

import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.simulation.noise import ExecutionNoise

pytest.importorskip('metaworld')

from flow_vla_core.simulation.metaworld import TASKS, MetaWorldRobot


@pytest.fixture(scope='module')
def contract():
    return RobotContract.load(find_contract('metaworld'))


@pytest.fixture(scope='module')
def robot(contract):
    robot = MetaWorldRobot(contract)
    yield robot
    robot.close()


@pytest.mark.parametrize('task', TASKS)
def test_expert_succeeds_through_the_contract(contract, task):
    robot = MetaWorldRobot(contract)
    robot.reset(task, 3)
    low, high = contract.actions[0].limits.workspace_min, contract.actions[0].limits.workspace_max
    while not robot.success and robot.steps < 200:
        action = robot.expert_action()
        assert (np.abs(action[:3]) <= 0.2 + 1e-6).all() and abs(action[3]) <= 1
        robot.step(action)
        position = robot.state()['ee_position']
        assert (position > low).all() and (position < high).all()
    assert robot.success


def test_velocity_is_in_metres_per_second(contract):
    robot = MetaWorldRobot(contract)
    robot.reset('window-open', 0)
    start = robot.env.data.mocap_pos[0].copy()
    for _ in range(4):
        robot.step(np.array([0.1, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(robot.env.data.mocap_pos[0] - start, [0.1 * 4 * 0.05, 0, 0], atol=1e-9)


def test_same_seed_same_episode(contract):
    ends = []
    for _ in range(2):
        robot = MetaWorldRobot(contract, ExecutionNoise(0.3))
        robot.reset('drawer-open', 5)
        for _ in range(20):
            robot.step(robot.expert_action())
        ends.append(robot.privileged_state.copy())
    np.testing.assert_array_equal(*ends)


def test_other_seed_other_scene(robot):
    robot.reset('drawer-open', 1)
    one = robot.privileged_state[4:7].copy()
    robot.reset('drawer-open', 2)
    assert np.abs(robot.privileged_state[4:7] - one).max() > 1e-3


@pytest.mark.parametrize('seed', [0, 7])
def test_faucet_tasks_start_from_the_same_picture(robot, seed):
    robot.reset('faucet-open', seed)
    one, state = robot.images(), robot.state()
    robot.reset('faucet-close', seed)
    other = robot.images()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(state['ee_position'], robot.state()['ee_position'])


def test_images_have_the_contracts_resolution_and_show_motion(robot, contract):
    robot.reset('button-press-topdown', 1)
    before = robot.images()
    for _ in range(30):
        robot.step(robot.expert_action())
    after = robot.images()
    for camera in contract.cameras:
        image = after[camera.name]
        assert image.shape == (*camera.resolution, 3) and image.dtype == np.uint8
        assert image.std() > 10
        assert np.abs(image.astype(int) - before[camera.name]).mean() > 1


def test_unknown_task_is_named(robot):
    with pytest.raises(ConfigError, match="did you mean 'faucet-open'"):
        robot.reset('faucet-opn', 0)


def test_noise_changes_the_motion_and_keeps_the_range():
    noise = ExecutionNoise(0.3, push_share=0.0)
    noise.reset(4)
    actions = np.array([noise(np.zeros(4)) for _ in range(2000)])
    std = actions[:, :3].std()
    assert 0 < std <= 0.3 * 1.1
    assert actions[:, 3].std() == pytest.approx(0.3 * std, rel=0.1)


def test_pushes_override_the_motion_for_a_few_steps():
    noise = ExecutionNoise(1e-9, push_rate=0.1, push_share=1.0)
    noise.reset(0)
    moved = np.abs(np.array([noise(np.zeros(4)) for _ in range(500)])[:, :3]).max(1) > 1e-3
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], moved, [0]]))))[::2]
    assert moved.any() and not moved.all() and runs.min() >= 3


def test_no_noise_leaves_the_action_alone():
    action = np.array([0.1, -0.2, 0.3, 1.0])
    np.testing.assert_array_equal(ExecutionNoise(0.0)(action), action)
