"""Turns arrays into ROS messages, and action chunks both ways; `flow_vla_core.messages` does the other direction."""

from __future__ import annotations

import array
from collections.abc import Callable
import importlib
import math

from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped, TwistStamped
import numpy as np
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla_core.contract import ActionPart, Camera, Goals, RobotContract, StateStream
from flow_vla_core.errors import ChunkContractMismatch, ChunkShape, ConfigError
from flow_vla_core.types import ActionChunk
from flow_vla_ros.trajectories import TrajectoryEncoder

__all__ = ['action_type', 'chunk_to_message', 'encode_action', 'encode_camera_info', 'encode_image',
           'encode_joint_state', 'encode_pose', 'encode_state', 'encoder', 'from_time', 'message_to_chunk',
           'message_type', 'to_duration', 'to_time']

NANOSECONDS = 10 ** 9
LINEAR, ANGULAR = ('x', 'y', 'z'), ('rx', 'ry', 'rz')
CHANNELS = {'rgb8': [0, 1, 2], 'bgr8': [2, 1, 0], 'rgba8': [0, 1, 2], 'bgra8': [2, 1, 0], 'mono8': [0]}


def to_time(stamp: int) -> Time:
    """Turn nanoseconds into a message."""
    return Time(sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)


def to_duration(nanoseconds: int) -> Duration:
    """Turn nanoseconds into a message."""
    return Duration(sec=nanoseconds // NANOSECONDS, nanosec=nanoseconds % NANOSECONDS)


def from_time(message: Time | Duration) -> int:
    """Turn a time or a duration into nanoseconds."""
    return message.sec * NANOSECONDS + message.nanosec


def message_type(name: str) -> type:
    """Return the class of a message, given its name such as ``sensor_msgs/Image`` or ``sensor_msgs/msg/Image``."""
    package, _, kind = name.partition('/')
    if kind.startswith('action/'):
        raise ConfigError(f'{name} is an action, and what is sent to it can be neither heard nor recorded')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), kind.rpartition('/')[2])
    except (ImportError, AttributeError) as error:
        raise ConfigError(f'message type {name!r} is not installed: {error}') from error


def action_type(name: str) -> type:
    """Return the class of an action, given its name such as ``control_msgs/action/GripperCommand``."""
    package, _, kind = name.partition('/action/')
    try:
        return getattr(importlib.import_module(f'{package}.action'), kind)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f'action type {name!r} is not installed: {error}; on a robot: '
                          f'sudo apt install ros-$ROS_DISTRO-{package.replace("_", "-")}') from error


def chunk_to_message(chunk: ActionChunk, contract: RobotContract) -> ChunkMessage:
    """Encode a chunk, marked with the contract that it was made for."""
    horizon, dim = chunk.actions.shape
    message = ChunkMessage(id=chunk.id, contract=contract.label, instruction=chunk.instruction, horizon=horizon,
                           action_dim=dim, dt=to_duration(chunk.dt), generation_time=to_duration(chunk.generation_time),
                           delay=chunk.delay, confidence=chunk.confidence,
                           data=array.array('f', np.ascontiguousarray(chunk.actions, np.float32).tobytes()))
    message.header.stamp = to_time(chunk.stamp)
    return message


def message_to_chunk(message: ChunkMessage, contract: RobotContract) -> ActionChunk:
    """Decode a chunk. Raise `ChunkContractMismatch` if it is for another contract, `ChunkShape` at a wrong length."""
    if message.contract != contract.label:
        raise ChunkContractMismatch(f'chunk {message.id} is for the contract {message.contract!r}, '
                                    f'this robot has {contract.label!r}')
    horizon, dim = message.horizon, message.action_dim
    if len(message.data) != horizon * dim:
        raise ChunkShape(f'chunk {message.id} holds {len(message.data)} numbers, its header says '
                         f'{horizon} x {dim} = {horizon * dim}')
    actions = np.array(message.data, np.float32).reshape(horizon, dim)
    return ActionChunk(from_time(message.header.stamp), from_time(message.dt), actions, message.id,
                       message.instruction, from_time(message.generation_time), message.delay, message.confidence)


def encode_image(image: np.ndarray, camera: Camera, stamp: int) -> Image:
    """Encode (Y, X, C) uint8, RGB or one channel, in the camera's encoding."""
    pixels = image[..., CHANNELS[camera.encoding]]
    if 'a' in camera.encoding:
        pixels = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1)
    rows, columns, channels = pixels.shape
    message = Image(height=rows, width=columns, encoding=camera.encoding, step=columns * channels,
                    data=array.array('B', np.ascontiguousarray(pixels).tobytes()))
    message.header.stamp, message.header.frame_id = to_time(stamp), camera.name
    return message


def encode_camera_info(camera: Camera, focal_x: float, focal_y: float, stamp: int = 0) -> CameraInfo:
    """Describe a camera without distortion, its principal point in the middle; focal lengths in pixels."""
    rows, columns = camera.resolution
    x, y = columns / 2, rows / 2
    message = CameraInfo(height=rows, width=columns, distortion_model='plumb_bob', d=[0.0] * 5,
                         k=[focal_x, 0.0, x, 0.0, focal_y, y, 0.0, 0.0, 1.0],
                         r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
                         p=[focal_x, 0.0, x, 0.0, 0.0, focal_y, y, 0.0, 0.0, 0.0, 1.0, 0.0])
    message.header.stamp, message.header.frame_id = to_time(stamp), camera.name
    return message


def encode_pose(position: np.ndarray, stamp: int, *, rotation: np.ndarray | None = None,
                frame: str = '') -> PoseStamped:
    """Encode a position (3,), m, and a rotation vector (3,), rad."""
    message = PoseStamped()
    message.header.stamp, message.header.frame_id = to_time(stamp), frame
    _assign(message.pose.position, LINEAR, position)
    if rotation is not None:
        _assign(message.pose.orientation, ('w', 'x', 'y', 'z'), _quaternion(rotation))
    return message


def encode_joint_state(names: tuple[str, ...], positions: np.ndarray, stamp: int) -> JointState:
    """Encode joint positions (n,)."""
    message = JointState(name=list(names), position=[float(value) for value in positions])
    message.header.stamp = to_time(stamp)
    return message


def encode_state(stream: StateStream, values: np.ndarray, stamp: int) -> object:
    """Encode a state stream (n,) as the message and into the field that the contract names."""
    message = message_type(stream.message)()
    message.header.stamp = to_time(stamp)
    if isinstance(message, JointState):
        message.name = list(stream.names)
        setattr(message, stream.field, [float(value) for value in values])
        return message
    target = message
    for step in stream.field.split('.'):
        target = getattr(target, step)
    _assign(target, stream.names, values)
    return message


def encode_action(part: ActionPart, values: np.ndarray, stamp: int, *, reach_in: int = 0,
                  velocities: np.ndarray | None = None) -> object:
    """Encode the values (dim,) of one action part as the command, or the goal, that the contract names.

    Args:
        part: says the kind and the message.
        values: (dim,) in the part's unit.
        stamp: of the command, ns.
        reach_in: time in which a trajectory controller is to get there, ns, unless the part says another.
        velocities: (dim,) rate of change of joint positions, for a trajectory controller.

    Raises:
        ConfigError: if the package of an action is not installed.
    """
    return ENCODERS[part.message](part, values, stamp, reach_in, velocities)


def encoder(part: ActionPart, reach_in: int) -> Callable[[np.ndarray, np.ndarray | None, int], object]:
    """Return what encodes commands of a part, (values, velocities, stamp), as `encode_action` does.

    Each message is valid until the next one is encoded: a trajectory is built once and filled again.
    """
    if part.message == 'trajectory_msgs/JointTrajectory':
        return TrajectoryEncoder(part, reach_in).encode
    return lambda values, velocities, stamp: encode_action(part, values, stamp, reach_in=reach_in,
                                                           velocities=velocities)


def _encode_twist(part: ActionPart, values: np.ndarray, stamp: int, *_: object) -> TwistStamped:
    message = TwistStamped()
    message.header.stamp, message.header.frame_id = to_time(stamp), part.frame
    for name, value in zip(part.names, values):
        setattr(message.twist.linear if name in LINEAR else message.twist.angular, name[-1], float(value))
    return message


def _encode_pose_action(part: ActionPart, values: np.ndarray, stamp: int, *_: object) -> PoseStamped:
    given = dict(zip(part.names, values))
    position = [given.get(name, 0.0) for name in LINEAR]
    rotation = [given.get(name, 0.0) for name in ANGULAR]
    return encode_pose(np.array(position), stamp, rotation=np.array(rotation), frame=part.frame)


def _encode_trajectory(part: ActionPart, values: np.ndarray, stamp: int, reach_in: int,
                       velocities: np.ndarray | None) -> JointTrajectory:
    return TrajectoryEncoder(part, reach_in).encode(values, velocities, stamp)


def _encode_numbers(part: ActionPart, values: np.ndarray, *_: object) -> Float64MultiArray:
    return Float64MultiArray(data=_floats(values))


def _encode_gripper(part: ActionPart, values: np.ndarray, *_: object) -> object:
    goal = action_type(part.message).Goal()
    goal.command.position, goal.command.max_effort = float(values[0]), (part.goals or Goals()).effort
    return goal


def _encode_parallel_gripper(part: ActionPart, values: np.ndarray, stamp: int, *_: object) -> object:
    goal, effort = action_type(part.message).Goal(), (part.goals or Goals()).effort
    goal.command = JointState(name=list(part.names), position=_floats(values), effort=[effort] if effort else [])
    goal.command.header.stamp = to_time(stamp)
    return goal


ENCODERS = {
    'geometry_msgs/TwistStamped': _encode_twist,
    'geometry_msgs/PoseStamped': _encode_pose_action,
    'trajectory_msgs/JointTrajectory': _encode_trajectory,
    'std_msgs/Float64MultiArray': _encode_numbers,
    'control_msgs/action/GripperCommand': _encode_gripper,
    'control_msgs/action/ParallelGripperCommand': _encode_parallel_gripper,
}


def _floats(values: np.ndarray) -> array.array:
    return array.array('d', np.asarray(values, np.float64).tobytes())


def _assign(target: object, names: tuple[str, ...], values: np.ndarray) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(target, name, float(value))


def _quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Turn a rotation vector (3,) into a unit quaternion w, x, y, z."""
    angle = float(np.linalg.norm(rotation))
    scale = 0.5 if angle < 1e-9 else math.sin(angle / 2) / angle
    return (math.cos(angle / 2), *(float(value) * scale for value in rotation))
