"""Messages that are serialized without ROS, read by rclpy and by rosbags."""

from __future__ import annotations

from typing import Any

from lerobot_tools import CONTRACT, VALUES
import numpy as np
import pytest

from flow_vla_core.contract import ActionPart, Camera, RobotContract, StateStream, find_contract
from flow_vla_core.data.encoding import encode_action, encode_image, encode_message, encode_state
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.errors import DataError
from flow_vla_core.messages import decode_action, decode_image, decode_state

STAMP = 1_700_000_000_123_456_789
ROBOTS = [RobotContract.load(find_contract(name)) for name in ('metaworld', 'so101', 'ur5e')] + [CONTRACT]
PARTS = [part for robot in ROBOTS for part in robot.actions if not part.is_action]
STREAMS = [stream for robot in ROBOTS for stream in robot.state]


def decoded(kind: str, data: bytes) -> Any:
    return typestore().deserialize_cdr(data, full_name(kind))


def numbers(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=count).astype(np.float32)


def camera(encoding: str, **changes: Any) -> Camera:
    return Camera.model_validate({**VALUES['cameras'][0], 'encoding': encoding, 'resolution': [6, 4], 'size': [6, 4],
                                  **changes})


@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.topic)
def test_commands_are_those_that_the_nodes_send(part: ActionPart) -> None:
    pytest.importorskip('rclpy', reason='ROS is not installed')
    pytest.importorskip('flow_vla.msg', reason='the interfaces are not compiled')
    from rclpy.serialization import deserialize_message

    from flow_vla_ros import codecs
    values = numbers(part.dim)
    sent = codecs.encode_action(part, values, STAMP, reach_in=20_000_000)
    assert deserialize_message(encode_action(part, values, STAMP, 20_000_000), type(sent)) == sent


@pytest.mark.parametrize('stream', STREAMS, ids=lambda stream: stream.name)
def test_states_are_those_that_the_nodes_send(stream: StateStream) -> None:
    pytest.importorskip('rclpy', reason='ROS is not installed')
    pytest.importorskip('flow_vla.msg', reason='the interfaces are not compiled')
    from rclpy.serialization import deserialize_message

    from flow_vla_ros import codecs
    values = numbers(len(stream.names))
    sent = codecs.encode_state(stream, values, STAMP)
    assert deserialize_message(encode_state([(stream, values)], STAMP), type(sent)) == sent


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8'])
@pytest.mark.parametrize('kind', ['sensor_msgs/Image', 'sensor_msgs/CompressedImage'])
def test_images_come_back(encoding: str, kind: str) -> None:
    view = camera(encoding, message=kind)
    image = np.random.default_rng(0).integers(0, 256, (6, 4, view.channels), np.uint8)
    message = decoded(kind, encode_image(image, view, STAMP))
    np.testing.assert_array_equal(decode_image(message, view), image)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == divmod(STAMP, 10 ** 9)


@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.topic)
def test_commands_come_back_bit_for_bit(part: ActionPart) -> None:
    values = numbers(part.dim)
    again = decode_action(decoded(part.message, encode_action(part, values, STAMP)), part)
    np.testing.assert_array_equal(again, values)


def test_a_rotation_comes_back_but_for_rounding() -> None:
    part = ActionPart.model_validate({
        'name': 'hand', 'kind': 'ee_pose', 'names': ['x', 'y', 'z', 'rx', 'ry', 'rz'], 'unit': 'm', 'topic': 'pose',
        'message': 'geometry_msgs/PoseStamped', 'limits': {'min': [-9.0] * 6, 'max': [9.0] * 6}})
    values = numbers(6)
    again = decode_action(decoded(part.message, encode_action(part, values, STAMP)), part)
    np.testing.assert_allclose(again, values, atol=1e-6)
    np.testing.assert_array_equal(again[:3], values[:3])


def test_streams_of_one_topic_share_a_message() -> None:
    streams = {stream.name: stream for stream in CONTRACT.state}
    for names in (('hand', 'turn'), ('joints', 'speed')):
        parts = [(streams[name], numbers(len(streams[name].names))) for name in names]
        message = decoded(parts[0][0].message, encode_state(parts, STAMP))
        for stream, values in parts:
            np.testing.assert_array_equal(decode_state(message, stream), values)
    assert list(message.name) == ['a', 'b'] and np.isnan(message.velocity[0]), 'nobody measured this one'


def test_what_no_bag_holds() -> None:
    gripper = ActionPart.model_validate({
        'name': 'g', 'kind': 'gripper', 'names': ['g'], 'unit': '1', 'limits': {'min': [0.0], 'max': [1.0]},
        'message': 'control_msgs/action/GripperCommand', 'topic': 'gripper'})
    with pytest.raises(DataError, match='gripper: control_msgs/action/GripperCommand is an action'):
        encode_action(gripper, np.zeros(1), STAMP)
    with pytest.raises(DataError, match='made/Up is no message'):
        encode_message('made/Up')
    with pytest.raises(DataError, match="has no field 'dta'"):
        encode_message('std_msgs/String', dta='x')


def test_fields_that_are_not_given_are_empty() -> None:
    status = decoded('flow_vla/ExecutionStatus', encode_message('flow_vla/ExecutionStatus', source=2))
    assert (status.source, status.message, status.confidence, len(status.refusal_codes)) == (2, '', 0.0, 0)
    pose = decoded('geometry_msgs/PoseWithCovariance', encode_message('geometry_msgs/PoseWithCovariance'))
    np.testing.assert_array_equal(pose.covariance, np.zeros(36))
