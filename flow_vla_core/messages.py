"""Turns messages into arrays, for live messages of rclpy and recorded ones of rosbags alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
import math
from typing import Any

import numpy as np

from flow_vla_core.align import Aligned
from flow_vla_core.contract import ActionPart, Camera, RobotContract, StateStream
from flow_vla_core.errors import DataError, ImageInvalid, StateInvalid, StateNotFinite, closest
from flow_vla_core.types import Observation

__all__ = ['decode_action', 'decode_image', 'decode_state', 'make_observation', 'resize_image', 'stamp_of']

CHANNELS: Mapping[str, tuple[int, slice]] = {
    'rgb8': (3, slice(None)), 'bgr8': (3, slice(None, None, -1)), 'rgba8': (4, slice(0, 3)),
    'bgra8': (4, slice(2, None, -1)), 'mono8': (1, slice(None)),
}


def stamp_of(message: Any) -> int | None:
    """Return the header's stamp in ns, or None for a type without a header."""
    header = getattr(message, 'header', None)
    return None if header is None else header.stamp.sec * 10 ** 9 + header.stamp.nanosec


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (Y, X, C) uint8 to ``size`` rows and columns; each pixel is the mean of the area that it covers."""
    if image.shape[:2] == tuple(size):
        return image
    rows, columns = size
    if image.shape[0] % rows == 0 and image.shape[1] % columns == 0:
        return _reduce(image, image.shape[0] // rows, image.shape[1] // columns)
    total = _cover(_cover(image, rows, 0, 255), columns, 1, 255 * _shrink(image.shape[0], rows)[0])
    area = _shrink(image.shape[0], rows)[0] * _shrink(image.shape[1], columns)[0]
    return ((total + area // 2) // area).astype(np.uint8)


def _cover(image: np.ndarray, after: int, axis: int, largest: int) -> np.ndarray:
    """Sum, for each of ``after`` new lines, the old ones weighted by how much of them it covers.

    Values up to ``largest`` are summed in 16 bits where the sums fit into them, else in 32, which is slower.
    """
    before = image.shape[axis]
    first, weights = _overlaps(before, after)
    kind = np.uint16 if largest * _shrink(before, after)[0] < 2 ** 16 else np.uint32
    weights = weights.astype(kind)[(..., None, None) if axis == 0 else (..., None)]
    total = np.multiply(np.take(image, first, axis), weights[0], dtype=kind)
    for k in range(1, len(weights)):
        total += np.multiply(np.take(image, np.minimum(first + k, before - 1), axis), weights[k], dtype=kind)
    return total


def _shrink(before: int, after: int) -> tuple[int, int]:
    """Return how many old lines cover how many new ones exactly."""
    common = math.gcd(before, after)
    return before // common, after // common


@lru_cache(maxsize=16)
def _overlaps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first old line that each new one covers, (after,), and how much of it and of the next, (K, after).

    The lengths are whole numbers, in fractions of an old line, so that sums are exact and the same on every machine.
    They fit into 32 bits up to 16 million pixels.
    """
    long, short = _shrink(before, after)
    begin = np.arange(after)[:, None] * long
    first = begin // short
    old = (first + np.arange((long - 1) // short + 2)) * short
    shared = np.minimum(old + short, begin + long) - np.maximum(old, begin)
    return first[:, 0], np.maximum(shared, 0).T.astype(np.uint32)


def _reduce(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """Average blocks of whole pixels, rounding halves up."""
    total = sum(image[y::down, x::across].astype(np.uint32) for y in range(down) for x in range(across))
    return ((total + down * across // 2) // (down * across)).astype(np.uint8)


def decode_image(message: Any, camera: Camera) -> np.ndarray:
    """Decode an image to (Y, X, C) uint8 at ``camera.size``, RGB or one channel.

    Raises:
        ImageInvalid: if encoding, resolution, step or length are not what the contract says, or a compressed image is
            damaged.
    """
    if camera.message == 'sensor_msgs/CompressedImage':
        return resize_image(_decompress(message, camera), camera.size)
    if message.encoding != camera.encoding:
        raise ImageInvalid(f'{camera.name}: encoding {message.encoding!r}, the contract says {camera.encoding!r}')
    _check_resolution(message.height, message.width, camera)
    channels, order = CHANNELS[camera.encoding]
    rows, columns = camera.resolution
    if message.step < columns * channels:
        raise ImageInvalid(f'{camera.name}: step {message.step} bytes, a row needs {columns * channels}')
    data = np.frombuffer(message.data, np.uint8)
    if len(data) != rows * message.step:
        raise ImageInvalid(f'{camera.name}: {len(data)} bytes, {rows} rows of {message.step} have '
                           f'{rows * message.step}')
    lines = data.reshape(rows, message.step)
    pixels = lines[:, :columns * channels].reshape(rows, columns, channels)
    return resize_image(np.ascontiguousarray(pixels[..., order]), camera.size)


def _decompress(message: Any, camera: Camera) -> np.ndarray:
    """Decode JPEG or PNG to (Y, X, C) uint8, RGB or one channel; its size is checked before its pixels are read."""
    from PIL import Image
    try:
        image = Image.open(BytesIO(bytes(message.data)), formats=('JPEG', 'PNG'))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageInvalid(f'{camera.name}: neither JPEG nor PNG ({message.format!r})') from error
    _check_resolution(image.height, image.width, camera)
    try:
        pixels = np.array(image.convert('L' if camera.channels == 1 else 'RGB'))
        return pixels.reshape(*camera.resolution, camera.channels)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageInvalid(f'{camera.name}: damaged {image.format}: {error}') from error


def _check_resolution(rows: int, columns: int, camera: Camera) -> None:
    if (rows, columns) != camera.resolution:
        raise ImageInvalid(f'{camera.name}: {rows} rows and {columns} columns, '
                           f'the contract says {camera.resolution[0]} and {camera.resolution[1]}')


def decode_state(message: Any, stream: StateStream) -> np.ndarray:
    """Decode a state message to (n,) float32, in the order of ``stream.names``.

    Raises:
        StateInvalid: if a field or a name is missing.
        StateNotFinite: if a number is NaN or infinite.
    """
    with np.errstate(over='ignore'):  # what does not fit is infinite, and refused
        values = np.array(_numbers(message, stream), np.float32)
    if not np.isfinite(values).all():
        bad = stream.names[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise StateNotFinite(f'{stream.name}: {bad} is not finite')
    return values


def _numbers(message: Any, stream: StateStream) -> list[float]:
    target = message
    for step in stream.field.split('.'):
        if not hasattr(target, step):
            raise StateInvalid(f'{stream.name}: {stream.message} has no field {stream.field!r}')
        target = getattr(target, step)
    if stream.message == 'sensor_msgs/JointState':
        return [_joint(message, target, name, stream) for name in stream.names]
    try:
        return [float(getattr(target, name)) for name in stream.names]
    except (AttributeError, TypeError) as error:
        raise StateInvalid(f'{stream.name}: {stream.field} of {stream.message}: {error}') from error


def _joint(message: Any, values: Any, name: str, stream: StateStream) -> float:
    names = list(message.name)
    if name not in names:
        raise StateInvalid(f'{stream.name}: no joint {name!r} in the message; {closest(name, names)}')
    index = names.index(name)
    if index >= len(values):
        raise StateInvalid(f'{stream.name}: {len(names)} names but {len(values)} values in {stream.field!r}')
    return float(values[index])


def decode_action(message: Any, part: ActionPart) -> np.ndarray:
    """Decode a command to (dim,) float32, in the order of ``part.names``. Raise `DataError` if it does not fit.

    Of a trajectory, the first point is the command; points after it only say how to go on if nothing follows.
    """
    try:
        with np.errstate(over='ignore'):  # what does not fit is infinite
            return np.array(DECODERS[part.message](message, part), np.float32)
    except (AttributeError, IndexError, KeyError, ValueError) as error:
        raise DataError(f'{part.topic}: {part.message} does not hold {list(part.names)}: {error}') from error


def _twist(message: Any, part: ActionPart) -> list[float]:
    twist = message.twist
    return [getattr(twist.linear if len(name) == 1 else twist.angular, name[-1]) for name in part.names]


def _pose(message: Any, part: ActionPart) -> list[float]:
    import roma
    import torch
    orientation = message.pose.orientation
    quaternion = torch.tensor([orientation.x, orientation.y, orientation.z, orientation.w], dtype=torch.float64)
    rotation = roma.unitquat_to_rotvec(quaternion).tolist()
    return [getattr(message.pose.position, name) if len(name) == 1 else rotation['xyz'.index(name[1])]
            for name in part.names]


def _trajectory(message: Any, part: ActionPart) -> list[float]:
    point = message.points[0]
    values = dict(zip(message.joint_names, point.velocities if part.kind == 'joint_velocity' else point.positions))
    return [values[name] for name in part.names]


def _array(message: Any, part: ActionPart) -> list[float]:
    if len(message.data) != part.dim:
        raise ValueError(f'{len(message.data)} values, not {part.dim}')
    return list(message.data)


def _gripper(message: Any, part: ActionPart) -> list[float]:
    return [message.command.position]


def _parallel_gripper(message: Any, part: ActionPart) -> list[float]:
    command = message.command
    return [command.position[list(command.name).index(name)] for name in part.names]


DECODERS = {
    'geometry_msgs/TwistStamped': _twist, 'geometry_msgs/PoseStamped': _pose,
    'trajectory_msgs/JointTrajectory': _trajectory, 'std_msgs/Float64MultiArray': _array,
    'control_msgs/action/GripperCommand': _gripper, 'control_msgs/action/ParallelGripperCommand': _parallel_gripper,
}


def make_observation(contract: RobotContract, aligned: Aligned, instruction: str) -> Observation:
    """Decode the messages that were selected for one reference time; nothing else is ever decoded."""
    samples = aligned.samples
    images = {camera.name: np.stack([decode_image(message, camera) for _, message in samples[camera.name]])
              for camera in contract.cameras}
    parts = [np.stack([decode_state(message, stream) for _, message in samples[stream.name]])
             for stream in contract.state]
    state = np.concatenate(parts, 1) if parts else np.zeros((contract.history, 0), np.float32)
    stamps = {name: tuple(stamp for stamp, _ in chosen) for name, chosen in samples.items()}
    return Observation(aligned.stamp, images, state, instruction, stamps)
