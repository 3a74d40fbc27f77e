"""Says at which ROS time a message came, however late it is taken from the middleware."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from flow_vla_ros import codecs

__all__ = ['ClockTap']

DEPTH = 1000              # clock messages that wait between two polls, or for messages that were sent before them
TRUSTED = 1_000_000_000   # ns; stamps further ahead are of another clock


class ClockTap:
    """Gives messages the time at which they came.

    In real time that is the middleware's time of receipt. In simulated time it is what ``/clock`` said when the
    message was sent: the node's own clock may be ahead or behind when a message is taken at last, and a simulator that
    does not wait for anybody makes many steps in that time. Nothing is sent before its stamp, so where a message of the
    clock was lost or is late, stamps tell of it. Where the middleware tells no times, it is the time of the node.

    Args:
        node: whose time it is.
        group: of a subscription that no executor serves.
    """

    def __init__(self, node: Node, group: CallbackGroup) -> None:
        self._clock = node.get_clock()
        self._told: deque[tuple[int, int]] = deque()  # when it was sent, and what it says, ns
        self._time = 0
        self._subscription = node.create_subscription(
            Clock, '/clock', _never, QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT),
            callback_group=group)

    def times(self, taken: Sequence[tuple[Mapping[str, Any], int]]) -> list[int]:
        """Return the times of messages that have just been taken, ns.

        Args:
            taken: what the middleware says of each, and its stamp, ns; 0 for a type without one.
        """
        now = self._clock.now().nanoseconds
        if not self._clock.ros_time_is_active:
            return [info.get('received_timestamp') or now for info, _ in taken]
        self._listen()
        found = [0] * len(taken)
        for index in sorted(range(len(taken)), key=lambda index: taken[index][0].get('source_timestamp') or 0):
            info, stamp = taken[index]
            sent = info.get('source_timestamp')
            while sent and self._told and self._told[0][0] <= sent:
                self._advance(self._told.popleft()[1])
            if not sent or not self._time:
                self._advance(now)
            if self._time < stamp < self._time + TRUSTED:
                self._time = stamp
            found[index] = self._time
        while len(self._told) > DEPTH:  # nothing else has come for long
            self._advance(self._told.popleft()[1])
        return found

    def _listen(self) -> None:
        handle = self._subscription.handle
        while (message := handle.take_message(Clock, False)) is not None:
            clock, info = message
            self._told.append((info.get('source_timestamp') or 0, codecs.from_time(clock.clock)))

    def _advance(self, time: int) -> None:
        """Go on to a time; back only if it lies so far back that somebody has set the clock."""
        if not self._time - TRUSTED < time < self._time:
            self._time = time


def _never(_message: Clock) -> None:
    """Stand for the callback that a subscription has to have."""
