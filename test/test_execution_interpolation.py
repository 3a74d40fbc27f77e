"""Interpolation against scipy: cubics, rotations on the shortest way, also near half a turn."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline
from scipy.spatial.transform import Rotation, Slerp

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.execution import Interpolator, Motion, make_limiter, rotations

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt
vectors = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(np.array)


def pose_contract(**limits: object) -> RobotContract:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['actions'] = [{
        'name': 'tool', 'kind': 'ee_pose', 'names': ['x', 'rx', 'ry', 'rz'], 'unit': 'm',
        'limits': {'min': [-1.0] + [-4.0] * 3, 'max': [1.0] + [4.0] * 3, **limits},
        'message': 'geometry_msgs/PoseStamped', 'topic': 'tool'}]
    return RobotContract.parse(values)


def joint_contract(joints: int) -> RobotContract:
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    values['actions'] = [{
        'name': 'arm', 'kind': 'joint_position', 'names': [f'joint{n}' for n in range(joints)], 'unit': 'rad',
        'limits': {'min': [-9.0] * joints, 'max': [9.0] * joints}, 'message': 'trajectory_msgs/JointTrajectory',
        'topic': 'arm'}]
    return RobotContract.parse(values)


def test_cubics_are_scipys_hermite_cubics_with_continuous_velocity() -> None:
    actions = np.cumsum(np.random.default_rng(0).normal(size=(10, 3)), 0)
    curve = Interpolator(joint_contract(3), 'cubic')(actions)
    slopes = np.array([curve.at(index).rates for index in range(10)])
    reference = CubicHermiteSpline(np.arange(10) * DT, actions, slopes)
    for steps in [*np.linspace(0, 8.99, 40), *(np.arange(1, 9) - 1e-12)]:
        motion = curve.at(steps)
        np.testing.assert_allclose(motion.values, reference(steps * DT), atol=1e-9)
        np.testing.assert_allclose(motion.rates, reference(steps * DT, 1), atol=1e-6)
        np.testing.assert_allclose(motion.curvatures, reference(steps * DT, 2), atol=1e-4)


def test_cubics_follow_a_parabola_exactly_up_to_the_last_piece() -> None:
    times = np.arange(8) * DT
    curve = Interpolator(joint_contract(1), 'cubic')((3 * times + 7 * times ** 2)[:, None])
    for steps in np.linspace(0, 5.99, 25):
        time, motion = steps * DT, curve.at(steps)
        np.testing.assert_allclose(np.ravel([motion.values, motion.rates, motion.curvatures]),
                                   [3 * time + 7 * time ** 2, 3 + 14 * time, 14], atol=1e-8)


def test_by_default_positions_go_by_cubics_and_velocities_by_straight_lines() -> None:
    actions = np.cumsum(np.random.default_rng(1).normal(size=(10, 4)), 0)
    cases = (joint_contract(4), 'cubic', 4), (pose_contract(), 'cubic', 4), (CONTRACT, 'linear', 3)
    for contract, name, places in cases:
        chosen, told, other = (Interpolator(contract, way)(actions).at(3.3)
                               for way in ('auto', name, {'cubic': 'linear', 'linear': 'cubic'}[name]))
        np.testing.assert_array_equal(chosen.values, told.values)
        assert not np.allclose(chosen.values[:places], other.values[:places])
    assert chosen.values[3] == actions[3, 3]  # the gripper


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_a_cubic_passes_the_actions_and_never_leaves_the_range_of_its_two(values: list) -> None:
    curve = Interpolator(joint_contract(1), 'cubic')(np.array(values)[:, None])
    ends = [*values, values[-1]]
    for index, value in enumerate(values):
        assert curve.at(index).values == pytest.approx(value)
        low, high = sorted(ends[index:index + 2])
        inside = [curve.at(index + rest).values[0] for rest in np.linspace(0, 0.999, 9)]
        assert low - 1e-9 <= min(inside) <= max(inside) <= high + 1e-9


@pytest.mark.parametrize(('name', 'expected'), [('hold', [2, 0, 0]), ('linear', [3, 2 / DT, 0])])
def test_hold_and_linear(name: str, expected: list) -> None:
    motion = Interpolator(joint_contract(1), name)(np.array([[2.0], [4.0]])).at(0.5)
    np.testing.assert_allclose(np.ravel([motion.values, motion.rates, motion.curvatures]), expected)


@pytest.mark.parametrize('name', ['hold', 'linear', 'cubic'])
def test_after_the_last_action_a_plan_stays(name: str) -> None:
    motion = Interpolator(joint_contract(1), name)(np.array([[2.0], [4.0]])).at(7.3)
    np.testing.assert_allclose(np.ravel([motion.values, motion.rates]), [4, 0], atol=1e-12)


@pytest.mark.parametrize('name', ['linear', 'cubic'])
def test_grippers_are_held(name: str) -> None:
    actions = np.array([[0.0, 0, 0, -1], [0.1, 0, 0, 1]])
    assert Interpolator(CONTRACT, name)(actions).at(0.5).values[3] == -1


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cubic'"):
        Interpolator(CONTRACT, 'cubik')


@settings(max_examples=40, deadline=None)
@given(vectors, vectors, st.floats(0, 1))
def test_rotations_are_those_of_scipy(first: np.ndarray, second: np.ndarray, part: float) -> None:
    one, two = Rotation.from_rotvec(first), Rotation.from_rotvec(second)
    turns = rotations.from_vector(np.stack([first, second]))
    product = Rotation.from_quat(np.roll(rotations.multiply(*turns), -1))
    assert (product * (one * two).inv()).magnitude() < 1e-7
    assert np.linalg.norm(rotations.between(*turns)) == pytest.approx((one.inv() * two).magnitude(), abs=1e-6)
    np.testing.assert_allclose(rotations.rotate(turns[0], second), one.apply(second), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(rotations.to_vector(turns[0])), one.magnitude(), atol=1e-9)
    if (one.inv() * two).magnitude() < 3.1:
        actions = np.zeros((2, 4))
        actions[:, 1:] = first, second
        turned = Rotation.from_rotvec(Interpolator(pose_contract())(actions).at(part * 0.999).values[1:])
        assert (turned.inv() * Slerp([0, 1], Rotation.concatenate([one, two]))(part * 0.999)).magnitude() < 1e-6


def test_the_mean_of_rotations_is_scipys() -> None:
    rng = np.random.default_rng(1)
    turns, weights = Rotation.from_rotvec(rng.normal(size=(5, 3)) * 0.4 + [3.0, 0, 0]), rng.random(5)
    quaternions = np.roll(turns.as_quat(), 1, axis=1) * rng.choice([-1, 1], (5, 1))
    mean = Rotation.from_rotvec(rotations.to_vector(rotations.mean(quaternions, weights)))
    assert (mean.inv() * turns.mean(weights)).magnitude() < 1e-7


def test_a_rotation_passes_half_a_turn_on_the_short_way() -> None:
    actions = np.zeros((2, 4))
    actions[:, 1] = np.pi - 0.1, -np.pi + 0.1
    curve = Interpolator(pose_contract())(actions)
    assert abs(curve.at(0.5).values[1]) == pytest.approx(np.pi)
    np.testing.assert_allclose(curve.at(0.5).rates, [0, 0.2 / DT, 0, 0], atol=1e-9)


@pytest.mark.parametrize('limits', [
    {'velocity': [1.0, 0.5, 0.5, 0.5], 'acceleration': [5.0] * 4},
    {'velocity': [1.0, 0.5, 0.5, 0.5], 'acceleration': [5.0] * 4, 'jerk': [200.0] * 4}])
def test_the_limits_of_a_rotation_bound_its_angle_also_across_half_a_turn(limits: dict) -> None:
    period = 0.01
    limiter = make_limiter(pose_contract(**limits).actions[0], period, DT)
    limiter.start_at(np.array([0.0, np.pi - 0.2, 0, 0]))
    goal = Motion.at_rest(np.array([0.0, -np.pi + 0.3, 0.2, -0.1]))
    poses = np.array([limiter.follow(goal, period) for _ in range(400)])
    turns = Rotation.from_rotvec(poses[:, 1:])
    speeds = (turns[:-1].inv() * turns[1:]).as_rotvec() / period
    assert np.linalg.norm(speeds, axis=1).max() <= 0.5 + 1e-6
    assert np.linalg.norm(np.diff(speeds, axis=0), axis=1).max() <= 5 * period + 1e-6
    if 'jerk' not in limits:  # axes with a bound on jerk each take their own time
        whole = (turns[0].inv() * turns[-1]).magnitude()
        assert np.linalg.norm(speeds, axis=1).sum() * period == pytest.approx(whole, rel=1e-3)
    assert (turns[-1].inv() * Rotation.from_rotvec(goal.values[1:])).magnitude() < 1e-6
    np.testing.assert_allclose(limiter.rates, 0, atol=1e-9)


def test_a_single_axis_at_the_limit_is_not_slowed() -> None:
    limiter = make_limiter(pose_contract(velocity=[1.0] * 4).actions[0], 0.01, DT)
    limiter.start_at(np.zeros(4))
    for tick in range(1, 50):
        angle = 0.95 * tick * 0.01
        pose = limiter.follow(Motion(*np.array([[0, 0, angle, 0], [0, 0, 0.95, 0], [0.0] * 4])), 0.01)
        assert pose[2] == pytest.approx(angle)
    np.testing.assert_allclose(limiter.rates, [0, 0, 0.95, 0], atol=1e-9)
