"""Makes bags for tests: the streams of Meta-World's contract, serialized without ROS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import bag_writer
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.typestore import full_name, typestore

__all__ = ['CONTRACT', 'DT', 'SMALL', 'START', 'TYPES', 'fill_disk', 'image', 'message', 'moving', 'record',
           'serialize', 'steps']

CONTRACT = RobotContract.load(find_contract('metaworld'))
SMALL = CONTRACT.model_copy(update={'cameras': tuple(camera.model_copy(update={'resolution': (12, 12)})
                                                     for camera in CONTRACT.cameras)})  # same label, quick to record
DT = CONTRACT.rates.policy_dt_ns
START = 1_700_000_000 * 10 ** 9
TYPES = {
    **{'/' + camera.topic: 'sensor_msgs/msg/Image' for camera in CONTRACT.cameras},
    **{'/' + part.topic: full_name(part.message) for part in (*CONTRACT.state, *CONTRACT.actions)},
    '/instruction': 'std_msgs/msg/String',
}
MARKS = {'instruction': 'open the faucet', 'task': 'faucet-open', 'outcome': 'success', 'contract': CONTRACT.label}


def make(kind: str, **values: Any) -> Any:
    """Build a message of rosbags' store."""
    return typestore().types[full_name(kind)](**values)


def header(stamp: int) -> Any:
    return make('std_msgs/Header', frame_id='', stamp=make('builtin_interfaces/Time', sec=stamp // 10 ** 9,
                                                           nanosec=stamp % 10 ** 9))


def image(stamp: int, pixels: np.ndarray, **changes: Any) -> Any:
    """Build an image message from (Y, X, C) uint8; ``changes`` replace fields."""
    rows, columns, channels = pixels.shape
    values = {'header': header(stamp), 'height': rows, 'width': columns, 'encoding': 'rgb8', 'is_bigendian': 0,
              'step': columns * channels, 'data': pixels.reshape(-1)}
    return make('sensor_msgs/Image', **{**values, **changes})


def vector(x: float, y: float = 0.0, z: float = 0.0) -> Any:
    return make('geometry_msgs/Vector3', x=x, y=y, z=z)


def message(topic: str, stamp: int, value: float = 0.0) -> Any:
    """Build the message of a topic of the contract, whose numbers tell which one it is."""
    kind = TYPES[topic].split('/')[-1]
    if kind == 'Image':
        return image(stamp, np.full((168, 168, 3), int(value) % 256, np.uint8))
    if kind == 'PoseStamped':
        pose = make('geometry_msgs/Pose', position=make('geometry_msgs/Point', x=value, y=0.5, z=0.1),
                    orientation=make('geometry_msgs/Quaternion', x=0.0, y=0.0, z=0.0, w=1.0))
        return make('geometry_msgs/PoseStamped', header=header(stamp), pose=pose)
    if kind == 'JointState':
        empty = np.zeros(0)
        return make('sensor_msgs/JointState', header=header(stamp), name=['gripper'], position=np.array([value]),
                    velocity=empty, effort=empty)
    if kind == 'TwistStamped':
        twist = make('geometry_msgs/Twist', linear=vector(value), angular=vector(0.0))
        return make('geometry_msgs/TwistStamped', header=header(stamp), twist=twist)
    if kind == 'JointTrajectory':
        empty = np.zeros(0)
        point = make('trajectory_msgs/JointTrajectoryPoint', positions=np.array([value]), velocities=empty,
                     accelerations=empty, effort=empty,
                     time_from_start=make('builtin_interfaces/Duration', sec=0, nanosec=0))
        return make('trajectory_msgs/JointTrajectory', header=header(stamp), joint_names=['gripper'], points=[point])
    return make('std_msgs/String', data='close the faucet')


def serialize(topic: str, built: Any) -> bytes:
    """Return a message's bytes."""
    return bytes(typestore().serialize_cdr(built, TYPES[topic]))


def steps(count: int, leave_out: Iterable[str] = ()) -> list[tuple[str, int, Any]]:
    """List topic, stamp and message of an episode whose k-th sample carries the number k."""
    return [(topic, START + k * DT, message(topic, START + k * DT, float(k)))
            for k in range(count) for topic in TYPES if topic not in leave_out and (k == 0 or topic != '/instruction')]


def moving(count: int, begin: int = START, phase: float = 0.0) -> list[tuple[str, int, Any]]:
    """List topic, time and message of an episode of `SMALL` that is all right: values swing within the limits."""
    samples = [('/instruction', begin, message('/instruction', begin))]
    for k in range(count):
        stamp = begin + k * DT
        for topic, kind in TYPES.items():
            if topic != '/instruction':
                value = 0.15 * float(np.sin(0.3 * k + phase))
                pixels = np.full((12, 12, 3), round(5 * k + 50 * phase) % 256, np.uint8)
                samples.append((topic, stamp, image(stamp, pixels) if kind.endswith('Image')
                                else message(topic, stamp, value)))
    return samples


def record(folder: Path, samples: Iterable[tuple[str, int, Any]], marks: Mapping[str, str] = MARKS,
           leave_out: Iterable[str] = (), compression: str = 'zstd', close: bool = True) -> Path:
    """Write a bag, by default a closed one; a message may be given as bytes."""
    topics = [Topic(name, kind) for name, kind in TYPES.items() if name not in leave_out]
    writer = EpisodeWriter(folder, topics, marks, compression)
    for topic, stamp, built in samples:
        writer.write(topic, built if isinstance(built, bytes) else serialize(topic, built), stamp, stamp)
    if close:
        writer.close()
    else:
        writer.abandon()
    return folder


class FullDisk:
    """Stands in for a file on a disk with room for so many bytes; what does not fit is written in part."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        if self._room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._file.write(data[:self._room])
        self._room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let bags be written to disks with room for so many bytes."""
    class Sink(bag_writer._Sink):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._file = FullDisk(self._file, room)

    monkeypatch.setattr(bag_writer, '_Sink', Sink)
