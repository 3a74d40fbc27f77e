"""What must keep coming while the robot moves: measured state, and a sign that commands arrive."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from rclpy.node import Node

from flow_vla_core.errors import Code
from flow_vla_ros import codecs, qos
from flow_vla_ros.polled import PolledSubscription

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
        self._topic, self._timeout = topic, timeout
        self._last: int | None = None
        self._echo = PolledSubscription(node, codecs.message_type(kind), topic, qos.SENSOR, raw=True) if topic else None

    def clear(self) -> None:
        """Forget what has come by now, however long ago."""
        if self._echo is not None:
            self._echo.newest()
        self._last = None

    def complaint(self, now: int) -> tuple[Code, str]:
        """Return a code and what is wrong at a time, ns; ``OK`` and nothing if all is well."""
        if self._echo is None:
            return Code.OK, ''
        if self._echo.newest() is not None:
            self._last = now
        if self._last is not None and now - self._last <= self._timeout * 1e9:
            return Code.OK, ''
        return Code.ECHO_MISSING, f'nothing on {self._topic} for {self._timeout:g} s'
