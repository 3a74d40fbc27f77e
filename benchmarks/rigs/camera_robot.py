"""Publishes what a robot does: three cameras of 640x480 rgb8 at 30 Hz, joint states at 200 Hz, commands at 30 Hz.

Every stamp that was published is written to a file, 16 bytes each: number of the topic and stamp, so that a benchmark
can compare it with what a bag holds, also if one of the two processes was killed.
"""

from __future__ import annotations

import array
from pathlib import Path
import signal
import struct
import threading
import time
from typing import Annotated

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.serialization import serialize_message
import typer

from flow_vla_core.contract import RobotContract
from flow_vla_ros import codecs, qos

RECORD = struct.Struct('<qq')
CAMERAS, ROWS, COLUMNS = ('front', 'left', 'right'), 480, 640
CAMERA_HZ, JOINT_HZ = 30, 200
JOINTS = tuple(f'joint_{number}' for number in range(6))
STAMP_AT = 4  # bytes; behind the head of a serialized message that begins with a header


def contract_text() -> str:
    """Return the robot contract of what is published here."""
    cameras = ''.join(f"""
  - {{name: {name}, topic: camera/{name}/image_raw, encoding: rgb8, resolution: [{ROWS}, {COLUMNS}], size: [96, 96],
     max_age: 0.5, max_skew: 0.1}}""" for name in CAMERAS)
    names, zeros = ', '.join(JOINTS), ', '.join(['3.0'] * len(JOINTS))
    return f"""
name: camera_robot
rates: {{policy_dt: {1 / CAMERA_HZ!r}, control_hz: 100.0}}
cameras:{cameras}
state:
  - {{name: joints, topic: joint_states, message: sensor_msgs/JointState, field: position, names: [{names}], unit: rad,
     max_age: 0.5, max_skew: 0.1}}
instruction: {{topic: instruction}}
actions:
  - {{name: arm, kind: joint_position, names: [{names}], unit: rad, message: trajectory_msgs/JointTrajectory,
     topic: arm/command, limits: {{min: [{zeros.replace('3.0', '-3.0')}], max: [{zeros}], velocity: [{zeros}]}}}}
"""


class Stream:
    """Is one topic: messages that are sent again and again, each time with a new stamp; images serialized before."""

    def __init__(self, node: Node, number: int, topic: str, messages: list[object], rate: float) -> None:
        self.number, self.topic, self.rate = number, topic, rate
        profile = qos.RELIABLE_SENSOR if 'camera' in topic else qos.STATE
        self._publisher = node.create_publisher(type(messages[0]), topic, profile)
        self._messages = messages
        self._payloads = [bytearray(serialize_message(message)) for message in messages] if 'camera' in topic else []
        self.sent = 0

    def send(self) -> int:
        """Publish the next message; return its stamp, ns."""
        number, stamp = self.sent % len(self._messages), time.time_ns()
        if self._payloads:
            struct.pack_into('<iI', self._payloads[number], STAMP_AT, stamp // 10 ** 9, stamp % 10 ** 9)
            self._publisher.publish(bytes(self._payloads[number]))
        else:
            self._messages[number].header.stamp = codecs.to_time(stamp)
            self._publisher.publish(self._messages[number])
        self.sent += 1
        return stamp


def make_streams(node: Node, contract: RobotContract, noise: float) -> list[Stream]:
    """Make the topics of the contract; images are a smooth scene with noise of a camera."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:ROWS, :COLUMNS]
    streams = []
    for camera in contract.cameras:
        images = []
        for shift in range(8):
            scene = np.stack([128 + 80 * np.sin((x + 9 * shift) / 60 + c) + 40 * np.cos(y / 37) for c in range(3)], -1)
            pixels = np.clip(scene + random.normal(0, noise, scene.shape), 0, 255).astype(np.uint8)
            images.append(codecs.encode_image(pixels, camera, 0))
        streams.append(Stream(node, len(streams), camera.topic, images, CAMERA_HZ))
    values = np.linspace(-1, 1, len(JOINTS))
    for stream in contract.state:
        streams.append(Stream(node, len(streams), stream.topic, [codecs.encode_state(stream, values, 0)], JOINT_HZ))
    for part in contract.actions:
        streams.append(Stream(node, len(streams), part.topic, [codecs.encode_action(part, values, 0)], CAMERA_HZ))
    return streams


def publish(
    contract: Annotated[Path, typer.Argument(help='robot contract')],
    log: Annotated[Path, typer.Argument(help='file for the stamps that were published')],
    noise: Annotated[float, typer.Option(help='of the images, grey levels')] = 3.0,
) -> None:
    """Publish until SIGINT or SIGTERM."""
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node('camera_robot')
    streams = make_streams(node, RobotContract.load(contract), noise)
    began = time.monotonic()
    due = [(began + index * 0.003, stream) for index, stream in enumerate(streams)]
    with log.open('wb', buffering=0) as file:
        while not ending.is_set():
            index = min(range(len(due)), key=lambda k: due[k][0])
            moment, stream = due[index]
            if (wait := moment - time.monotonic()) > 0:
                ending.wait(wait)
                continue
            due[index] = (moment + 1 / stream.rate, stream)
            file.write(RECORD.pack(stream.number, stream.send()))
    node.destroy_node()
    rclpy.shutdown()


def read_log(path: Path) -> dict[int, array.array]:
    """Read the stamps that were published: number of the topic -> stamps, ns."""
    data = path.read_bytes()
    stamps: dict[int, array.array] = {}
    for number, stamp in RECORD.iter_unpack(data[:len(data) // RECORD.size * RECORD.size]):
        stamps.setdefault(number, array.array('q')).append(stamp)
    return stamps


if __name__ == '__main__':
    typer.run(publish)
