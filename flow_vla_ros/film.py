"""Keeps what cameras saw and how the robot moved, as cheaply as it can, and makes a video of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import math
from pathlib import Path
import struct
from tempfile import TemporaryFile
import time
from typing import BinaryIO

import numpy as np
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import Image

from flow_vla_core.contract import ActionPart, RobotContract, StateStream
from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.plots import Motion
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.evaluation.video import VideoWriter, compose, write_gif
from flow_vla_core.messages import decode_action, decode_image, decode_state, stamp_of
from flow_vla_ros import codecs, qos

__all__ = ['Film', 'MotionTrace', 'Scene']

STAMP = struct.Struct('<iI')  # of a header, behind the 4 bytes that begin a serialized message
VELOCITIES = ('ee_twist', 'joint_velocity')
STILL_FRAMES = 12  # that the outcome stays on the screen
GIF_BYTES = 3_000_000
GIF_STRIDE = 3
VIDEO_SECONDS = 50.0


@dataclass(frozen=True)
class Scene:
    """Binds an outcome to the time that the episode took, ns."""

    result: EpisodeResult
    start: int
    end: int


class Film:
    """Writes serialized images to a nameless file as they come, undecoded; use it as a context manager.

    Args:
        contract: names the cameras.
        folder: on whose disk the file lies.
    """

    def __init__(self, contract: RobotContract, folder: Path) -> None:
        self.scenes: list[Scene] = []
        self._contract = contract
        self._file: BinaryIO = TemporaryFile(dir=folder)  # noqa: SIM115  closed on exit
        self._places: dict[int, dict[str, tuple[int, int]]] = {}  # stamp -> camera -> offset and length

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def attach(self, node: Node) -> None:
        """Subscribe to the cameras."""
        for camera in self._contract.cameras:
            node.create_subscription(Image, camera.topic, lambda data, name=camera.name: self._keep(name, data),
                                     qos.SENSOR, raw=True)

    def cut(self, result: EpisodeResult, span: tuple[int, int]) -> None:
        """Say which episode was shown from one time to another, ns."""
        self.scenes.append(Scene(result, *span))

    def write_video(self, path: Path, rate: float, seconds: float = VIDEO_SECONDS) -> int:
        """Write every episode with its words and its outcome; return the number of frames.

        Args:
            path: of the video.
            rate: at which frames were taken, Hz.
            seconds: of work; frames are left out, and others stand for them, where the machine is too slow for all.
        """
        start, count, left = time.monotonic(), 0, sum(len(self._stamps(scene)) for scene in self.scenes)
        with VideoWriter(path, rate) as video:
            for scene in self.scenes:
                spent = time.monotonic() - start
                stride = math.ceil(spent * left / count / max(0.5, seconds - spent)) if count else 1
                for frame in self._frames(scene, stride, scale=2):
                    video.write(frame, stride)
                    count += 1
                left -= len(self._stamps(scene))
        return count

    def write_gif(self, path: Path, rate: float) -> int:
        """Write the shortest success of each task, at twice the speed; return the number of frames."""
        best: dict[str, Scene] = {}
        for scene in self.scenes:
            if scene.result.success and (scene.result.task not in best
                                         or scene.result.steps < best[scene.result.task].result.steps):
                best[scene.result.task] = scene
        frames = [frame for scene in best.values() for frame in self._frames(scene, GIF_STRIDE, scale=1)]
        return write_gif(path, frames, GIF_STRIDE / rate / 2, GIF_BYTES)

    def _keep(self, camera: str, data: bytes) -> None:
        seconds, nanoseconds = STAMP.unpack_from(data, 4)
        self._places.setdefault(seconds * 10 ** 9 + nanoseconds, {})[camera] = (self._file.tell(), len(data))
        self._file.write(data)

    def _stamps(self, scene: Scene) -> list[int]:
        return [stamp for stamp, views in self._places.items()
                if scene.start <= stamp <= scene.end and len(views) == len(self._contract.cameras)]

    def _frames(self, scene: Scene, stride: int, scale: int) -> Iterator[np.ndarray]:
        stamps = self._stamps(scene)
        caption = scene.result.instruction or '(no words)'
        for stamp in stamps[:-1:stride]:
            yield compose(self._views(stamp), caption, '', scale)
        outcome = 'success' if scene.result.success else 'failure'
        for stamp in stamps[-1:] * math.ceil(STILL_FRAMES / stride):
            yield compose(self._views(stamp), caption, outcome, scale)

    def _views(self, stamp: int) -> list[np.ndarray]:
        views = []
        for camera in self._contract.cameras:
            offset, length = self._places[stamp][camera.name]
            self._file.seek(offset)
            message = deserialize_message(self._file.read(length), Image)
            views.append(decode_image(message, camera.model_copy(update={'size': camera.resolution})))
        return views


class MotionTrace:
    """Keeps the commands of the first action part and the measurements of what they move.

    Args:
        contract: says where both are; a part without ``position_from`` is measured by the stream with its names.
    """

    def __init__(self, contract: RobotContract) -> None:
        self.part = contract.actions[0]
        self.stream = next((stream for stream in contract.state if _measures(stream, self.part)), None)
        if self.stream is None:
            raise ConfigError(f'actions.{self.part.name}: no state stream measures {", ".join(self.part.names)}')
        self.commands: list[tuple[int, np.ndarray]] = []
        self.positions: list[tuple[int, np.ndarray]] = []

    def attach(self, node: Node) -> None:
        """Subscribe to commands and positions."""
        node.create_subscription(codecs.message_type(self.part.message), self.part.topic, self._on_command, qos.COMMAND)
        node.create_subscription(codecs.message_type(self.stream.message), self.stream.topic, self._on_position,
                                 qos.SENSOR)

    def between(self, start: int, end: int, chunk_starts: np.ndarray, title: str) -> Motion:
        """Cut one episode out; times are in s since its start, ``chunk_starts`` in ns.

        What a velocity brings about is measured as the change of the position.
        """
        command_times, commands = _cut(self.commands, start, end, self.part.dim)
        times, measured = _cut(self.positions, start, end, len(self.stream.names))
        measured = measured[:, [self.stream.names.index(name) for name in self.part.names]]
        if self.part.kind in VELOCITIES:
            times, measured = (times[:-1] + times[1:]) / 2, np.diff(measured, axis=0) / np.diff(times)[:, None]
        chunks = (chunk_starts[(chunk_starts >= start) & (chunk_starts <= end)] - start) * 1e-9
        return Motion(title, self.part.names, self.part.unit, command_times, commands, times, measured, chunks)

    def _on_command(self, message: object) -> None:
        self.commands.append((stamp_of(message), decode_action(message, self.part)))

    def _on_position(self, message: object) -> None:
        self.positions.append((stamp_of(message), decode_state(message, self.stream)))


def _measures(stream: StateStream, part: ActionPart) -> bool:
    if part.position_from is not None:
        return stream.name == part.position_from
    return set(part.names) <= set(stream.names)


def _cut(samples: list[tuple[int, np.ndarray]], start: int, end: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    kept = [(stamp, values) for stamp, values in samples if start <= stamp <= end]
    times = np.array([stamp - start for stamp, _ in kept], float) * 1e-9
    return times, np.array([values for _, values in kept], float).reshape(-1, width)
