"""Hosts the subscriptions of a contract on a node and feeds them, undecoded, to the synchroniser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
import math
from typing import Any

from rclpy.node import Node
from std_msgs.msg import String

from flow_vla_core.align import Aligned, Synchroniser
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ClockJump, ObservationError
from flow_vla_core.messages import stamp_of
from flow_vla_ros import codecs, qos

__all__ = ['ObservationBridge']

REMEMBERED = 64               # samples of a stream whose time of publication is kept
AHEAD = 500_000_000           # ns that a stamp may lie ahead of this node's clock


class ObservationBridge:
    """Collects a contract's streams and the instruction in force.

    Callbacks only push; messages are decoded by whoever makes an observation of what `select` returns. Samples
    stamped far ahead of the clock, as they are in flight when ROS time jumps backwards, are dropped. Such a jump
    clears the buffers, and `select` raises `ClockJump` until every stream is back.

    Args:
        node: hosts the subscriptions.
        contract: says which topics.
        on_sample: called after each sample and each instruction.
        on_jump: called after the buffers were cleared.
    """

    def __init__(self, node: Node, contract: RobotContract, on_sample: Callable[[], None] = lambda: None,
                 on_jump: Callable[[], None] = lambda: None) -> None:
        self._node, self._contract = node, contract
        self._on_sample, self._on_jump = on_sample, on_jump
        self._synchroniser = Synchroniser.for_contract(contract)
        self._published: dict[str, dict[int, int]] = {stream.name: {} for stream in contract.streams}
        self._now = 0
        self._jumped = False
        self._complaint = ''
        self.instruction: str | None = None
        self._subscriptions = [*self._subscribe()]

    def now(self) -> int:
        """Return ROS time, ns; a jump backwards since the last call clears the buffers."""
        before, self._now = self._now, self._node.get_clock().now().nanoseconds
        if self._now < before:
            self._jumped = True
            self._synchroniser.clear()
            self._node.get_logger().warning(
                f'ROS time went back by {(before - self._now) * 1e-9:.3f} s: buffers dropped')
            self._on_jump()
        return self._now

    def reference_time(self) -> int:
        """Return the reference time, ns. Raise `ObservationError` while a stream has nothing."""
        try:
            return self._synchroniser.reference_time()
        except ObservationError as error:
            raise self._explain(error) from error

    def select(self) -> Aligned:
        """Select the messages of the newest reference time. Raise `ObservationError` if it can't be used now."""
        try:
            aligned = self._synchroniser.select(now=self.now())
        except ObservationError as error:
            raise self._explain(error) from error
        self._jumped = False
        return aligned

    def published(self, aligned: Aligned) -> tuple[int, int]:
        """Return the wall times at which the newest image and the last sample of all were published, ns; -1 unknown."""
        times = {name: self._published[name].get(samples[-1][0], -1) for name, samples in aligned.samples.items()}
        images = [times[camera.name] for camera in self._contract.cameras]
        return max(images, default=-1), max(times.values())

    def ages(self) -> dict[str, float]:
        """Return the time since each stream's newest stamp, s; -1 for none."""
        ages = self._synchroniser.ages(self.now())
        return {name: age if math.isfinite(age) else -1.0 for name, age in ages.items()}

    def rates(self) -> dict[str, float]:
        """Return the rate of each stream over its last samples, Hz."""
        return self._synchroniser.rates()

    def log_changes(self) -> None:
        """Log which streams are missing or late, whenever that changes."""
        ages, allowed = self.ages(), {stream.name: stream.max_age for stream in self._contract.streams}
        late = [name for name, age in ages.items() if age < 0 or age > allowed[name]]
        complaint = f'nothing fresh on {", ".join(late)}' if late else ''
        if complaint != self._complaint:
            log = self._node.get_logger()
            log.warning(complaint) if complaint else log.info('every stream is fresh')
            self._complaint = complaint

    def destroy(self) -> None:
        """Remove the subscriptions from the node."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(self) -> Iterable[Any]:
        for stream in self._contract.streams:
            kind = codecs.message_type(stream.message)
            yield self._node.create_subscription(kind, stream.topic, partial(self._receive, stream.name), qos.SENSOR)
        yield self._node.create_subscription(String, self._contract.instruction.topic, self._instruct, qos.LATCHED)

    def _receive(self, name: str, message: Any, info: dict[str, Any]) -> None:
        stamp = stamp_of(message)
        if stamp > self.now() + AHEAD:
            ahead = (stamp - self._now) * 1e-9
            self._node.get_logger().warning(f'{name}: dropped a sample stamped {ahead:.3f} s ahead of the clock',
                                            throttle_duration_sec=1.0)
            return
        self._synchroniser.push(name, stamp, message)
        published = self._published[name]
        published[stamp] = info['source_timestamp']
        if len(published) > REMEMBERED:
            del published[next(iter(published))]
        self._on_sample()

    def _instruct(self, message: String) -> None:
        if message.data != self.instruction:
            self.instruction = message.data
            self._node.get_logger().info(f'instruction: {message.data!r}')
            self._on_sample()

    def _explain(self, error: ObservationError) -> ObservationError:
        return ClockJump(f'ROS time went backwards, waiting for new input: {error}') if self._jumped else error
