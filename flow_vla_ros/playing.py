"""Hosts the publishers of a played bag on a node, and keeps commands away from whoever would obey them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher

from flow_vla.msg import Episode
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bag_reader import Bag, BagMessage, open_bag
from flow_vla_core.data.offers import Offer, read_offers
from flow_vla_core.data.playback import Begin, End
from flow_vla_core.errors import ConfigError, FlowVLAError
from flow_vla_ros import codecs, qos

__all__ = ['ASIDE', 'COMMANDS', 'Stage', 'is_command']

COMMANDS = ('aside', 'leave_out', 'as_recorded')
ASIDE = '/played'  # commands are played below it, where no controller listens
COMMAND_TYPES = ('trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray', 'geometry_msgs/msg/Twist',
                 'geometry_msgs/msg/TwistStamped', 'control_msgs/msg/JointJog', 'sensor_msgs/msg/Joy',
                 'flow_vla/msg/ActionChunk')
COMMAND_TOPICS = ('estop', 'executor/speed')
MARK = 'flow_vla/msg/Episode'
OUTCOMES = {'success': Episode.SUCCESS, 'failure': Episode.FAILURE}
ACKNOWLEDGE = Duration(seconds=5)


class Stage:
    """Publishes the messages of some bags as they are, with the quality of service that was offered then.

    A bag of ours without marks of its episode, as an import makes it, is given them.

    Args:
        node: hosts the publishers.
        bags: rosbag2 folders.
        commands: what becomes of commands: played ``aside`` (below `ASIDE`), ``leave_out`` or ``as_recorded``.
        contract: of the robot, by name or file; empty: what the bags say.
        topics: only these; all if empty.

    Raises:
        DataError: if a folder is no bag.
        ConfigError: for a topic that is in no bag, or if nothing is left to be played.
    """

    def __init__(self, node: Node, bags: Sequence[Path], commands: str = 'aside', contract: str = '',
                 topics: Sequence[str] = ()) -> None:
        self._node, self._commands = node, commands
        self._publishers: dict[str, Publisher] = {}
        self._open: list[Path] = []
        types, offers = _describe(bags)
        for topic in topics:
            if topic not in types:
                raise ConfigError(f'topics: {topic!r} is in no bag; there are {", ".join(sorted(types))}')
        self._contract = _find(contract, bags)
        for topic, kind in types.items():
            if not topics or topic in topics:
                self._advertise(topic, kind, offers.get(topic, Offer()))
        if not self._publishers:
            raise ConfigError('topics: nothing is left to be played')
        self._marks = node.create_publisher(Episode, 'episode', qos.LATCHED) if MARK not in types.values() else None

    @property
    def topics(self) -> list[str]:
        """Names on which something is published."""
        return [publisher.topic_name for publisher in self._publishers.values()]

    def emit(self, item: Begin | BagMessage | End) -> None:
        """Publish a message, or what marks the beginning and the end of a bag."""
        if isinstance(item, BagMessage):
            if item.topic in self._publishers:
                self._publishers[item.topic].publish(item.data)
            return
        self._node.get_logger().info(f'{"playing" if isinstance(item, Begin) else "played"} {item.bag.path}')
        if isinstance(item, End):
            self.wait_for_readers()
        self._mark(item)

    def missing_readers(self) -> list[str]:
        """Return the topics of the contract that nobody listens to; without a contract, of all."""
        names = {topic for topic in self._publishers if self._contract is None or _is_stream(topic, self._contract)}
        return [topic for topic in sorted(names) if not self._publishers[topic].get_subscription_count()]

    def others(self) -> list[str]:
        """Return the other nodes that publish the contract's streams, each with the topic: a robot seems to be here."""
        if self._contract is None:
            return []
        own = self._node.get_fully_qualified_name()
        found = []
        for topic, publisher in self._publishers.items():
            if _is_stream(topic, self._contract):
                for info in self._node.get_publishers_info_by_topic(publisher.topic_name):
                    name = f'{info.node_namespace.rstrip("/")}/{info.node_name}'
                    if name != own:
                        found.append(f'{name} ({publisher.topic_name})')
        return found

    def obeying(self) -> list[str]:
        """Return the nodes that hear commands which are played as they were recorded."""
        found = set()
        for topic, publisher in self._publishers.items():
            if self._is_command(topic, publisher.msg_type) and self._commands == 'as_recorded':
                found |= {f'{info.node_namespace.rstrip("/")}/{info.node_name}'
                          for info in self._node.get_subscriptions_info_by_topic(publisher.topic_name)}
        return sorted(found)

    def wait_for_readers(self) -> None:
        """Wait until everything that was published reliably has been received."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(ACKNOWLEDGE)

    def _advertise(self, topic: str, kind: str, offer: Offer) -> None:
        try:
            message = codecs.message_type(kind)
        except ConfigError as error:
            self._node.get_logger().warning(f'{topic} is left out: {error}')
            return
        name = topic
        if self._is_command(topic, message):
            if self._commands == 'leave_out':
                return
            name = topic if self._commands == 'as_recorded' else ASIDE + topic
        lasting = kind == MARK or (self._contract is not None and _is(topic, self._contract.instruction.topic))
        offer = replace(offer, latched=True) if lasting else offer  # whoever acts by it listens to nothing less
        self._publishers[topic] = self._node.create_publisher(message, name, qos.for_playing(offer))

    def _is_command(self, topic: str, message: type) -> bool:
        return is_command(topic, f'{message.__module__.split(".")[0]}/msg/{message.__name__}', self._contract)

    def _mark(self, item: Begin | End) -> None:
        marks = item.bag.marks
        if self._marks is None or not marks.get('instruction'):
            return
        begins = isinstance(item, Begin)
        message = Episode(id=item.bag.path.name, event=Episode.STARTED if begins else Episode.ENDED,
                          instruction=marks['instruction'], task=marks.get('task', ''),
                          contract=marks.get('contract', ''))
        message.outcome = Episode.UNKNOWN if begins else OUTCOMES.get(marks.get('outcome', ''), Episode.UNKNOWN)
        message.header.stamp = codecs.to_time(item.time)
        self._marks.publish(message)


def is_command(topic: str, kind: str, contract: RobotContract | None) -> bool:
    """Tell whether a robot, or one of our nodes, could act upon what is published on a topic.

    Args:
        topic: as recorded.
        kind: such as ``sensor_msgs/msg/Image``.
        contract: of the robot, if it is known.

    Example:
        >>> is_command('/arm_controller/joint_trajectory', 'trajectory_msgs/msg/JointTrajectory', None)
        True
        >>> is_command('/joint_states', 'sensor_msgs/msg/JointState', None)
        False
    """
    names = [*COMMAND_TOPICS, *(part.topic for part in contract.actions)] if contract else COMMAND_TOPICS
    return kind in COMMAND_TYPES or any(_is(topic, name) for name in names)


def _is_stream(topic: str, contract: RobotContract) -> bool:
    return any(_is(topic, stream.topic) for stream in contract.streams)


def _is(topic: str, name: str) -> bool:
    """Compare a recorded name with one of a contract, which may be relative to a namespace."""
    return topic == name if name.startswith('/') else topic.endswith(f'/{name}')


def _describe(bags: Sequence[Path]) -> tuple[Mapping[str, str], Mapping[str, Offer]]:
    types: dict[str, str] = {}
    offers: dict[str, Offer] = {}
    for path in bags:
        for topic, kind in open_bag(path).types.items():
            if types.setdefault(topic, kind) != kind:
                raise ConfigError(f'{path}: {topic} is {kind}, in a bag before {types[topic]}; play them apart')
        offers = {**read_offers(path), **offers}
    return types, offers


def _find(name: str, bags: Sequence[Path]) -> RobotContract | None:
    """Load a contract by name or file, or the one that the first bag names; None if there is none of that name."""
    if name:
        return RobotContract.load(find_contract(name))
    label = _label(open_bag(bags[0]))
    try:
        return RobotContract.load(find_contract(label.partition('@')[0])) if label else None
    except FlowVLAError:
        return None


def _label(bag: Bag) -> str:
    return str(bag.marks.get('contract', ''))
