"""Makes a small robot and episodes of it, for tests of the exchange with LeRobotDataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode

__all__ = ['CONTRACT', 'START', 'VALUES', 'assert_same', 'make_episode', 'make_episodes']

START = 1_700_000_000_123_456_789  # ns
AGES = {'max_age': 0.3, 'max_skew': 0.3}
VALUES: dict[str, Any] = {
    'name': 'small', 'rates': {'policy_dt': 0.1, 'control_hz': 50.0},
    'cameras': [
        {'name': 'top', 'topic': 'top/image', 'encoding': 'rgb8', 'resolution': [64, 96], 'size': [32, 48], **AGES},
        {'name': 'side', 'topic': 'side/image', 'encoding': 'bgr8', 'resolution': [64, 64], 'size': [64, 64], **AGES}],
    'state': [
        {'name': 'hand', 'topic': 'pose', 'message': 'geometry_msgs/PoseStamped', 'field': 'pose.position',
         'names': ['x', 'y', 'z'], 'unit': 'm', **AGES},
        {'name': 'turn', 'topic': 'pose', 'message': 'geometry_msgs/PoseStamped', 'field': 'pose.orientation',
         'names': ['x', 'w'], 'unit': '1', **AGES},
        {'name': 'joints', 'topic': 'joints', 'message': 'sensor_msgs/JointState', 'field': 'position',
         'names': ['a', 'b'], 'unit': 'rad', **AGES},
        {'name': 'speed', 'topic': 'joints', 'message': 'sensor_msgs/JointState', 'field': 'velocity', 'names': ['b'],
         'unit': 'rad/s', **AGES}],
    'instruction': {'topic': 'words'},
    'actions': [
        {'name': 'twist', 'kind': 'ee_twist', 'names': ['x', 'rz'], 'unit': 'm/s', 'limits': {'velocity': [1.0, 1.0]},
         'message': 'geometry_msgs/TwistStamped', 'topic': 'twist'},
        {'name': 'arm', 'kind': 'joint_position', 'names': ['a', 'b'], 'unit': 'rad',
         'limits': {'min': [-9.0, -9.0], 'max': [9.0, 9.0]}, 'message': 'trajectory_msgs/JointTrajectory',
         'topic': 'arm'},
        {'name': 'grip', 'kind': 'gripper', 'names': ['g'], 'unit': '1', 'limits': {'min': [-9.0], 'max': [9.0]},
         'message': 'std_msgs/Float64MultiArray', 'topic': 'grip'}]}
CONTRACT = RobotContract.parse(VALUES)


def smooth(count: int, rows: int, columns: int, channels: int, phase: int) -> np.ndarray:
    """Paint gradients that move, (N, Y, X, C) uint8: codecs keep them well."""
    step, y, x = np.ogrid[:count, :rows, :columns]
    planes = [(3 * step + 2 * y + x + 40 * channel + 7 * phase) % 256 for channel in range(channels)]
    return np.minimum(np.stack(planes, -1), 255 - np.stack(planes, -1)).astype(np.uint8) * 2


def make_episode(number: int, count: int, contract: RobotContract = CONTRACT, at: str = 'resolution',
                 **changes: Any) -> Episode:
    """Make an episode of any numbers, whose images have the cameras' ``resolution`` or ``size``."""
    random = np.random.default_rng(number)
    stamps = START + number * 10 ** 12 + np.arange(count) * contract.rates.policy_dt_ns
    images = {camera.name: smooth(count, *getattr(camera, at), camera.channels, number) for camera in contract.cameras}
    values = {'stamps': stamps, 'images': images,
              'state': random.normal(size=(count, contract.state_dim)).astype(np.float32),
              'actions': random.normal(size=(count, contract.action_dim)).astype(np.float32),
              'instruction': f'do thing {number % 2}', 'task': f'thing#{number}',
              'outcome': ('success', 'failure', 'unknown')[number % 3], 'source': Path(f'bag_{number}'),
              'actors': random.integers(0, 3, count).astype(np.uint8)}
    return Episode(**{**values, **changes})


def make_episodes(at: str = 'resolution') -> list[Episode]:
    """Make three of different lengths."""
    return [make_episode(number, count, at=at) for number, count in enumerate((7, 12, 5))]


def assert_same(one: Episode, other: Episode, image_error: float = 0.0) -> None:
    """Compare all that is in two episodes, but where they come from; images by their mean error."""
    for name in ('stamps', 'state', 'actions', 'actors'):
        first, second = getattr(one, name), getattr(other, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape), name
        np.testing.assert_array_equal(first, second, name)
    for name in ('instruction', 'task', 'outcome', 'complete'):
        assert getattr(one, name) == getattr(other, name)
    assert list(one.images) == list(other.images)
    for name, images in one.images.items():
        assert (images.shape, images.dtype) == (other.images[name].shape, other.images[name].dtype)
        assert np.abs(images.astype(float) - other.images[name]).mean() <= image_error, name
