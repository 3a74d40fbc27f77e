"""Messages and arrays, there and back through the decoders that live nodes and bags share."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.interpolate import CubicHermiteSpline

pytest.importorskip('rclpy', reason='rclpy is not installed')

import control_messages
from rclpy.serialization import deserialize_message, serialize_message

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla_core.contract import ActionPart, Camera, Goals, RobotContract, StateStream, find_contract
from flow_vla_core.errors import ChunkContractMismatch, ChunkShape, ConfigError
from flow_vla_core.messages import decode_action, decode_image, decode_state, stamp_of
from flow_vla_core.types import ActionChunk
from flow_vla_ros import codecs

CONTRACT = RobotContract.load(find_contract('metaworld'))
STAMP = 1_234_567_890_123_456_789


def over_the_wire(message: object) -> object:
    return deserialize_message(serialize_message(message), type(message))


def make_part(kind: str, message: str, names: list[str]) -> ActionPart:
    limits = {'min': [-9.0] * len(names), 'max': [9.0] * len(names), 'velocity': [9.0] * len(names)}
    return ActionPart.model_validate({'name': 'part', 'kind': kind, 'names': names, 'unit': 'x', 'limits': limits,
                                      'message': message, 'topic': 't', 'frame': 'base'})


@given(st.integers(-2 ** 31 * 10 ** 9, 2 ** 31 * 10 ** 9 - 1))
def test_times_and_durations_keep_every_nanosecond(stamp: int) -> None:
    assert codecs.from_time(codecs.to_time(stamp)) == stamp
    assert codecs.from_time(codecs.to_duration(stamp)) == stamp


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8'])
def test_images_come_back_as_they_were(encoding: str) -> None:
    camera = Camera(name='c', topic='t', encoding=encoding, resolution=(6, 8), size=(6, 8), max_age=1.0, max_skew=1.0)
    image = np.random.default_rng(0).integers(0, 256, (6, 8, camera.channels), np.uint8)
    message = over_the_wire(codecs.encode_image(image, camera, STAMP))
    assert (message.encoding, message.step, stamp_of(message)) == (encoding, len(message.data) // 6, STAMP)
    np.testing.assert_array_equal(decode_image(message, camera), image)


@pytest.mark.parametrize(('kind', 'field', 'names'), [
    ('sensor_msgs/JointState', 'position', ('a', 'b')), ('sensor_msgs/JointState', 'effort', ('a',)),
    ('geometry_msgs/PoseStamped', 'pose.position', ('z', 'x')),
    ('geometry_msgs/PoseStamped', 'pose.orientation', ('x', 'y', 'z', 'w')),
    ('geometry_msgs/PointStamped', 'point', ('x', 'y', 'z')), ('geometry_msgs/TwistStamped', 'twist.angular', ('y',)),
    ('geometry_msgs/WrenchStamped', 'wrench.force', ('x', 'y', 'z'))])
def test_state_comes_back_as_it_was(kind: str, field: str, names: tuple[str, ...]) -> None:
    stream = StateStream(name='s', topic='t', message=kind, field=field, names=names, unit='m', max_age=1.0,
                         max_skew=1.0)
    values = np.arange(1, len(names) + 1, dtype=np.float32) / 8
    message = over_the_wire(codecs.encode_state(stream, values, STAMP))
    assert stamp_of(message) == STAMP
    np.testing.assert_array_equal(decode_state(message, stream), values)


@pytest.mark.parametrize(('kind', 'message', 'names'), [
    ('ee_twist', 'geometry_msgs/TwistStamped', ['x', 'z', 'ry']),
    ('ee_pose', 'geometry_msgs/PoseStamped', ['x', 'y', 'z', 'rx', 'ry', 'rz']),
    ('ee_pose', 'geometry_msgs/PoseStamped', ['z', 'x']),
    ('joint_position', 'trajectory_msgs/JointTrajectory', ['a', 'b']),
    ('joint_velocity', 'trajectory_msgs/JointTrajectory', ['a', 'b']),
    ('joint_position', 'std_msgs/Float64MultiArray', ['a', 'b', 'c'])])
def test_commands_come_back_as_they_were(kind: str, message: str, names: list[str]) -> None:
    part = make_part(kind, message, names)
    values = np.linspace(-0.6, 1.1, len(names)).astype(np.float32)
    command = over_the_wire(codecs.encode_action(part, values, STAMP))
    np.testing.assert_allclose(decode_action(command, part), values, atol=1e-6)
    assert stamp_of(command) in (STAMP, None)


def test_a_pose_at_rest_has_a_unit_quaternion() -> None:
    orientation = codecs.encode_pose(np.zeros(3), STAMP, rotation=np.zeros(3)).pose.orientation
    assert (orientation.w, orientation.x, orientation.y, orientation.z) == (1, 0, 0, 0)


def make_joints(**details: object) -> ActionPart:
    limits = {'min': [-1.0] * 3, 'max': [1.0] * 3, 'velocity': [2.0] * 3, 'acceleration': [4.0, 8.0, 2.0]}
    return ActionPart.model_validate({'name': 'arm', 'kind': 'joint_position', 'names': ['a', 'b', 'c'], 'unit': 'rad',
                                      'limits': limits, 'message': 'trajectory_msgs/JointTrajectory', 'topic': 't',
                                      **details})


@pytest.mark.parametrize(('details', 'reached', 'stamp'), [
    ({}, 20_000_000, STAMP), ({'trajectory': {'lead': 0.05}}, 50_000_000, STAMP),
    ({'trajectory': {'start': 'now'}}, 20_000_000, 0)])
def test_a_trajectory_says_when_it_starts_and_when_it_is_to_be_there(details: dict, reached: int, stamp: int) -> None:
    message = codecs.encode_action(make_joints(**details), np.zeros(3), STAMP, reach_in=20_000_000)
    assert [codecs.from_time(point.time_from_start) for point in message.points] == [reached]
    assert (stamp_of(message), list(message.points[0].velocities)) == (stamp, [])


@given(st.lists(st.floats(-0.6, 0.6), min_size=3, max_size=3), st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_a_trajectory_ends_at_rest_within_the_limits(values: list[float], velocities: list[float]) -> None:
    part = make_joints()
    room = part.limits.acceleration * (1 - np.abs(values))   # of the way to the range's end, for a stop at its limit
    velocities = np.clip(velocities, -np.sqrt(room), np.sqrt(room))
    message = over_the_wire(codecs.encode_action(part, np.array(values), STAMP, reach_in=10_000_000,
                                                 velocities=velocities))
    np.testing.assert_allclose(decode_action(message, part), values, atol=1e-6)
    times = [codecs.from_time(point.time_from_start) * 1e-9 for point in message.points]
    positions, rates = (np.array([getattr(point, key) for point in message.points])
                        for key in ('positions', 'velocities'))
    assert times[0] == 0.01 and (np.diff(times) > 0).all()
    np.testing.assert_allclose(rates[0], velocities)
    assert not rates[-1].any()
    if len(times) == 1:
        return
    # As joint_trajectory_controller joins them; scipy's cubics are the witness.
    curve, fine = CubicHermiteSpline(times, positions, rates), np.linspace(times[0], times[-1], 500)
    assert (np.abs(curve(fine)) <= 1 + 1e-9).all()
    assert (np.abs(curve(fine, 2)) <= np.array(part.limits.acceleration) * (1 + 1e-6) + 1e-6).all()
    way = velocities * np.abs(velocities) / (2 * np.array(part.limits.acceleration))
    np.testing.assert_allclose(positions[-1], values + way, atol=1e-3)   # stops last whole milliseconds


@pytest.mark.parametrize('kind', ['joint_position', 'joint_velocity'])
def test_an_encoder_fills_one_message_again_and_again(kind: str) -> None:
    part = make_joints(kind=kind)
    encode, messages = codecs.encoder(part, 10_000_000), []
    for number, velocities in enumerate((np.array([0.4, -0.2, 0.1]), None, np.zeros(3), np.array([0.0, 0.3, 0.0]))):
        values, stamp = np.full(3, 0.1 * number), STAMP + number * 10 ** 9
        messages.append(encode(values, velocities, stamp))
        assert messages[-1] == codecs.encode_action(part, values, stamp, reach_in=10_000_000, velocities=velocities)
    assert all(message is messages[0] for message in messages)


def test_a_joint_without_a_limit_of_the_acceleration_stops_all_the_same() -> None:
    part = make_joints(limits={'min': [-1.0] * 3, 'max': [1.0] * 3})
    points = codecs.encode_action(part, np.zeros(3), STAMP, velocities=np.array([0.4, 0, 0])).points
    assert [codecs.from_time(point.time_from_start) for point in points] == [0, 250_000_000]
    assert list(points[-1].positions) == pytest.approx([0.05, 0, 0]) and not any(points[-1].velocities)


@pytest.mark.parametrize(('message', 'joints'), [
    ('control_msgs/action/GripperCommand', ['finger']), ('control_msgs/action/ParallelGripperCommand', ['finger'])])
def test_gripper_goals_hold_position_and_effort(monkeypatch: pytest.MonkeyPatch, message: str,
                                                joints: list[str]) -> None:
    control_messages.install(monkeypatch)
    part = make_part('gripper', message, joints).model_copy(update={'goals': Goals(effort=30.0)})
    goal = codecs.encode_action(part, np.array([0.02], np.float32), STAMP)
    np.testing.assert_allclose(decode_action(goal, part), [0.02])
    effort = goal.command.effort[0] if message.endswith('ParallelGripperCommand') else goal.command.max_effort
    assert effort == 30.0


def test_an_action_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    control_messages.remove(monkeypatch)
    part = make_part('gripper', 'control_msgs/action/GripperCommand', ['finger'])
    with pytest.raises(ConfigError, match='apt install ros-.ROS_DISTRO-control-msgs'):
        codecs.encode_action(part, np.zeros(1), STAMP)
    with pytest.raises(ConfigError, match='neither heard nor recorded'):
        codecs.message_type(part.message)


def make_chunk() -> ActionChunk:
    actions = np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32)
    return ActionChunk(STAMP, 50_000_000, actions, 9, 'go', 77, 3, 0.75)


def test_chunks_come_back_as_they_were() -> None:
    message = over_the_wire(codecs.chunk_to_message(make_chunk(), CONTRACT))
    chunk = codecs.message_to_chunk(message, CONTRACT)
    np.testing.assert_array_equal(chunk.actions, make_chunk().actions)
    assert replace(chunk, actions=None) == replace(make_chunk(), actions=None)


def test_chunks_of_wrong_length_or_for_another_robot_are_refused() -> None:
    message = codecs.chunk_to_message(make_chunk(), CONTRACT)
    message.data = message.data[:-1]
    with pytest.raises(ChunkShape, match='47 numbers, its header says 12 x 4 = 48'):
        codecs.message_to_chunk(message, CONTRACT)
    message.contract = 'so101@12345678'
    with pytest.raises(ChunkContractMismatch, match=f"'so101@12345678', this robot has '{CONTRACT.label}'"):
        codecs.message_to_chunk(message, CONTRACT)


def test_message_types_are_found_by_name() -> None:
    for name in ('flow_vla/ActionChunk', 'flow_vla/msg/ActionChunk'):
        assert codecs.message_type(name) is ChunkMessage
    with pytest.raises(ConfigError, match='nothing_msgs/Thing'):
        codecs.message_type('nothing_msgs/Thing')


def test_camera_info_has_its_principal_point_in_the_middle() -> None:
    info = codecs.encode_camera_info(CONTRACT.cameras[0], 100.0, 110.0)
    assert (info.k[0], info.k[4], info.k[2], info.k[5], info.width) == (100, 110, 84, 84, 168)
