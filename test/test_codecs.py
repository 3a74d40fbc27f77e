"""Messages and arrays, there and back through the decoders that live nodes and bags share."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.serialization import deserialize_message, serialize_message

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla_core.contract import ActionPart, Camera, RobotContract, StateStream, find_contract
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


def test_a_trajectory_is_to_be_reached_in_one_control_period() -> None:
    part = make_part('joint_position', 'trajectory_msgs/JointTrajectory', ['a'])
    point = codecs.encode_action(part, np.zeros(1), STAMP, reach_in=20_000_000).points[0]
    assert codecs.from_time(point.time_from_start) == 20_000_000


def make_chunk() -> ActionChunk:
    return ActionChunk(STAMP, 50_000_000, np.random.default_rng(1).normal(size=(12, 4)).astype(np.float32), 9, 'go', 77)


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
