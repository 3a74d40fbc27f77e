"""Shows a policy black images in place of what its cameras see."""

from __future__ import annotations

from flow_vla_core.contract import Camera, RobotContract
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from flow_vla_ros import codecs, qos

__all__ = ['BlankImages', 'blank_contract']

PREFIX = 'blank'


class BlankImages:
    """Answers every camera image with a black one of the same stamp, on the topics of `blank_contract`.

    Args:
        node: hosts the topics.
        contract: of the robot as it is.
    """

    def __init__(self, node: Node, contract: RobotContract) -> None:
        self._publishers = {}
        for camera, blank in zip(contract.cameras, blank_contract(contract).cameras):
            self._publishers[camera.name] = node.create_publisher(Image, blank.topic, qos.RELIABLE_SENSOR)
            node.create_subscription(Image, camera.topic, lambda message, camera=camera: self._answer(camera, message),
                                     qos.SENSOR)

    def _answer(self, camera: Camera, message: Image) -> None:
        black = np.zeros((*camera.resolution, camera.channels), np.uint8)
        self._publishers[camera.name].publish(codecs.encode_image(black, camera, codecs.from_time(message.header.stamp)))


def blank_contract(contract: RobotContract) -> RobotContract:
    """Return a contract whose cameras are read from the topics of `BlankImages`."""
    cameras = tuple(camera.model_copy(update={'topic': f'{PREFIX}/{camera.topic.lstrip("/")}'})
                    for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})
