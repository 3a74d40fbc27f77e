"""A subscription that is asked for what has come, instead of waking the node for each message."""

from __future__ import annotations

from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

__all__ = ['PolledSubscription']


class PolledSubscription:
    """Keeps the last messages of a topic in the middleware until they are asked for.

    For each message that wakes it, an executor of rclpy builds its wait set twice, out of all that the node has: a
    state that comes at control rate costs as much again as the control timer.

    Args:
        node: hosts the subscription.
        kind: class of the messages.
        topic: to listen to.
        profile: its depth is how many messages wait at most.
        raw: whether messages stay serialised.
    """

    def __init__(self, node: Node, kind: type, topic: str, profile: QoSProfile, raw: bool = False) -> None:
        self._depth = profile.depth
        self._subscription = node.create_subscription(kind, topic, _never, profile, callback_group=_Sleeping(), raw=raw)

    def newest(self) -> Any | None:
        """Return the newest message that has come since the last call, None for none."""
        message = None
        with self._subscription.handle:
            for _ in range(self._depth):
                taken = self._subscription.handle.take_message(self._subscription.msg_type, self._subscription.raw)
                if taken is None:
                    break
                message = taken[0]
        return message


class _Sleeping(CallbackGroup):
    """Lets no executor wait for what is in it."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


def _never(_: Any) -> None:
    """Stand in for a callback, which is never called."""
