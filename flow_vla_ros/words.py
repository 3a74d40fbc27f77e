"""Says words on the instruction topic, and takes them back from those who come late once others are in force."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import String

from flow_vla_ros import qos

__all__ = ['Words']


class Words:
    """Follows the words that are in force on the graph, and changes them.

    Words are latched: a policy that comes late gets the last ones of every publisher, in any order. So whoever hears
    others than those it has said itself gives up its publisher for a new one, and words that no longer hold go with it.

    Args:
        node: hosts publisher and subscription.
        topic: of the words.

    Attributes:
        in_force: the newest words on the topic; empty if there were none, or they were taken back.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self._node, self._topic = node, topic
        self.in_force = ''
        self._said: str | None = None  # not yet heard back: what comes meanwhile was said before
        self._has_spoken, self._publisher = False, self._make_publisher()
        node.create_subscription(String, topic, self._hear, qos.LATCHED_STATE)

    def say(self, words: str) -> None:
        """Put words in force."""
        self._said = self.in_force = words
        self._has_spoken = True
        self._publisher.publish(String(data=words))

    def _hear(self, message: String) -> None:
        if self._said is not None:
            self._said = None if message.data == self._said else self._said
        elif message.data != self.in_force:
            self.in_force = message.data
            self._withdraw()

    def _withdraw(self) -> None:
        if self._has_spoken:
            self._node.destroy_publisher(self._publisher)
            self._has_spoken, self._publisher = False, self._make_publisher()

    def _make_publisher(self) -> Publisher:
        return self._node.create_publisher(String, self._topic, qos.LATCHED)
