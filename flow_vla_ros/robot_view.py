"""Where the robot is, for those who move it on from there: what was measured and what it was told last."""

from __future__ import annotations

from collections import deque
import time

import numpy as np
from rclpy.node import Node
from rclpy.serialization import deserialize_message

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import DataError
from flow_vla_core.execution.sources import Source, measured_by
from flow_vla_core.messages import decode_action
from flow_vla_ros import codecs, qos
from flow_vla_ros.state_inbox import StateInbox

__all__ = ['CommandEar', 'RobotView']

FRESH = 0.5     # s that a command counts: an executor sends them all the time, also at rest
KEPT = 8        # commands that the velocity is taken from


class CommandEar:
    """Hears the commands of one action part, and decodes them when it is asked.

    Args:
        node: hosts the subscription.
        part: says topic and message; goals of an action can't be heard.
    """

    def __init__(self, node: Node, part: ActionPart) -> None:
        self._node, self._part = node, part
        self._heard: deque[tuple[float, bytes]] = deque(maxlen=KEPT)
        if not part.is_action:
            self._kind = codecs.message_type(part.message)
            node.create_subscription(self._kind, part.topic, self._receive, qos.COMMAND, raw=True)

    def last(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last command (n,) and how it changes (n,), per s; NaN where nothing fresh was heard."""
        unknown = np.full(self._part.dim, np.nan)
        if not self._heard or time.monotonic() - self._heard[-1][0] > FRESH:
            return unknown, unknown
        try:
            values, before = (self._decode(data) for data in (self._heard[-1][1], self._heard[0][1]))
        except DataError as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return unknown, unknown
        span = self._heard[-1][0] - self._heard[0][0]
        return values, (values - before) / span if 0 < span < FRESH else np.zeros_like(values)

    def _decode(self, data: bytes) -> np.ndarray:
        return decode_action(deserialize_message(data, self._kind), self._part).astype(np.float64)

    def _receive(self, data: bytes) -> None:
        self._heard.append((time.monotonic(), data))


class RobotView:
    """Knows the values of the action vector that the robot has: as measured, and as commanded by whoever acts.

    Args:
        node: hosts the subscriptions.
        contract: says streams and parts.
    """

    def __init__(self, node: Node, contract: RobotContract) -> None:
        self._parts = list(zip(contract.actions, contract.action_slices.values()))
        self._dim = contract.action_dim
        self._measured = [measured_by(part, contract) for part, _ in self._parts]
        self._starts = [source or _gripper_of(part, contract) for source, (part, _) in zip(self._measured, self._parts)]
        self._unmeasured = np.concatenate([
            part.limits.min if part.kind == 'gripper' and source is None else np.full(part.dim, np.nan)
            for source, (part, _) in zip(self._starts, self._parts)])
        self._state = StateInbox(node, contract, [source[0] for source in self._starts if source])
        self._ears = [CommandEar(node, part) for part, _ in self._parts]

    def measured(self, now: int) -> np.ndarray:
        """Return what is measured (A,) at a time, ns; NaN where nothing fresh is."""
        return self._gather(self._measured, now)

    def commanded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last commands (A,) and how they change (A,); NaN where nothing fresh was heard."""
        values, rates = zip(*(ear.last() for ear in self._ears))
        return np.concatenate(values), np.concatenate(rates)

    def posture(self, now: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where to go on from (A,), and how fast it changes (A,): commanded, else measured, else NaN.

        A gripper that nobody measures, and that nobody has told anything yet, begins at its ``min``.
        """
        values, rates = self.commanded()
        values = np.where(np.isfinite(values), values, self._gather(self._starts, now))
        return np.where(np.isfinite(values), values, self._unmeasured), rates

    def _gather(self, sources: list[Source | None], now: int) -> np.ndarray:
        values, fresh = np.full(self._dim, np.nan), self._state.fresh(now)
        for source, (_, place) in zip(sources, self._parts):
            if source is not None and source[0] in fresh:
                values[place] = np.append(fresh[source[0]], np.nan)[source[1]]
        return values


def _gripper_of(part: ActionPart, contract: RobotContract) -> Source | None:
    """Find the stream that measures a gripper in the unit of its command; a share ("1") may be another one."""
    for stream in contract.state:
        if (part.kind == 'gripper' and stream.field == 'position' and stream.unit == part.unit != '1'
                and set(part.names) <= set(stream.names)):
            return stream.name, [stream.names.index(name) for name in part.names]
    return None
