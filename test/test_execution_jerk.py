"""Jerk: the stop against ruckig, tracking against closed forms, and no goal gets a value past a bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import ruckig

from flow_vla_core.contract import ActionPart, RobotContract, find_contract
from flow_vla_core.execution import Motion, make_limiter
from flow_vla_core.execution.braking import Stop
from flow_vla_core.execution.interpolation import Interpolator
from flow_vla_core.execution.tracking import GAIN, JerkTracker

PERIOD = 0.005
STEP = 0.05  # s between two actions of the SO-101
LIMITS = {'velocity': [2.0], 'acceleration': [10.0], 'jerk': [400.0]}


def make_tracker(low: float = -1.0, high: float = 1.0, **changes: float) -> JerkTracker:
    limits = {key: value[0] for key, value in LIMITS.items()} | changes
    return JerkTracker(*(np.array([value]) for value in (low, high, *limits.values())))


def at(value: float, rate: float = 0.0, curvature: float = 0.0) -> Motion:
    return Motion(*(np.array([number], float) for number in (value, rate, curvature)))


def make_part(kind: str, **limits: object) -> ActionPart:
    box = {'workspace_min': [-0.3] * 3, 'workspace_max': [0.3] * 3} if kind == 'ee_twist' else {}
    return ActionPart.model_validate({
        'name': 'part', 'kind': kind, 'names': ['x' if box else 'joint'], 'unit': 'm', 'limits': limits | box,
        'message': 'std_msgs/Float64MultiArray', 'topic': 'topic', 'position_from': 'where' if box else None})


@settings(max_examples=100, deadline=None)
@given(st.floats(-3, 3), st.floats(-1, 1), st.floats(0.5, 10), st.floats(0.5, 10), st.floats(1, 100))
def test_the_stop_is_ruckigs(velocity: float, part: float, down: float, up: float, jerk: float) -> None:
    acceleration = part * (up if part > 0 else down)
    given, path = ruckig.InputParameter(1), ruckig.Trajectory(1)
    given.control_interface = ruckig.ControlInterface.Velocity
    given.current_velocity, given.current_acceleration, given.target_velocity = [velocity], [acceleration], [0.0]
    given.max_acceleration, given.min_acceleration, given.max_jerk = [up], [-down], [jerk]
    assert ruckig.Ruckig(1).calculate(given, path) in (ruckig.Result.Working, ruckig.Result.Finished)
    stop = Stop(*(np.array([number]) for number in (velocity, acceleration, down, up, jerk)))
    assert stop.duration == pytest.approx(path.duration, abs=1e-6)
    for time in np.linspace(0, path.duration, 7):
        np.testing.assert_allclose(np.ravel(stop.at(time)), np.ravel(path.at_time(time)[:3]), atol=1e-5)
    extremes = path.position_extrema[0]
    np.testing.assert_allclose(np.ravel(stop.reach()), [min(extremes.min, 0), max(extremes.max, 0)], atol=1e-6)


def test_a_plan_within_the_bounds_is_followed_with_no_more_lag_than_its_jerk_makes() -> None:
    tracker, motion, errors = make_tracker(), at(0.0), []
    for tick in range(1, 600):
        time = tick * PERIOD
        goal = at(0.6 * np.sin(2 * time), 1.2 * np.cos(2 * time), -2.4 * np.sin(2 * time))
        motion = tracker.track(motion, goal, PERIOD)
        errors.append(abs(motion.values - goal.values)[0])
    assert max(errors[150:]) < 1.2 * 2 ** 3 / GAIN ** 3  # its jerk is 0.6 * 2^3 at most


def test_a_steady_plan_is_met_without_lag() -> None:
    tracker, motion = make_tracker(-100, 100), at(0.0)
    for tick in range(1, 400):
        motion = tracker.track(motion, at(1.5 * tick * PERIOD, 1.5), PERIOD)
    assert abs(motion.values[0] - 1.5 * tick * PERIOD) < 1e-9


def test_a_far_goal_is_neared_in_the_least_time_and_reached_without_going_far_past_it() -> None:
    tracker, motion, values = make_tracker(), at(-0.9), []
    # Full speed is reached: the way takes d / v + v / a + a / j.
    least = round((1.8 / 2 + 2 / 10 + 10 / 400) / PERIOD)
    for _ in range(least + round(8 / GAIN / PERIOD)):
        motion = tracker.track(motion, at(0.9), PERIOD)
        values.append(motion.values[0])
    assert abs(values[least] - 0.9) < 0.025 and max(values) < 0.9 + 2e-3
    assert abs(values[-1] - 0.9) < 1e-4 and abs(motion.rates[0]) < 1e-3


def test_a_plan_that_jumps_from_action_to_action_is_followed_with_less_jerk_than_in_least_time(
        monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    actions = np.cumsum(random.normal(0, 0.01, 60))
    curve = Interpolator(RobotContract.load(find_contract('so101')), 'cubic')(np.tile(actions[:, None], 6))

    def follow() -> tuple[float, float]:
        tracker, motion, values, left = make_tracker(-9, 9), at(actions[0]), [], []
        for tick in range(1, 500):
            goal = curve.at(tick * PERIOD / STEP)[:1]
            motion = tracker.track(motion, goal, PERIOD)
            values.append(motion.values[0])
            left.append(motion.values[0] - goal.values[0])
        return np.abs(np.diff(values, 3)).mean() / PERIOD ** 3, float(np.std(left))

    gentle = follow()
    monkeypatch.setattr(JerkTracker, '_settle', lambda self, motion, *_: (motion, np.zeros(1, bool)))
    hasty = follow()
    assert gentle[0] < 0.7 * hasty[0] and gentle[1] < 1.5 * hasty[1]


def test_a_plan_that_jumps_is_not_swung_up() -> None:
    tracker, motion, values = make_tracker(-3, 3, velocity=2.5, acceleration=20.0, jerk=600.0), at(0.0), []
    for tick in range(1, 400):
        begin = 0.05 * (0.01 * tick // 0.05)       # a plan each 50 ms: a straight line from what was true then
        phase, rest = 4 * np.pi * begin, 0.01 * tick - begin
        value, rate = 0.1 * np.sin(phase), 0.4 * np.pi * np.cos(phase)
        motion = tracker.track(motion, at(value + rest * rate, rate), 0.01)
        values.append(motion.values[0])
    # Of the third-order law itself: |lambda^3 + 3 lambda^2 i w| / |lambda + i w|^3 is 1.29 at 2 Hz.
    assert np.abs(values[100:]).max() < 1.5 * 0.1


def test_a_plan_at_the_limit_of_velocity_is_followed_without_chatter() -> None:
    tracker, motion = make_tracker(-100, 100), at(0.0)
    values = []
    for tick in range(1, 400):
        motion = tracker.track(motion, at(2.5 * tick * PERIOD, 2.5), PERIOD)
        values.append(motion.values[0])
    np.testing.assert_allclose(np.diff(values[100:]), 2.0 * PERIOD, rtol=1e-9)


def test_a_plan_a_little_too_fast_stays_within_the_velocity_between_ticks_too() -> None:
    tracker, motion, values = make_tracker(-2, 2), at(0.0), []
    for tick in range(1, 900):
        phase = 2.5 * tick * PERIOD
        motion = tracker.track(motion, at(0.83 * np.sin(phase), 2.075 * np.cos(phase), -5.19 * np.sin(phase)), PERIOD)
        values.append(motion.values[0])
    for order, bound in enumerate((2.0, 10.0, 400.0), 1):
        assert np.abs(np.diff(values, order)).max() <= bound * PERIOD ** order * (1 + 1e-6)


goals = st.tuples(st.floats(-2, 2), st.floats(-5, 5), st.floats(-50, 50), st.integers(1, 30), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(goals, min_size=1, max_size=8), st.floats(-1, 1))
def test_no_goal_gets_a_position_past_a_bound(wishes: list, start: float) -> None:
    tracker, motion = make_tracker(), at(start)
    values = [start] * 3
    for value, rate, curvature, ticks, rest in wishes:
        for _ in range(ticks):
            goal = at(value, rate, curvature)
            motion = tracker.brake(motion, PERIOD) if rest else tracker.track(motion, goal, PERIOD)
            values.append(motion.values[0])
    assert -1 <= min(values) <= max(values) <= 1
    for order, bound in enumerate((2.0, 10.0, 400.0), 1):
        assert np.abs(np.diff(values, order)).max() <= bound * PERIOD ** order * (1 + 1e-6) + 1e-14 * 2 ** order


@pytest.mark.parametrize(('result', 'state'), [
    (ruckig.Result.ErrorExecutionTimeCalculation, [0.0, 0.0, 0.0]), (ruckig.Result.Working, [np.nan] * 3),
    (ruckig.Result.Working, [0.5, 0.0, 0.0]), (ruckig.Result.Working, [0.0, 0.0, 9.0])])
def test_what_ruckig_gets_wrong_never_reaches_the_robot(result: ruckig.Result, state: list) -> None:
    class Broken:
        """Answers with a state that no bounded motion leads to."""

        def calculate(self, *given: object) -> ruckig.Result:
            return result

        def at_time(self, time: float) -> list:
            return [[number] for number in state]

    tracker, motion = make_tracker(), at(0.0)
    for _ in range(20):
        motion = tracker.track(motion, at(1.0), PERIOD)
    stop = tracker.brake(motion, PERIOD)
    tracker._generator = tracker._path = Broken()
    assert tracker.track(motion, at(1.0), PERIOD) == stop


@settings(max_examples=60, deadline=None)
@given(st.lists(goals, min_size=1, max_size=8), st.floats(-0.3, 0.3))
def test_no_goal_gets_a_velocity_past_a_bound_or_out_of_the_workspace(wishes: list, start: float) -> None:
    limiter = make_limiter(make_part('ee_twist', **LIMITS), PERIOD, 0.05)
    position, values = start, [0.0, 0.0]
    for value, rate, curvature, ticks, rest in wishes:
        for _ in range(ticks):
            where = np.full(3, position)
            goal = at(value, rate, curvature)
            values.append(float((limiter.rest(PERIOD, where) if rest else limiter.follow(goal, PERIOD, where))[0]))
            position += values[-1] * PERIOD
            assert abs(position) <= 0.3 + 1e-9
    assert np.abs(values).max() <= 2
    assert np.abs(np.diff(values)).max() <= 10 * PERIOD * (1 + 1e-6)
    assert np.abs(np.diff(values, 2)).max() <= 400 * PERIOD ** 2 * (1 + 1e-6)


def test_from_outside_of_the_workspace_the_way_back_is_open() -> None:
    limiter = make_limiter(make_part('ee_twist', **LIMITS), PERIOD, 0.05)
    outside = np.full(3, 0.5)
    assert limiter.follow(at(1.0), PERIOD, outside) == 0
    back = [float(limiter.follow(at(-1.0), PERIOD, outside)[0]) for _ in range(60)]
    assert back[-1] == pytest.approx(-1.0)


def test_a_velocity_that_ramps_within_the_bounds_is_met_without_lag() -> None:
    limiter = make_limiter(make_part('joint_velocity', **LIMITS), PERIOD, 0.05)
    for tick in range(1, 100):
        value = float(limiter.follow(at(3.0 * tick * PERIOD, 3.0), PERIOD)[0])
    assert value == pytest.approx(3.0 * 99 * PERIOD, abs=1e-9)
