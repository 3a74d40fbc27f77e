"""What must keep coming while the robot moves: measured state, and a sign that commands arrive."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from rclpy.node import Node

from flow_vla_core.errors import Code
from flow_vla_ros import codecs, qos

__all__ = ['EchoWatch', 'StateWatch']


class StateWatch:
    """Bites when a state stream that commands depend on is missing, or older than the contract allows.

    Args:
        names: of the streams that matter.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def complaint(self, fresh: Mapping[str, np.ndarray]) -> tuple[Code, str]:
        """Return a code and what is wrong, given the streams that are fresh; ``OK`` and nothing if all is well."""
        if stale := self._names - fresh.keys():
            return Code.STATE_STALE, f'the measured state is missing or too old: {", ".join(sorted(stale))}'
        return Code.OK, ''


class EchoWatch:
    """Bites when nothing has come for too long on a topic that shows that commands arrive.

    Args:
        node: hosts the subscription.
        topic: such as a controller's state; nothing is watched if empty.
        kind: type of its messages, which are not decoded.
        timeout: longest silence, s.

    Raises:
        ConfigError: if there is no such type.
    """

    def __init__(self, node: Node, topic: str, kind: str, timeout: float) -> None:
        self._node, self._topic, self._timeout = node, topic, timeout
        self._last: int | None = None
        if topic:
            node.create_subscription(codecs.message_type(kind), topic, self._on_echo, qos.SENSOR, raw=True)

    def complaint(self, now: int) -> tuple[Code, str]:
        """Return a code and what is wrong at a time, ns; ``OK`` and nothing if all is well."""
        if not self._topic or (self._last is not None and now - self._last <= self._timeout * 1e9):
            return Code.OK, ''
        return Code.ECHO_MISSING, f'nothing on {self._topic} for {self._timeout:g} s'

    def _on_echo(self, _: bytes) -> None:
        self._last = self._node.get_clock().now().nanoseconds
