"""Sends a person's chunks to the executor."""

from __future__ import annotations

from dataclasses import replace

from rclpy.node import Node
from std_msgs.msg import String

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ObservationError
from flow_vla_core.teleoperation import Jog
from flow_vla_core.types import ActionChunk
from flow_vla_ros import codecs, qos
from flow_vla_ros.robot_view import RobotView

__all__ = ['ChunkOutlet', 'JogDrive']

SETTLING = 6    # chunks of rest after the last motion: whatever gets lost, the robot is told to stand still


class ChunkOutlet:
    """Publishes chunks on ``teleop/action_chunk`` under the words in force, which it listens to.

    Args:
        node: hosts publisher and subscription.
        contract: marks the chunks, and names the topic of the words.
    """

    def __init__(self, node: Node, contract: RobotContract) -> None:
        self._contract = contract
        self.words = ''
        self._chunks = node.create_publisher(ChunkMessage, 'teleop/action_chunk', qos.CHUNK)
        node.create_subscription(String, contract.instruction.topic, self._hear, qos.LATCHED)

    def send(self, chunk: ActionChunk) -> None:
        """Publish a chunk."""
        self._chunks.publish(codecs.chunk_to_message(replace(chunk, instruction=self.words), self._contract))

    def _hear(self, message: String) -> None:
        self.words = message.data


class JogDrive:
    """Jogs the robot on from where it is, at each call; at rest it sends nothing.

    Args:
        node: hosts the topics.
        contract: of the robot.
        jog: turns deflections into chunks.
        outlet: sends them.
    """

    def __init__(self, node: Node, contract: RobotContract, jog: Jog, outlet: ChunkOutlet) -> None:
        self._node, self.jog, self._outlet = node, jog, outlet
        self._view = RobotView(node, contract)
        self._left = 0

    @property
    def now(self) -> int:
        """ROS time, ns."""
        return self._node.get_clock().now().nanoseconds

    def drive(self, deflections: dict[str, float]) -> str:
        """Send the next chunk; return why that is impossible, or nothing."""
        now = self.now
        if now == 0:
            return 'simulated time has not begun'
        if not self.jog.started:
            try:
                self.jog.start(*self._view.posture(now))
            except ObservationError as error:
                return str(error)
        self._outlet.send(self.jog.chunk(deflections, now, self._view.measured(now), self._view.commanded()[0]))
        self._left = SETTLING
        return ''

    def rest(self) -> None:
        """Send the robot to rest, for as long as that takes, and then nothing."""
        if not self.jog.started:
            return
        left = self._left - 1
        self.drive({})
        self._left = left
        if left <= 0 and not self.jog.moving:
            self.jog.stop()

    def abandon(self) -> None:
        """Send nothing more: somebody else drives, or nobody."""
        self.jog.stop()
