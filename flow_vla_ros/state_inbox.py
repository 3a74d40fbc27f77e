"""The newest measured state, for limits and traces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rclpy.node import Node

from flow_vla_core.contract import RobotContract, StateStream
from flow_vla_core.errors import ObservationError
from flow_vla_core.messages import decode_state, stamp_of
from flow_vla_ros import codecs, qos
from flow_vla_ros.polled import PolledSubscription

__all__ = ['StateInbox']


class StateInbox:
    """Keeps the newest sample of some state streams, and knows how old it is.

    Samples wait in the middleware until somebody asks; of those that came meanwhile only the newest is decoded.

    Args:
        node: hosts the subscriptions.
        contract: describes the streams.
        names: of the streams to listen to.
    """

    def __init__(self, node: Node, contract: RobotContract, names: Iterable[str]) -> None:
        self._node = node
        self._streams = {stream.name: stream for stream in contract.state if stream.name in set(names)}
        self._samples: dict[str, tuple[int, np.ndarray]] = {}
        self._sources = [
            (stream, PolledSubscription(node, codecs.message_type(stream.message), stream.topic, qos.SENSOR))
            for stream in self._streams.values()]

    def fresh(self, now: int) -> dict[str, np.ndarray]:
        """Return the samples whose stamps are no further from ``now`` than the contract's age: name -> (n,).

        A stamp may be ahead too: with simulated time the clock comes in another message than the state.
        """
        self._take()
        return {name: values for name, (stamp, values) in self._samples.items()
                if abs(now - stamp) <= self._streams[name].max_age * 1e9}

    def newest(self) -> dict[str, np.ndarray]:
        """Return every stream's newest sample as of the last call of `fresh`, however old: name -> (n,)."""
        return {name: values for name, (_, values) in self._samples.items()}

    def ages(self, now: int) -> dict[str, float]:
        """Return the time since each stream's newest stamp, s; -1 for none."""
        self._take()
        return {name: (now - self._samples[name][0]) * 1e-9 if name in self._samples else -1.0
                for name in self._streams}

    def _take(self) -> None:
        for stream, source in self._sources:
            if (message := source.newest()) is not None:
                self._receive(stream, message)

    def _receive(self, stream: StateStream, message: object) -> None:
        try:
            self._samples[stream.name] = (stamp_of(message), decode_state(message, stream))
        except ObservationError as error:
            self._samples.pop(stream.name, None)
            self._node.get_logger().warning(f'{stream.topic}: {error}', throttle_duration_sec=1.0)
