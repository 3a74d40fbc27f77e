"""Limits: closed forms, and no adversarial target gets a command past a bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flow_vla_core.contract import ActionPart
from flow_vla_core.errors import ContractError
from flow_vla_core.execution import Motion, make_limiter
from flow_vla_core.execution.braking import stopping_speed

SLACK = 1e-9
PERIOD = 0.02
targets = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
elapses = st.lists(st.floats(1e-6, PERIOD), min_size=60, max_size=60)


def make_part(kind: str, message: str = 'std_msgs/Float64MultiArray', **limits: object) -> ActionPart:
    position = 'where' if 'workspace_min' in limits else None
    name = 'x' if kind.startswith('ee_') else 'joint'
    return ActionPart.model_validate({'name': 'part', 'kind': kind, 'names': [name], 'unit': 'm', 'limits': limits,
                                      'message': message, 'topic': 'topic', 'position_from': position})


def still(*values: float) -> Motion:
    return Motion.at_rest(np.array(values))


def moving(value: float, rate: float) -> Motion:
    return Motion(np.array([value]), np.array([rate]), np.zeros(1))


def test_stopping_speed_stops_at_the_distance() -> None:
    distance, acceleration, period = np.array([0.001, 0.1, 3.0]), np.array([0.5, 2.0, 10.0]), 0.02
    speed = stopping_speed(distance, acceleration, period)
    np.testing.assert_allclose(speed * period + speed ** 2 / (2 * acceleration), distance, rtol=1e-12)


def test_stopping_speed_without_acceleration_covers_the_distance_in_one_period() -> None:
    np.testing.assert_allclose(stopping_speed(np.array([0.3, 0.0]), np.full(2, np.inf), 0.1), [3.0, 0.0])


def test_nothing_is_open_beyond_the_bound() -> None:
    assert stopping_speed(np.array([-0.1]), np.array([4.0]), 0.1) == 0


def test_a_target_within_all_bounds_passes_unchanged() -> None:
    limiter = make_limiter(make_part('ee_twist', velocity=[0.2], acceleration=[8.0]), 0.05, 0.05)
    assert limiter.follow(still(0.15), 0.05) == pytest.approx(0.15)


def test_velocity_ramps_at_the_acceleration() -> None:
    limiter = make_limiter(make_part('joint_velocity', velocity=[1.0], acceleration=[5.0]), PERIOD, 0.05)
    ramp = [float(limiter.follow(still(1.0), PERIOD)[0]) for _ in range(12)]
    np.testing.assert_allclose(ramp, np.minimum(0.1 * np.arange(1, 13), 1.0))


def test_displacements_are_shared_out_over_the_control_periods() -> None:
    limiter = make_limiter(make_part('ee_delta', min=[-0.05], max=[0.05]), 0.01, 0.05)
    sent = [float(limiter.follow(still(0.04), 0.01)[0]) for _ in range(5)]
    assert sum(sent) == pytest.approx(0.04)
    assert limiter.follow(still(9.0), 0.01) == pytest.approx(0.05 / 5)


@pytest.mark.parametrize(('position', 'wish', 'sent'), [(0.0, 0.2, 0.2), (0.995, 0.2, 0.1), (1.0, 0.2, 0.0),
                                                        (1.2, 0.2, 0.0), (1.2, -0.2, -0.2), (-0.995, -0.2, -0.1)])
def test_a_twist_stops_at_the_face_of_the_workspace(position: float, wish: float, sent: float) -> None:
    part = make_part('ee_twist', velocity=[0.2], workspace_min=[-1.0] * 3, workspace_max=[1.0] * 3)
    limiter = make_limiter(part, 0.05, 0.05)
    assert limiter.follow(still(wish), 0.05, np.full(3, position)) == pytest.approx(sent)


@settings(max_examples=60, deadline=None)
@given(targets, elapses, st.floats(-1, 1))
def test_no_twist_breaks_velocity_acceleration_or_workspace(wishes: list, elapses: list, start: float) -> None:
    limits = {'velocity': [0.5], 'acceleration': [2.0], 'workspace_min': [-1.0] * 3, 'workspace_max': [1.0] * 3}
    limiter, rate, position = make_limiter(make_part('ee_twist', **limits), PERIOD, 0.05), 0.0, start
    for wish, elapsed in zip(wishes, elapses):
        position += rate * elapsed
        assert -1 - SLACK <= position <= 1 + SLACK
        before = rate
        rate = float(limiter.follow(still(wish), elapsed, np.full(3, position))[0])
        assert abs(rate) <= 0.5 + SLACK
        assert abs(rate - before) <= 2.0 * elapsed + 1e-6


@settings(max_examples=60, deadline=None)
@given(targets, elapses, st.floats(-3, 3), st.integers(0, 60))
def test_no_position_breaks_range_velocity_or_acceleration(wishes: list, elapses: list, start: float,
                                                               rest: int) -> None:
    part = make_part('joint_position', min=[-2.0], max=[1.5], velocity=[1.0], acceleration=[4.0])
    limiter = make_limiter(part, PERIOD, 0.05)
    limiter.start_at(np.array([start]))
    value, rate = float(np.clip(start, -2, 1.5)), 0.0
    for number, (wish, elapsed) in enumerate(zip(wishes, elapses)):
        move = limiter.rest if number >= rest else lambda elapsed, wish=wish: limiter.follow(still(wish), elapsed)
        now = float(move(elapsed)[0])
        assert -2 <= now <= 1.5
        assert abs(now - value) <= 1.0 * elapsed + SLACK
        assert abs((now - value) / elapsed - rate) <= 4.0 * elapsed + 1e-6 + 1e-15 / elapsed
        value, rate = now, (now - value) / elapsed


def test_a_position_arrives_without_passing_its_target() -> None:
    part = make_part('joint_position', min=[-2.0], max=[2.0], velocity=[1.0], acceleration=[4.0])
    limiter = make_limiter(part, PERIOD, 0.05)
    limiter.start_at(np.array([0.0]))
    path = [float(limiter.follow(still(0.7), PERIOD)[0]) for _ in range(150)]
    assert max(path) <= 0.7 + SLACK
    assert path[-1] == pytest.approx(0.7, abs=1e-3)


def test_a_steadily_moving_target_is_followed_without_lag() -> None:
    part = make_part('joint_position', min=[-9.0], max=[9.0], velocity=[1.0], acceleration=[4.0])
    limiter = make_limiter(part, PERIOD, 0.05)
    limiter.start_at(np.array([0.0]))
    for tick in range(200):
        value = float(limiter.follow(moving(0.5 * tick * PERIOD, 0.5), PERIOD)[0])
    assert value == pytest.approx(0.5 * 199 * PERIOD, abs=1e-9)


def test_rest_brakes_then_holds_the_last_position() -> None:
    part = make_part('joint_position', min=[-9.0], max=[9.0], velocity=[1.0], acceleration=[4.0])
    limiter = make_limiter(part, PERIOD, 0.05)
    limiter.start_at(np.array([0.0]))
    for _ in range(50):
        limiter.follow(still(9.0), PERIOD)
    assert limiter.moving
    for _ in range(20):
        limiter.rest(PERIOD)
    held = float(limiter.rest(PERIOD)[0])
    assert not limiter.moving
    assert limiter.rest(PERIOD) == held


def test_positions_are_clipped_to_the_workspace() -> None:
    part = make_part('ee_pose', min=[-5.0], max=[5.0], workspace_min=[-1.0] * 3, workspace_max=[0.5] * 3)
    assert make_limiter(part, PERIOD, 0.05).follow(still(3.0), PERIOD) == pytest.approx(0.5)


def test_a_position_that_is_neither_commanded_nor_measured_is_unknown() -> None:
    limiter = make_limiter(make_part('gripper', min=[-1.0], max=[1.0]), PERIOD, 0.05)
    assert limiter.last is None
    assert limiter.follow(still(0.4), PERIOD) == pytest.approx(0.4)
    assert limiter.last == pytest.approx(0.4)
    assert limiter.rest(PERIOD) == pytest.approx(0.4)


def test_a_gripper_without_a_velocity_limit_is_a_goal_without_a_velocity() -> None:
    limiter = make_limiter(make_part('gripper', min=[-1.0], max=[1.0]), PERIOD, 0.05)
    limiter.follow(still(-1.0), PERIOD)
    assert limiter.follow(still(1.0), PERIOD) == 1
    assert limiter.rates == 0


def test_a_bound_on_jerk_needs_the_other_two() -> None:
    part = make_part('joint_position', min=[-1.0], max=[1.0], velocity=[1.0], jerk=[1.0])
    with pytest.raises(ContractError, match='part.limits.jerk needs limits.acceleration'):
        make_limiter(part, PERIOD, 0.05)
