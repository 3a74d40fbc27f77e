"""Turns arrays into serialized messages without ROS, for bags that are written from other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype

from flow_vla_core.contract import ActionPart, Camera, StateStream
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.errors import DataError

__all__ = ['encode_action', 'encode_image', 'encode_message', 'encode_png', 'encode_state']

CHANNELS = {'rgb8': [0, 1, 2], 'bgr8': [2, 1, 0], 'rgba8': [0, 1, 2], 'bgra8': [2, 1, 0], 'mono8': [0]}
LINEAR, ANGULAR = ('x', 'y', 'z'), ('rx', 'ry', 'rz')
DEFAULTS = {full_name('geometry_msgs/Quaternion'): {'w': 1.0}}  # no rotation
ZEROS = {'string': '', 'bool': False, 'float32': 0.0, 'float64': 0.0}  # 0 for every other type


def encode_message(kind: str, **values: Any) -> bytes:
    """Serialize a message; fields that are not given are zero, empty, no rotation, or built in the same way.

    Args:
        kind: such as ``std_msgs/String``.
        values: its fields; a mapping stands for a message, a sequence of mappings for a sequence of messages.

    Raises:
        DataError: if it is no message, as a goal of an action.

    Example:
        >>> encode_message('std_msgs/String', data='pull').hex()
        '000100000500000070756c6c00'
    """
    name = full_name(kind)
    if name not in typestore().fielddefs:
        raise DataError(f'{kind} is no message that a bag can hold')
    return bytes(typestore().serialize_cdr(_build(name, values), name))


def encode_image(image: np.ndarray, camera: Camera, stamp: int) -> bytes:
    """Serialize (Y, X, C) uint8, RGB or one channel, as the camera's message in its encoding; PNG if compressed."""
    if camera.message == 'sensor_msgs/CompressedImage':
        kept = 'mono8' if camera.channels == 1 else 'rgb8'
        return encode_message(camera.message, header=_header(stamp, camera.name),
                              format=f'{kept}; png compressed {kept}',
                              data=np.frombuffer(encode_png(image), np.uint8))
    pixels = image[..., CHANNELS[camera.encoding]]
    if 'a' in camera.encoding:
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1)
    rows, columns, channels = pixels.shape
    return encode_message('sensor_msgs/Image', header=_header(stamp, camera.name), height=rows, width=columns,
                          encoding=camera.encoding, step=columns * channels,
                          data=np.ascontiguousarray(pixels).reshape(-1))


def encode_png(image: np.ndarray) -> bytes:
    """Compress (Y, X, C) uint8, RGB or one channel, without loss."""
    from PIL import Image
    file = BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'PNG', compress_level=3)
    return file.getvalue()


def encode_state(streams: Sequence[tuple[StateStream, np.ndarray]], stamp: int) -> bytes:
    """Serialize the streams of one topic with their values (n,) as one message.

    A number that no stream holds is NaN in a JointState, and as in a new message elsewhere.
    """
    kind = streams[0][0].message
    if kind == 'sensor_msgs/JointState':
        return encode_message(kind, header=_header(stamp), **_joints(streams))
    values: dict[str, Any] = {'header': _header(stamp)}
    for stream, numbers in streams:
        place = values
        for step in stream.field.split('.'):
            place = place.setdefault(step, {})
        place.update(zip(stream.names, map(float, numbers)))
    return encode_message(kind, **values)


def encode_action(part: ActionPart, values: np.ndarray, stamp: int, reach_in: int = 0) -> bytes:
    """Serialize the values (dim,) of one action part as its command; see `flow_vla_ros.codecs.encode_action`."""
    if part.message not in ENCODERS:
        raise DataError(f'{part.topic}: {part.message} is an action, whose goals a bag does not hold')
    return encode_message(part.message, **ENCODERS[part.message](part, values, stamp, reach_in))


def _joints(streams: Sequence[tuple[StateStream, np.ndarray]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for stream, _ in streams for name in stream.names))
    fields: dict[str, Any] = {stream.field: np.full(len(names), np.nan) for stream, _ in streams}
    for stream, numbers in streams:
        fields[stream.field][[names.index(name) for name in stream.names]] = numbers
    return {'name': names, **fields}


def _twist(part: ActionPart, values: np.ndarray, stamp: int, _: int) -> dict[str, Any]:
    twist = {'linear': {}, 'angular': {}}
    for name, value in zip(part.names, values):
        twist['linear' if name in LINEAR else 'angular'][name[-1]] = float(value)
    return {'header': _header(stamp, part.frame), 'twist': twist}


def _pose(part: ActionPart, values: np.ndarray, stamp: int, _: int) -> dict[str, Any]:
    from scipy.spatial.transform import Rotation
    given = dict(zip(part.names, map(float, values)))
    rotation = Rotation.from_rotvec([given.get(name, 0.0) for name in ANGULAR]).as_quat(canonical=True)
    return {'header': _header(stamp, part.frame),
            'pose': {'position': {name: given.get(name, 0.0) for name in LINEAR},
                     'orientation': dict(zip('xyzw', map(float, rotation)))}}


def _trajectory(part: ActionPart, values: np.ndarray, stamp: int, reach_in: int) -> dict[str, Any]:
    details = part.trajectory
    if details is not None and details.lead is not None:
        reach_in = round(details.lead * 1e9)
    field = 'velocities' if part.kind == 'joint_velocity' else 'positions'
    point = {field: np.asarray(values, np.float64), 'time_from_start': _time(reach_in)}
    now = details is not None and details.start == 'now'
    return {'header': _header(0 if now else stamp, part.frame), 'joint_names': list(part.names), 'points': [point]}


def _numbers(_: ActionPart, values: np.ndarray, *__: int) -> dict[str, Any]:
    return {'data': np.asarray(values, np.float64)}


ENCODERS = {'geometry_msgs/TwistStamped': _twist, 'geometry_msgs/PoseStamped': _pose,
            'trajectory_msgs/JointTrajectory': _trajectory, 'std_msgs/Float64MultiArray': _numbers}


def _time(stamp: int) -> dict[str, int]:
    return {'sec': stamp // 10 ** 9, 'nanosec': stamp % 10 ** 9}


def _header(stamp: int, frame: str = '') -> dict[str, Any]:
    return {'stamp': _time(stamp), 'frame_id': frame}


def _build(name: str, values: Mapping[str, Any]) -> Any:
    """Build a message of rosbags' store out of nested mappings."""
    fields = dict(typestore().fielddefs[name][1])
    values = values or DEFAULTS.get(name, {})
    if unknown := set(values) - set(fields):
        raise DataError(f'{name} has no field {sorted(unknown)[0]!r}')
    return typestore().types[name](**{key: _field(kind, values.get(key)) for key, kind in fields.items()})


def _field(kind: tuple[int, Any], value: Any) -> Any:
    node, detail = kind
    if node == Nodetype.NAME:
        return _build(detail, value or {})
    if node == Nodetype.BASE:
        return ZEROS.get(detail[0], 0) if value is None else value
    (element, inner), count = detail
    if element == Nodetype.NAME:
        return [_build(inner, item) for item in value or [{}] * count]
    if value is not None:
        return value
    if inner[0] == 'string':
        return [''] * count
    return np.zeros(count, inner[0])
