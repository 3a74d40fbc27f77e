"""Hosts the subscriptions of a recorder: serialized messages, measured as they come, nothing decoded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
import struct
import time
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from rclpy.subscription import Subscription

from flow_vla_core.data.bag_reader import header_stamp
from flow_vla_core.data.topic_meter import TopicMeter
from flow_vla_ros import codecs, qos
from flow_vla_ros.clock_tap import ClockTap
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.standing import Said, Standing

__all__ = ['Receiver', 'TopicTaps']

HEADER = 'std_msgs/Header'
POLL_SECONDS = 0.01  # an executor that wakes up for each message takes a third of a core for 300 of them a second
GID_BYTES = 16      # of a publisher's number that message and graph agree about
Receiver = Callable[[str, bytes, int, int], None]  # topic, message, ROS time of receipt and stamp, ns


class _Polled(CallbackGroup):
    """Keeps subscriptions from the executor, but not their events."""

    def can_execute(self, entity: object) -> bool:
        return not isinstance(entity, Subscription)

    def beginning_execution(self, entity: object) -> bool:
        return self.can_execute(entity)

    def ending_execution(self, _entity: object) -> None:
        """Nothing was begun."""


class TopicTaps:
    """Subscribes to topics and hands on every message as it is on the wire, with its stamp.

    The subscriptions are polled a hundred times a second. `ClockTap` says when each message came.

    Lost messages are counted by the gaps in the numbers that each publisher gives, and by the middleware's own events
    where it has them.

    Args:
        node: hosts the subscriptions.
        kinds: topic, with its namespace -> ``package/msg/Type``.
        receive: is given every message.
        recent: topics of which an episode needs what was said in the last ``age`` before it.
        age: ns of ROS time.
    """

    def __init__(self, node: Node, kinds: Mapping[str, str], receive: Receiver, recent: Collection[str] = (),
                 age: int = 0) -> None:
        self._node, self._receive = node, receive
        self._types = {topic: codecs.message_type(kind) for topic, kind in kinds.items()}
        self.meters = {topic: TopicMeter(_is_stamped(kind)) for topic, kind in self._types.items()}
        self.newest: dict[str, int] = {}
        self._standing = Standing(recent, age)
        self._group = _Polled()
        self._subscriptions = {topic: self._subscribe(topic) for topic in self._types}
        self._clock = ClockTap(node, self._group)
        node.create_timer(POLL_SECONDS, self.drain, clock=wall_clock())

    def has_publisher(self, topic: str) -> bool:
        """Tell whether a publisher of a topic is connected."""
        subscription = self._subscriptions[topic]
        if hasattr(subscription, 'get_publisher_count'):  # Iron and later: counts those that are connected
            return subscription.get_publisher_count() > 0
        return self._node.count_publishers(topic) > 0

    def offers(self, topic: str) -> tuple[dict, ...]:
        """Describe the publishers' quality of service in rosbag2's form."""
        return tuple(qos.describe(info.qos_profile) for info in self._node.get_publishers_info_by_topic(topic))

    def standing(self) -> list[Said]:
        """Return what was said before and still holds: of latched topics, and of those that ``recent`` names."""
        publishers = {bytes(info.endpoint_gid)[:GID_BYTES] for topic in self._standing.latched()
                      for info in self._node.get_publishers_info_by_topic(topic)}
        return list(self._standing.recall(self._node.get_clock().now().nanoseconds, publishers))

    def follow(self) -> None:
        """Subscribe again where publishers came with another quality of service than was expected."""
        for topic, subscription in list(self._subscriptions.items()):
            present, wanted = subscription.qos_profile, qos.for_recording(self._node, topic)
            if (present.reliability, present.durability) != (wanted.reliability, wanted.durability):
                self._node.destroy_subscription(subscription)
                self._subscriptions[topic] = self._subscribe(topic)

    def drain(self) -> None:
        """Take what the middleware holds and hand it on, in the order of its receipt."""
        taken = []
        for topic, subscription in self._subscriptions.items():
            stamped = self.meters[topic].stamped
            while (message := subscription.handle.take_message(subscription.msg_type, True)) is not None:
                data, info = message
                taken.append((topic, data, info, _stamp(data) if stamped else 0))
        times = self._clock.times([(info, stamp) for _, _, info, stamp in taken])
        for received, (topic, data, info, stamp) in sorted(zip(times, taken), key=itemgetter(0)):
            self._take(topic, received, data, info, stamp)

    def catch_up(self, topics: set[str], seconds: float) -> list[str]:
        """Take what the middleware holds; wait until each topic reaches the newest stamp that there is of any now.

        A reliable middleware delivers a sample that it lost on the way late, and all later ones after it.

        Args:
            topics: which to wait for.
            seconds: to wait at most.

        Returns:
            The topics that did not come up to it.
        """
        self.drain()
        target = max((self.newest.get(topic, 0) for topic in topics), default=0)
        end = time.monotonic() + seconds
        while late := sorted(topic for topic in topics if self.newest.get(topic, 0) < target):
            if time.monotonic() > end:
                return late
            time.sleep(POLL_SECONDS)
            self.drain()
        return []

    def _subscribe(self, topic: str) -> Subscription:
        meter = self.meters[topic]
        meter.forget_numbers()

        def note_lost(event: Any) -> None:
            meter.note_lost(event.total_count)

        def subscribe(events: SubscriptionEventCallbacks | None) -> Subscription:
            return self._node.create_subscription(
                self._types[topic], topic, _never, qos.for_recording(self._node, topic), raw=True,
                callback_group=self._group, event_callbacks=events)

        try:
            return subscribe(SubscriptionEventCallbacks(message_lost=note_lost))
        except UnsupportedEventTypeError:  # a middleware without that event
            return subscribe(None)

    def _take(self, topic: str, received: int, data: bytes, info: Mapping[str, Any], stamp: int) -> None:
        meter = self.meters[topic]
        stamp = stamp if meter.stamped else received
        self.newest[topic] = max(stamp, self.newest.get(topic, 0))
        meter.add(len(data), received, stamp)
        number, publisher = info.get('publication_sequence_number'), info.get('publisher_gid')
        if publisher is not None:
            self._standing.hear(Said(topic, data, received, stamp), bytes(publisher['data'])[:GID_BYTES],
                                self._subscriptions[topic].qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL)
            if number is not None:
                meter.number(publisher['data'], number)
        self._receive(topic, data, received, stamp)


def _never(_message: bytes) -> None:
    """Stand for the callback that a subscription has to have."""


def _is_stamped(kind: type) -> bool:
    return next(iter(kind.get_fields_and_field_types().values()), '') == HEADER


def _stamp(data: bytes) -> int:
    try:
        return header_stamp(data)
    except (IndexError, struct.error):  # no message of its type; recorded as it is
        return 0
