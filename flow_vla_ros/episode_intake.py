"""Hears episodes on a node: callbacks only put serialized messages into a queue, a thread makes episodes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import queue
import threading
import time
import traceback
from typing import Any

from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

from flow_vla.msg import Episode
from flow_vla_core.contract import RobotContract
from flow_vla_core.data.alignment import STATUS, STATUS_TOPIC
from flow_vla_core.data.live_episodes import Heard, LiveEpisodes, Mark
from flow_vla_ros import codecs, qos
from flow_vla_ros.playing import ASIDE

__all__ = ['EpisodeIntake']

JUMP = JumpThreshold(min_forward=Duration(seconds=2), min_backward=Duration(nanoseconds=-1), on_clock_change=False)
TICK_SECONDS = 0.05
DEPTH = 200        # of each subscription
MARKS = qos.LATCHED_STATE  # an end and the next beginning may come at once
IMAGE = 'sensor_msgs/Image'

Event = Callable[[], None]


class EpisodeIntake:
    """Subscribes to a contract's topics, `episode` and `executor/status`, and feeds `LiveEpisodes` in a thread.

    Commands are heard on their own topics and below `ASIDE`. An episode for whose messages there is no room, because
    they come faster than they are decoded, is given up; the thread of ROS never waits.

    Args:
        node: hosts the subscriptions.
        contract: says which topics.
        live: makes episodes; used by the thread alone.
        room: bytes of messages that may wait.

    Raises:
        ConfigError: for a contract with a part that is an action.
    """

    def __init__(self, node: Node, contract: RobotContract, live: LiveEpisodes, room: int) -> None:
        self._node, self._contract, self._live, self._room = node, contract, live, room
        self._events: queue.SimpleQueue[tuple[Event, int] | None] = queue.SimpleQueue()
        self._waiting, self._lock = 0, threading.Lock()
        self._kinds = {topic: (kind, name) for topic, kind, name in self._topics()}
        self._subscriptions = {topic: self._subscribe(topic) for topic in self._kinds}
        self._subscriptions['episode'] = node.create_subscription(Episode, 'episode', self._on_mark, MARKS)
        self._jumps = node.get_clock().create_jump_callback(JUMP, post_callback=lambda _: self._put(live.jump))
        self._thread = threading.Thread(target=self._run, name='intake', daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of messages that wait to be taken in."""
        return self._waiting

    def look_after(self) -> None:
        """Follow publishers whose quality of service differs from what was expected; call it now and then."""
        for topic in self._kinds:
            if _differ(self._subscriptions[topic].qos_profile, self._profile(topic)):
                self._node.destroy_subscription(self._subscriptions[topic])
                self._subscriptions[topic] = self._subscribe(topic)

    def close(self) -> None:
        """Remove the subscriptions, take in what waits, and end the thread."""
        self._jumps.unregister()
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._events.put(None)
        self._thread.join(30.0)

    def _topics(self) -> list[tuple[str, str, str]]:
        """List name on the graph, type, and topic of the contract."""
        contract, resolve = self._contract, self._node.resolve_topic_name
        found = [(resolve(stream.topic), getattr(stream, 'message', IMAGE), stream.topic)
                 for stream in contract.streams]
        for part in contract.actions:
            own = resolve(part.topic)
            found += [(own, part.message, part.topic), (ASIDE + own, part.message, part.topic)]
        return [*found, (resolve(contract.instruction.topic), 'std_msgs/String', contract.instruction.topic),
                (resolve(STATUS_TOPIC), STATUS, STATUS_TOPIC)]

    def _subscribe(self, topic: str) -> Subscription:
        kind, name = self._kinds[topic]
        return self._node.create_subscription(codecs.message_type(kind), topic, partial(self._hear, name),
                                              self._profile(topic), raw=True)

    def _profile(self, topic: str) -> QoSProfile:
        profile = qos.for_recording(self._node, topic)
        profile.depth = DEPTH
        return profile

    def _hear(self, name: str, data: bytes) -> None:
        heard = Heard(name, self._node.get_clock().now().nanoseconds, data, time.monotonic())
        if self._waiting > self._room:
            self._put(lambda: self._live.abandon('messages came faster than they could be decoded'))
        else:
            self._put(lambda: self._live.hear(heard), len(data))

    def _on_mark(self, message: Episode) -> None:
        if message.event == Episode.ENDED:
            self._drain()
        mark = Mark(message.event, codecs.from_time(message.header.stamp), message.id, message.instruction,
                    message.task, message.outcome)
        received = time.monotonic()
        self._put(lambda: self._live.mark(mark, received))

    def _drain(self) -> None:
        """Take what the middleware holds already, so that nothing sent before the end of an episode is cut off."""
        for topic in self._kinds:
            subscription = self._subscriptions[topic]
            while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                subscription.callback(taken[0])

    def _put(self, event: Event, size: int = 0) -> None:
        with self._lock:
            self._waiting += size
        self._events.put((event, size))

    def _run(self) -> None:
        while (item := self._next()) is not None:
            event, size = item
            try:
                event()
            except Exception:
                self._node.get_logger().error(f'an episode was lost\n{traceback.format_exc()}')
            with self._lock:
                self._waiting -= size
        self._live.finish()

    def _next(self) -> Any:
        try:
            return self._events.get(timeout=TICK_SECONDS)
        except queue.Empty:
            now = time.monotonic()
            return (lambda: self._live.tick(now)), 0


def _differ(present: QoSProfile, wanted: QoSProfile) -> bool:
    return (present.reliability, present.durability) != (wanted.reliability, wanted.durability)
