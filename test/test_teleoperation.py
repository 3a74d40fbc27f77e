"""From deflections, keys and leader joints to chunks: closed forms, refusals, and never past a limit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_execution_bounds import PARTS, make_contract

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ChunkError, ConfigError, StateInvalid, StateNotFinite, StreamMissing
from flow_vla_core.evaluation.audit import Audit
from flow_vla_core.execution import ChunkFollower
from flow_vla_core.teleoperation import Jog, JogSettings, Leader, LeaderSettings
from flow_vla_core.teleoperation.axes import axes_of
from flow_vla_core.teleoperation.jog import ramp, shape
from flow_vla_core.teleoperation.leader import Joint
from flow_vla_core.teleoperation.memory import FadingMemory
from flow_vla_core.teleoperation.settings import Initial

METAWORLD = RobotContract.load(find_contract('metaworld'))
SO101 = RobotContract.load(find_contract('so101'))
NOW = 10 ** 12
POSTURE = np.array([0.1, -0.2, 0.3, 0.0, 0.5, 0.4])
PLAIN = JogSettings(speed=1.0, dead_zone=0.0, expo=0.0)


def seconds(value: float) -> int:
    return round(value * 1e9)


def test_a_velocity_follows_the_deflection_and_a_chunk_is_short() -> None:
    jog = Jog(METAWORLD, JogSettings(speed=0.5, dead_zone=0.0, expo=0.0, reach=0.2))
    jog.start(np.array([np.nan] * 3 + [-1.0]))
    chunk = jog.chunk({'ee.x': 1.0, 'ee.z': -0.5}, NOW)
    assert (chunk.stamp, chunk.dt, chunk.confidence) == (NOW, 50_000_000, 1.0)
    np.testing.assert_allclose(chunk.actions, np.tile([0.1, 0, -0.05, -1], (4, 1)), rtol=1e-6)
    assert chunk.end - NOW == seconds(0.2)
    assert not jog.chunk({}, NOW + seconds(0.05)).actions[:, :3].any() and not jog.moving


def test_a_position_moves_as_its_ramp_says() -> None:
    jog = Jog(SO101, PLAIN)
    jog.start(POSTURE)
    acceleration, top = 0.8 * 20.0, 2.5
    for tick in range(21):
        time = 0.01 * tick
        actions = jog.chunk({'arm.elbow_flex': 1.0}, NOW + seconds(time)).actions
        later = time + 0.05 * np.arange(4)
        span = top / acceleration
        way = np.where(later < span, acceleration * later ** 2 / 2, top * (later - span / 2))
        np.testing.assert_allclose(actions[:, 2], np.minimum(POSTURE[2] + way, 1.69), atol=1e-6)
        np.testing.assert_allclose(np.delete(actions, 2, 1), np.tile(np.delete(POSTURE, 2), (4, 1)), atol=1e-6)
    assert jog.moving


def test_let_go_it_brakes_and_stays() -> None:
    jog = Jog(SO101, PLAIN)
    jog.start(POSTURE, rates=np.array([1.6, 0, 0, 0, 0, 9.0]))     # taken over while it moves
    first = jog.chunk({}, NOW).actions
    rest = jog.chunk({}, NOW + seconds(0.25))
    np.testing.assert_allclose(rest.actions, np.tile(POSTURE + [1.6 ** 2 / 2 / 16, 0, 0, 0, 0, 0], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(first[2:, 0], rest.actions[0, 0], atol=1e-6)
    assert not jog.moving


def test_whatever_holds_the_robot_it_is_led_by_no_more_than_the_leash() -> None:
    jog = Jog(SO101, PLAIN)
    jog.start(POSTURE)
    for tick in range(200):
        chunk = jog.chunk({'arm.shoulder_pan': 1.0, 'gripper.gripper': -1.0}, NOW + seconds(0.05 * tick), POSTURE)
    assert chunk.actions[0, 0] == pytest.approx(POSTURE[0] + 2.5 * 0.15)
    assert chunk.actions[0, 5] == pytest.approx(-0.174)             # a gripper closes on what it holds
    for tick in range(200, 210):
        chunk = jog.chunk({'arm.shoulder_pan': -1.0}, NOW + seconds(0.05 * tick), POSTURE)
    assert chunk.actions[0, 0] < POSTURE[0]                         # nothing has to be wound back


def test_a_rotation_turns_about_the_axes_of_the_base() -> None:
    contract = make_contract('pose')
    jog = Jog(contract, JogSettings(speed=1.0, dead_zone=0.0, expo=0.0, leash=0.2))
    start = np.array([0.1, 0.2, 0.0, 0.7, -0.4, 1.1])
    jog.start(np.append(start, 0.0))
    jog.chunk({'part.ry': 1.0, 'part.rz': -0.5}, NOW)
    actions = jog.chunk({'part.ry': 1.0, 'part.rz': -0.5}, NOW + seconds(0.24)).actions
    rate, span = np.array([0, 1.5, -0.75]), np.array([1.0, 1.5, 0.75]) / (0.8 * 9)
    way = rate * (0.24 - span / 2)
    expected = Rotation.from_rotvec(way) * Rotation.from_rotvec(start[3:])
    assert (Rotation.from_rotvec(actions[0, 3:6]) * expected.inv()).magnitude() < 1e-5
    held = jog.chunk({'part.ry': 1.0}, NOW + seconds(0.4), np.append(start, np.nan)).actions[0, 3:6]
    lead = (Rotation.from_rotvec(held) * Rotation.from_rotvec(start[3:]).inv()).magnitude()
    assert lead == pytest.approx(1.5 * 0.2, abs=1e-5)


def test_a_displacement_is_what_the_velocity_means_in_a_step() -> None:
    jog = Jog(make_contract('displacement'), PLAIN)
    jog.start(np.array([np.nan, np.nan, 0.0]))
    assert jog.chunk({'part.x': 1.0}, NOW).actions[0, 0] == pytest.approx(0.3 * 0.05)


@given(st.floats(-1, 1), st.floats(0, 0.9), st.floats(0, 1))
def test_a_curve_is_odd_monotone_and_ends_at_one(deflection: float, dead_zone: float, expo: float) -> None:
    value = shape(deflection, dead_zone, expo)
    assert value == -shape(-deflection, dead_zone, expo)
    assert abs(value) <= abs(deflection) + 1e-12
    assert (value == 0) or abs(deflection) > dead_zone
    assert shape(1.0, dead_zone, expo) == 1.0 and shape(float('nan'), dead_zone, expo) == 0.0
    assert shape(min(deflection + 0.1, 1.0), dead_zone, expo) >= value


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.5, 50), st.floats(0, 2))
def test_a_ramp_is_the_integral_of_its_velocity(rate: float, wish: float, acceleration: float, time: float) -> None:
    grid = np.linspace(0, time, 4001)
    speeds = np.clip(wish, rate - acceleration * grid, rate + acceleration * grid)
    way, last = ramp(np.array([rate]), np.array([wish]), np.array([acceleration]), time)
    assert last[0] == pytest.approx(speeds[-1], abs=1e-9)
    assert way[0] == pytest.approx(np.trapezoid(speeds, grid), abs=1e-4)


def test_what_is_not_known_is_named_unless_it_is_given() -> None:
    unknown = np.full(4, np.nan)
    with pytest.raises(StreamMissing, match='where gripper.gripper is has neither been commanded nor measured'):
        Jog(METAWORLD).start(unknown)
    jog = Jog(METAWORLD, JogSettings(initial=(Initial('gripper.gripper', -1.0),)))
    jog.start(unknown)
    assert jog.chunk({}, NOW).actions[0, 3] == -1
    with pytest.raises(ConfigError, match="did you mean 'gripper.gripper'"):
        Jog(METAWORLD, JogSettings(initial=(Initial('gripper.griper', 0.0),)))


def test_speed_stays_between_its_ends() -> None:
    jog = Jog(METAWORLD, JogSettings(speed=0.5))
    assert jog.faster() == pytest.approx(0.625) and jog.faster(up=False) == pytest.approx(0.5)
    assert [jog.faster() for _ in range(9)][-1] == 1.0
    assert [jog.faster(up=False) for _ in range(40)][-1] == pytest.approx(0.02)


@pytest.mark.parametrize(('name', 'schedule'), zip(
    ['metaworld', 'so101', *PARTS], cycle(['asynchronous', 'synchronous', 'ensembling'])))
def test_no_joystick_gets_a_command_past_a_bound(name: str, schedule: str) -> None:
    """Random deflections, pauses, stops and take-overs, in closed loop with a robot that goes where it is told."""
    contract = make_contract(name) if name in PARTS else RobotContract.load(find_contract(name))
    random = np.random.default_rng(0)
    period = round(1e9 / contract.rates.control_hz)
    follower, audit = ChunkFollower(contract, schedule=schedule), Audit(contract, period * 1e-9)
    jog, axes = Jog(contract, JogSettings(speed=1.0, leash=0.2)), axes_of(contract)
    middle = np.concatenate([np.zeros(part.dim) if part.limits.min is None
                             else np.mean([part.limits.min, part.limits.max], 0) for part in contract.actions])
    now, values, deflections, accepted = NOW, middle, {}, 0
    measured = {stream.name: np.array([middle[axes.index(axis)] if (axis := next(
        (axis for axis in axes if axis.endswith(f'.{name}')), None)) else 0.0 for name in stream.names])
        for stream in contract.state}
    measured = {**measured, 'ee_position': np.zeros(3)} if 'ee_position' in measured else measured
    for tick in range(600):
        now += period
        draw = random.random()
        if draw < 0.05:
            deflections = dict(zip(axes, random.choice([-1.0, 0.0, 1.0, random.uniform(-2, 2)], len(axes))))
        elif draw < 0.06:
            jog.stop()
        elif draw < 0.07:
            follower.drop_plan()
        if tick % max(1, round(0.05e9 / period)) == 0 and draw < 0.95:
            if not jog.started:
                jog.start(values)
            try:
                accepted += follower.accept(jog.chunk(deflections, now, None, values), now, anew=draw < 0.3)
            except ChunkError:
                jog.stop()
        command = follower.command(now, measured)
        audit.check(command, period * 1e-9)
        if command.parts == tuple(part.name for part in contract.actions):
            values = command.values.astype(np.float64)
    assert audit.commands == 600 and not audit.violations
    assert accepted > 60


def test_a_leader_is_followed_one_to_one_once_it_is_near() -> None:
    leader, names = Leader(SO101, LeaderSettings(near=0.1)), SO101.state[0].names
    leader.start(POSTURE + 0.05, POSTURE)
    assert leader.met
    for tick in range(20):
        target = leader.target(dict(zip(names, POSTURE + 0.05 + 0.02 * tick)))
        actions = leader.chunk(target, NOW + seconds(0.05 * tick)).actions
    np.testing.assert_allclose(actions, target + 0.02 * np.arange(4)[:, None], atol=1e-3)


def test_a_leader_that_is_far_is_refused_or_approached_slowly() -> None:
    far = POSTURE + [0, 0.9, 0, 0, 0, 0.5]
    with pytest.raises(StateInvalid, match=r'too far apart: arm.shoulder_lift by 0.9; allowed: 0.15'):
        Leader(SO101).start(far, POSTURE)
    leader = Leader(SO101, LeaderSettings(blend=0.1))
    leader.start(far, POSTURE)
    assert not leader.met
    goals = [leader.chunk(far, NOW + seconds(0.1 * tick)).actions[0, 1] for tick in range(50)]
    assert np.diff(goals).max() <= 0.1 * 2.5 * 0.1 + 1e-6
    assert leader.met and goals[-1] == pytest.approx(far[1])


def test_a_leader_is_never_followed_faster_than_the_limits() -> None:
    leader = Leader(SO101, LeaderSettings(near=10.0))
    leader.start(POSTURE, POSTURE)
    leader.chunk(POSTURE, NOW)
    jump = leader.chunk(np.full(6, 1.0), NOW + seconds(0.1)).actions[0]
    assert np.abs(jump[:5] - POSTURE[:5]).max() <= 2.5 * 0.1 + 1e-6
    follower = ChunkFollower(SO101)
    follower.command(NOW, {'joints': POSTURE})
    assert follower.accept(leader.chunk(np.full(6, 1.0), NOW + seconds(0.15)), NOW + seconds(0.15))


def followed(leads: Callable[[float], float], length: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where a leader whose joints all move as ``leads(t)`` was, and what the robot was told, at each tick.

    40 chunks a second are made of positions that are up to 10 ms old, and are 3 to 20 ms on the way.
    """
    leader, follower = Leader(SO101, LeaderSettings(near=10.0)), ChunkFollower(SO101)
    random = np.random.default_rng(seed)
    follower.command(NOW, {'joints': np.full(6, leads(0))})
    leader.start(np.full(6, leads(0)), np.full(6, leads(0)))
    due, ways, commands = 0.0, [], []
    times = np.arange(1, round(length / 0.01)) * 0.01
    for time in times:
        while due <= time:
            seen = due - random.uniform(0, 0.01)
            chunk = leader.chunk(np.full(6, leads(seen)), NOW + seconds(due), NOW + seconds(seen))
            ways.append((due + random.uniform(0.003, 0.02), chunk))
            due += random.uniform(0.022, 0.028)
        while ways and ways[0][0] <= time:
            assert follower.accept(ways.pop(0)[1], NOW + seconds(time))
        commands.append(follower.command(NOW + seconds(time)).values[0])
    return np.array([leads(time) for time in times]), np.array(commands)


def swing(time: float) -> float:
    return 0.3 * np.sin(2 * np.pi * time)


def reach(time: float) -> float:
    share = np.clip((time - 0.5) / 0.7, 0, 1)
    return 0.8 * share ** 3 * (10 - 15 * share + 6 * share ** 2)


@pytest.mark.parametrize('seed', range(3))
def test_a_robot_keeps_up_with_a_leader_and_does_not_overshoot(seed: int) -> None:
    led, told = followed(swing, 3.0, seed)
    assert np.abs(led - told)[100:].max() < 0.25 * 0.3
    led, told = followed(reach, 2.5, seed)
    assert np.abs(led - told).max() < 0.06 and told.max() < 0.84
    for step in (0.1, 0.2, 0.3, 1.0):
        led, told = followed(lambda time, step=step: 0.1 if time < 0.5 else 0.1 + step, 2.5, seed)
        assert told.max() < 0.1 + step + 2e-3 and told[-20:] == pytest.approx(0.1 + step, abs=1e-3)


def test_a_leader_that_is_seen_no_more_is_followed_on_for_a_moment_only() -> None:
    leader = Leader(SO101, LeaderSettings(near=10.0))
    leader.start(np.zeros(6), np.zeros(6))
    for tick in range(40):
        seen = NOW + seconds(0.02 * tick)
        leader.chunk(np.full(6, 0.02 * tick), seen, seen)
    last = leader.chunk(np.full(6, 0.02 * tick), seen + seconds(1.0), seen).actions
    np.testing.assert_allclose(last[:, 0], 0.02 * tick + 0.15, atol=1e-3)   # 1 rad/s


@pytest.mark.parametrize('gain', [10.0, 40.0])
def test_what_is_remembered_of_a_motion_is_the_parabola_that_fits_best(gain: float) -> None:
    period, seen = 0.025, np.random.default_rng(3).normal(size=400)
    memory = FadingMemory(np.zeros(1), gain)
    for value in seen:
        memory.see(np.array([value]), period)
    ages = -period * np.arange(len(seen))[::-1]
    weights = np.exp(gain * ages / 2)           # polyfit squares them
    used = weights > 1e-12
    curvature, rate, value = np.polyfit(ages[used], seen[used], 2, w=weights[used])
    assert memory.values[0] == pytest.approx(value, abs=1e-6)
    assert memory.rates[0] == pytest.approx(rate, rel=1e-6)
    assert memory.curvatures[0] == pytest.approx(2 * curvature, rel=1e-6)


def test_joints_are_mapped_by_name_scale_offset_and_range() -> None:
    joints = tuple(Joint(f'm{index}', axis, scale=-2.0, offset=0.5) for index, axis in enumerate(axes_of(SO101)[:5]))
    leader = Leader(SO101, LeaderSettings(joints=(*joints, Joint('handle', 'gripper.gripper', range=(100.0, 0.0)))))
    posture = {f'm{index}': 0.1 * index for index in range(5)}
    np.testing.assert_allclose(leader.target({**posture, 'handle': 75.0}),
                               [*(0.5 - 0.2 * np.arange(5)), -0.174 + 0.25 * (1.745 + 0.174)])
    assert leader.target({**posture, 'handle': -50.0})[5] == 1.745
    with pytest.raises(StateInvalid, match="no joint 'handle'"):
        leader.target(posture)
    with pytest.raises(StateNotFinite, match='m3 is nan'):
        leader.target({**posture, 'm3': float('nan'), 'handle': 0.0})


@pytest.mark.parametrize(('contract', 'joints', 'said'), [
    (METAWORLD, (), "this is 'ee_twist'"), (SO101, (Joint('a', 'arm.elbow_flex'),), 'nothing moves arm.shoulder_pan'),
    (SO101, (Joint('a', 'arm.elbow'),), "did you mean 'arm.elbow_flex'")])
def test_a_leader_that_cannot_move_the_robot_is_refused(contract: RobotContract, joints: tuple, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Leader(contract, LeaderSettings(joints=joints))


def test_a_robot_of_which_nothing_is_known_is_not_led() -> None:
    leader = Leader(SO101)
    with pytest.raises(StreamMissing, match='where arm.wrist_flex is'):
        leader.start(POSTURE, np.where(np.arange(6) == 3, np.nan, POSTURE))
    leader.start(POSTURE, np.where(np.arange(6) == 5, np.nan, POSTURE))
    assert leader.chunk(POSTURE, NOW).actions[0, 5] == pytest.approx(POSTURE[5])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=4, max_size=4))
def test_no_deflection_makes_a_chunk_that_is_not_finite(deflections: list[float]) -> None:
    jog = Jog(METAWORLD)
    jog.start(np.array([np.nan] * 3 + [0.0]))
    assert np.isfinite(jog.chunk(dict(zip(jog.axes, deflections)), NOW).actions).all()
