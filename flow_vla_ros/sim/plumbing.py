"""The publishers and subscriptions that a simulated robot has, as a real one would."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
from rclpy.lifecycle import LifecycleNode

from flow_vla_core.contract import Camera, RobotContract
from flow_vla_core.errors import DataError
from flow_vla_core.messages import decode_action, stamp_of
from flow_vla_ros import codecs, qos

__all__ = ['CommandInbox', 'SensorOutbox']


class CommandInbox:
    """Keeps the newest command of every action part; one that can't be read or isn't finite is dropped.

    Args:
        node: hosts the subscriptions.
        contract: says which topics.
        on_command: called after each command.
        now: tells the time of the simulation, ns; it stamps commands whose type has no header.
    """

    def __init__(self, node: LifecycleNode, contract: RobotContract, on_command: Callable[[], None],
                 now: Callable[[], int]) -> None:
        self._node, self._contract, self._on_command, self._now = node, contract, on_command, now
        self._values: dict[str, np.ndarray] = {}
        self._stamps: dict[str, int] = {}
        for part in contract.actions:
            node.create_subscription(codecs.message_type(part.message), part.topic,
                                     lambda message, part=part: self._receive(part, message), qos.COMMAND)

    def clear(self) -> None:
        """Forget every command."""
        self._values.clear()
        self._stamps.clear()

    def stamp(self) -> int:
        """Return the oldest stamp among the parts' newest commands, ns; -1 while one is missing."""
        return min((self._stamps.get(part.name, -1) for part in self._contract.actions), default=-1)

    def action(self, rest: np.ndarray) -> np.ndarray:
        """Return the action vector (A,); a part without command takes its values from ``rest`` (A,)."""
        return np.concatenate([self._values.get(name, rest[place])
                               for name, place in self._contract.action_slices.items()])

    def _receive(self, part: object, message: object) -> None:
        try:
            values = decode_action(message, part)
            if not np.isfinite(values).all():
                raise DataError(f'{part.topic}: not finite')
        except DataError as error:
            self._node.get_logger().warning(f'dropped a command: {error}', throttle_duration_sec=1.0)
            return
        stamp = stamp_of(message)
        self._values[part.name], self._stamps[part.name] = values, self._now() if stamp is None else stamp
        self._on_command()


class SensorOutbox:
    """Publishes cameras and state under one stamp.

    Args:
        node: hosts the publishers.
        contract: says which topics.
        fields_of_view: camera name -> vertical field of view, degrees.
    """

    def __init__(self, node: LifecycleNode, contract: RobotContract, fields_of_view: dict[str, float]) -> None:
        self._contract = contract
        self._infos = {camera.name: _camera_info(camera, fields_of_view[camera.name]) for camera in contract.cameras}
        self._images = {camera.name: node.create_publisher(codecs.message_type('sensor_msgs/Image'), camera.topic,
                                                           qos.RELIABLE_SENSOR) for camera in contract.cameras}
        self._camera_infos = {camera.name: node.create_publisher(
            codecs.message_type('sensor_msgs/CameraInfo'), camera.topic.rpartition('/')[0] + '/camera_info',
            qos.RELIABLE_SENSOR) for camera in contract.cameras}
        self._states = {stream.name: node.create_publisher(codecs.message_type(stream.message), stream.topic, qos.STATE)
                        for stream in contract.state}

    def publish_state(self, values: dict[str, np.ndarray], stamp: int) -> None:
        """Send every state stream: name -> (n,)."""
        for stream in self._contract.state:
            self._states[stream.name].publish(codecs.encode_state(stream, values[stream.name], stamp))

    def publish_images(self, images: dict[str, np.ndarray], stamp: int) -> None:
        """Send every camera: name -> (Y, X, C) uint8."""
        for camera in self._contract.cameras:
            self._images[camera.name].publish(codecs.encode_image(images[camera.name], camera, stamp))
            info = self._infos[camera.name]
            info.header.stamp = codecs.to_time(stamp)
            self._camera_infos[camera.name].publish(info)


def _camera_info(camera: Camera, field_of_view: float) -> object:
    focal = camera.resolution[0] / 2 / math.tan(math.radians(field_of_view) / 2)
    return codecs.encode_camera_info(camera, focal, focal)
