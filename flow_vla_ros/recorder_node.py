"""Records episodes: the contract's topics, as they are on the wire, into one rosbag2 folder with MCAP each."""

from __future__ import annotations

from pathlib import Path
import shutil
import time

from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from std_msgs.msg import String

from flow_vla.msg import Episode
from flow_vla.srv import StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bag_reader import header_stamp
from flow_vla_core.data.bag_writer import COMPRESSIONS, EpisodeWriter, Topic
from flow_vla_core.data.typestore import full_name
from flow_vla_core.errors import Code, ConfigError, DiskFull, RecordError
from flow_vla_ros import codecs, qos
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run

__all__ = ['RecorderNode', 'main', 'next_folder']

OUTCOMES = {Episode.UNKNOWN: 'unknown', Episode.SUCCESS: 'success', Episode.FAILURE: 'failure'}
HEADER = 'std_msgs/Header'
POLL_SECONDS = 0.005


class RecorderNode(FlowLifecycleNode):
    """Writes serialized messages with their own stamps; nothing is decoded.

    `~/start` begins an episode and `~/stop` ends it, keeping or deleting it, once every stream has come up to the
    moment of the call. A message's log time is the ROS time of
    its receipt, its publish time the stamp of its header where its type has one.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('folder', 'bags', 'where episodes are written, a folder each'),
        Parameter('extra_topics', [''], 'further topics, each as "name type", such as "/tf tf2_msgs/msg/TFMessage"'),
        Parameter('compression', 'zstd', 'of the bags', choices=tuple(COMPRESSIONS)),
        Parameter('min_free_mb', 500, 'free space on the disk below which no episode is started', minimum=0),
        Parameter('catch_up', 4.0, 'longest time that a stop waits for streams that lag behind, s', minimum=0.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Subscribe to every topic."""
        self._parameters = parameters
        self._contract = RobotContract.load(find_contract(parameters.contract))
        self._folder = _writable(Path(parameters.folder).expanduser().absolute())
        self._writer: EpisodeWriter | None = None
        self._episode = Episode()
        self._failure: RecordError | None = None
        self._newest: dict[str, int] = {}
        self._types = self._topics(parameters.extra_topics)
        self._subscriptions_by_topic = {topic: self._subscribe(topic) for topic in self._types}
        self._episodes = self.create_publisher(Episode, 'episode', qos.LATCHED)
        self._diagnostics = DiagnosticsOutbox(self, self._contract.name)
        self.create_service(StartEpisode, '~/start', self._on_start_episode)
        self.create_service(StopEpisode, '~/stop', self._on_stop_episode)
        self.create_timer(1.0, self._look_after, clock=wall_clock())

    def on_stop(self) -> None:
        """End an episode that is being recorded; it is kept, its outcome unknown."""
        if self._writer is not None:
            self._finish(True, Episode.UNKNOWN)

    def _topics(self, extra: list[str]) -> dict[str, str]:
        contract = self._contract
        named = [*((camera.topic, 'sensor_msgs/msg/Image') for camera in contract.cameras),
                 *((stream.topic, stream.message) for stream in contract.state),
                 *((part.topic, part.message) for part in contract.actions),
                 (contract.instruction.topic, 'std_msgs/msg/String')]
        for line in filter(None, extra):
            words = line.split()
            if len(words) != 2:
                raise ConfigError(f'extra_topics: {line!r}: write "name type"')
            named.append((words[0], words[1]))
        return {self.resolve_topic_name(name): full_name(kind) for name, kind in named}

    def _subscribe(self, topic: str) -> Subscription:
        kind = codecs.message_type(self._types[topic])
        stamped = next(iter(kind.get_fields_and_field_types().values()), '') == HEADER
        return self.create_subscription(
            kind, topic, lambda data, topic=topic, stamped=stamped: self._receive(topic, stamped, data),
            qos.for_recording(self, topic), raw=True)

    def _receive(self, topic: str, stamped: bool, data: bytes) -> None:
        if self._writer is None:
            return
        now = self.get_clock().now().nanoseconds
        stamp = header_stamp(data) if stamped else now
        self._newest[topic] = max(stamp, self._newest.get(topic, 0))
        self._write(topic, data, now, stamp)

    def _write(self, topic: str, data: bytes, log_time: int, publish_time: int) -> None:
        try:
            self._writer.write(topic, data, log_time, publish_time)
        except RecordError as error:
            self._writer, self._failure = None, error
            self.get_logger().error(f'recording ended: {error}')

    def _look_after(self) -> None:
        """Report, and follow publishers that came with another quality of service than was expected."""
        if self._writer is None:
            for topic, subscription in list(self._subscriptions_by_topic.items()):
                wanted = qos.for_recording(self, topic)
                if not _compatible(subscription.qos_profile, wanted):
                    self.destroy_subscription(subscription)
                    self._subscriptions_by_topic[topic] = self._subscribe(topic)
        failure = self._failure
        self._diagnostics.publish(failure is None, failure.code if failure else Code.OK, str(failure or ''), {
            'episode': self._episode.id if self._writer else '', 'free_mb': self._free_mb(),
            'messages': self._writer.messages if self._writer else 0})

    def _on_start_episode(self, request: StartEpisode.Request, response: StartEpisode.Response) -> object:
        try:
            self._check_start(request)
            self._failure = None
            self._begin(request)
        except RecordError as error:
            response.success, response.code, response.message = False, int(error.code), str(error)
            return response
        response.success, response.id, response.path = True, self._episode.id, str(self._writer.folder)
        return response

    def _check_start(self, request: StartEpisode.Request) -> None:
        if not self.active:
            raise RecordError('the recorder is not active', Code.WRITE_FAILED)
        if self._writer is not None:
            raise RecordError(f'{self._episode.id} is being recorded; stop it first', Code.ALREADY_RECORDING)
        if not request.instruction.strip():
            raise RecordError('the instruction is empty', Code.NO_INSTRUCTION)
        missing = [part.topic for part in (*self._contract.streams, *self._contract.actions)
                   if not self._has_publisher(self.resolve_topic_name(part.topic))]
        if self.get_clock().now().nanoseconds == 0:
            missing.append('/clock')
        if missing:
            raise RecordError(f'nobody publishes {", ".join(missing)}', Code.TOPIC_MISSING)
        if self._free_mb() < self._parameters.min_free_mb:
            raise DiskFull(f'{self._folder}: {self._free_mb()} MB free, '
                           f'allowed: {self._parameters.min_free_mb} or more')

    def _has_publisher(self, topic: str) -> bool:
        subscription = self._subscriptions_by_topic[topic]
        if hasattr(subscription, 'get_publisher_count'):  # Iron and later: counts those that are connected
            return subscription.get_publisher_count() > 0
        return self.count_publishers(topic) > 0

    def _begin(self, request: StartEpisode.Request) -> None:
        self._drain()  # what was received before belongs to no episode
        self._newest.clear()
        own = [self.resolve_topic_name('episode')]
        topics = [Topic(topic, kind, _offers(self, topic)) for topic, kind in self._types.items()]
        topics += [Topic(name, 'flow_vla/msg/Episode') for name in own]
        marks = {'instruction': request.instruction, 'task': request.task, 'outcome': 'unknown',
                 'contract': self._contract.label}
        self._writer = EpisodeWriter(next_folder(self._folder), topics, marks, self._parameters.compression)
        self._episode = Episode(id=self._writer.folder.name, event=Episode.STARTED, instruction=request.instruction,
                                task=request.task, contract=self._contract.label)
        self._mark()
        self._write_message(self._contract.instruction.topic, String(data=request.instruction))

    def _on_stop_episode(self, request: StopEpisode.Request, response: StopEpisode.Response) -> object:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            response.success, response.code, response.message = False, int(failure.code), str(failure)
            return response
        if self._writer is None:
            response.success, response.code = False, int(Code.NOT_RECORDING)
            response.message = 'no episode is being recorded'
            return response
        return self._answer_stop(request, response)

    def _answer_stop(self, request: StopEpisode.Request, response: StopEpisode.Response) -> object:
        writer = self._writer
        try:
            self._finish(request.keep, request.outcome)
        except RecordError as error:
            self._writer = None
            response.code, response.message = int(error.code), str(error)
        response.success = response.code == Code.OK
        response.id, response.path = writer.folder.name, str(writer.folder)
        response.messages, response.duration = writer.messages, writer.duration
        return response

    def _finish(self, keep: bool, outcome: int) -> None:
        self._catch_up()
        self._episode.event, self._episode.outcome = Episode.ENDED, outcome
        self._mark()
        writer, self._writer = self._writer, None
        if writer is None:
            failure, self._failure = self._failure, None
            raise failure
        if keep:
            writer.close({'outcome': OUTCOMES.get(outcome, 'unknown')})
        else:
            writer.discard()

    def _catch_up(self) -> None:
        """Take what the middleware still holds; wait until every stream reaches the newest stamp that there is now.

        A reliable middleware delivers a sample that it lost on the way late, and all later ones after it.
        """
        self._drain()
        topics = {self.resolve_topic_name(stream.topic) for stream in self._contract.streams}
        target = max((self._newest.get(topic, 0) for topic in topics), default=0)
        end = time.monotonic() + self._parameters.catch_up
        while late := [topic for topic in topics if self._newest.get(topic, 0) < target]:
            if time.monotonic() > end:
                self.get_logger().warning(f'the episode ends without the last samples of {", ".join(sorted(late))}')
                return
            time.sleep(POLL_SECONDS)
            self._drain()

    def _drain(self) -> None:
        """Take what the middleware holds already, so that nothing sent before a service call is cut off."""
        for subscription in self._subscriptions_by_topic.values():
            while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                subscription.callback(taken[0])

    def _mark(self) -> None:
        self._episode.header.stamp = self.get_clock().now().to_msg()
        self._episodes.publish(self._episode)
        self._write_message('episode', self._episode)

    def _write_message(self, topic: str, message: object) -> None:
        if self._writer is not None:
            now = self.get_clock().now().nanoseconds
            self._write(self.resolve_topic_name(topic), serialize_message(message), now, now)

    def _free_mb(self) -> int:
        existing = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        return shutil.disk_usage(existing).free // 2 ** 20


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'folder: {folder}: {error.strerror}') from error
    return folder


def next_folder(folder: Path) -> Path:
    """Return the folder for the next episode: one number above the highest that is there."""
    numbers = [int(path.name.removeprefix('episode_')) for path in folder.glob('episode_*')
               if path.name.removeprefix('episode_').isdigit()]
    return folder / f'episode_{max(numbers, default=0) + 1:06d}'


def _compatible(present: object, wanted: object) -> bool:
    return (present.reliability, present.durability) == (wanted.reliability, wanted.durability)


def _offers(node: RecorderNode, topic: str) -> tuple[dict, ...]:
    """Describe the publishers' quality of service in rosbag2's form."""
    return tuple(qos.describe(info.qos_profile) for info in node.get_publishers_info_by_topic(topic))


def main() -> None:
    """Run the node."""
    run(RecorderNode)


if __name__ == '__main__':
    main()
