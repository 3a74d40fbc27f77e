"""Keeps the episodes of a recorder: the one that is being recorded, its marks, and what becomes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import time

from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import String

from flow_vla.msg import Episode
from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic, delete_bag
from flow_vla_core.data.jpeg import COMPRESSED_IMAGE, IMAGE, compressed_topic
from flow_vla_core.data.recording import Recording, RecordingOptions
from flow_vla_core.errors import RecordError
from flow_vla_ros import qos
from flow_vla_ros.topic_taps import TopicTaps
from flow_vla_ros.words import Words

__all__ = ['OUTCOMES', 'Ended', 'Episodes', 'next_folder']

CHUNK_BYTES = 4 * 2 ** 20  # fewer of them leave the writer less to wait for the other threads
OUTCOMES = {Episode.UNKNOWN: 'unknown', Episode.SUCCESS: 'success', Episode.FAILURE: 'failure'}


@dataclass(frozen=True)
class Ended:
    """Tells of an episode that has ended.

    Args:
        folder: of its bag.
        messages: that were written.
        duration: from the first to the last of them, s.
        lost: messages that were lost, for each topic.
    """

    folder: Path
    messages: int
    duration: float
    lost: Mapping[str, int]

    @property
    def message(self) -> str:
        """Say what was lost, or nothing."""
        return _tell_lost(self.lost)


@dataclass(frozen=True)
class _Last:
    """Remembers the episode that was begun last, and its folder if it was kept."""

    instruction: str
    task: str
    kept: Path | None = None


class Episodes:
    """Begins, marks and ends episodes, and says so on the topic ``episode`` and inside the bag.

    Args:
        node: hosts the publisher.
        contract: of the robot.
        folder: where each episode gets a folder of its own.
        kinds: topic, with its namespace -> type of the messages that will come.
        compression: of the bags.
        options: how they are written.
    """

    def __init__(self, node: Node, contract: RobotContract, folder: Path, kinds: Mapping[str, str], compression: str,
                 options: RecordingOptions) -> None:
        self._node, self._contract, self._folder, self._kinds = node, contract, folder, dict(kinds)
        self._compression, self._options = compression, options
        self._mark_topic, self._words_topic = (
            node.resolve_topic_name(name) for name in ('episode', contract.instruction.topic))
        self._publisher = node.create_publisher(Episode, 'episode', qos.LATCHED)
        self.words = Words(node, contract.instruction.topic)
        self._lost_before: Mapping[str, int] = {}
        self._began = 0.0
        self.recording: Recording | None = None
        self.episode = Episode()
        self.failure: RecordError | None = None
        self.forget()

    def forget(self) -> None:
        """Let go of what was kept before: it will neither be counted nor deleted."""
        self.kept = 0
        self.last: _Last | None = None

    @property
    def running(self) -> bool:
        """Whether an episode is being recorded."""
        return self.recording is not None

    @property
    def duration(self) -> float:
        """Time since the present episode began, s; 0 without one."""
        return time.monotonic() - self._began if self.running else 0.0

    def begin(self, instruction: str, task: str, taps: TopicTaps) -> None:
        """Begin an episode in a new folder. Raise `RecordError` if it can't be written."""
        self.failure = None
        marks = {'instruction': instruction, 'task': task, 'outcome': 'unknown', 'contract': self._contract.label}
        writer = EpisodeWriter(next_folder(self._folder), self._topics(taps), marks, self._compression,
                               CHUNK_BYTES)
        self._lost_before = {topic: meter.lost for topic, meter in taps.meters.items()}
        self._began = time.monotonic()
        self.recording = Recording(writer, self._kinds, self._options)
        self.last = _Last(instruction, task)
        self.episode = Episode(id=writer.folder.name, instruction=instruction, task=task, contract=self._contract.label)
        self._tell(Episode.STARTED)
        self._write(self._words_topic, String(data=instruction))
        self._recall(taps)

    def receive(self, topic: str, data: bytes, log_time: int, stamp: int) -> None:
        """Take a message of the graph; it is let go while nothing is recorded."""
        if self.recording is None:
            return
        self.recording.put(topic, data, log_time, stamp)
        if topic == self._words_topic:
            self._follow(deserialize_message(data, String).data)

    def mark(self, outcome: int | None, instruction: str) -> None:
        """Judge the present episode, or put other words in force; None and empty leave what is.

        Where words are in force on the graph they change there too. Where there are none nobody is told: a mark must
        not set a policy going that was told to rest.
        """
        if outcome is not None:
            self.episode.outcome = outcome
            self._tell(Episode.MARKED)
        if instruction and self.words.in_force not in ('', instruction):
            self.words.say(instruction)
        if instruction and instruction != self.episode.instruction:
            self._write(self._words_topic, String(data=instruction))
            self._follow(instruction)

    def end(self, keep: bool, outcome: int, taps: TopicTaps) -> Ended:
        """End the present episode; an unknown outcome leaves the one that was marked.

        Raises:
            RecordError: if it could not be written to its end; what was is kept.
        """
        recording, lost = self.recording, self.lost(taps)
        if outcome != Episode.UNKNOWN:
            self.episode.outcome = outcome
        self._tell(Episode.ENDED if keep else Episode.DISCARDED)
        self.recording = None
        if keep:
            self._close(recording, lost)
        else:
            recording.discard()
        writer = recording.writer
        return Ended(writer.folder, writer.messages, writer.duration, lost)

    def discard_kept(self) -> None:
        """Delete the last episode, if it was kept, and say so. Raise `RecordError` if that fails."""
        if self.last is None or self.last.kept is None:
            return
        delete_bag(self.last.kept)
        self.episode.id, self.episode.event = self.last.kept.name, Episode.DISCARDED
        self.kept -= 1
        self.last = _Last(self.last.instruction, self.last.task)
        self._publish()

    def look_after(self) -> None:
        """Take note of a recording that had to end by itself."""
        if self.recording is not None and self.recording.failure is not None:
            self.fail(self.recording.failure)

    def lost(self, taps: TopicTaps) -> Counter[str]:
        """Count the messages of each topic that were lost since the present episode began."""
        if self.recording is None:
            return Counter()
        lost = Counter({topic: meter.lost - self._lost_before.get(topic, 0) for topic, meter in taps.meters.items()})
        return +(lost + self.recording.lost)

    def _recall(self, taps: TopicTaps) -> None:
        """Write what was said before and still holds, but for the words, which the episode has of its own."""
        now = self._node.get_clock().now().nanoseconds
        for said in taps.standing():
            if said.topic not in (self._words_topic, self._mark_topic):
                self.recording.put(said.topic, said.data, now, said.stamp)

    def _topics(self, taps: TopicTaps) -> list[Topic]:
        topics = []
        for name, kind in self._kinds.items():
            if self._options.jpeg and kind == IMAGE:
                topics.append(Topic(compressed_topic(name), COMPRESSED_IMAGE, taps.offers(name)))
            else:
                topics.append(Topic(name, kind, taps.offers(name)))
        return [*topics, Topic(self._mark_topic, 'flow_vla/msg/Episode')]

    def _close(self, recording: Recording, lost: Counter[str]) -> None:
        marks = {'outcome': OUTCOMES.get(self.episode.outcome, 'unknown')}
        if lost:
            marks['lost'] = str(lost.total())
        try:
            recording.close(marks)
        except RecordError as error:
            self.failure = None  # told by this very error
            self._node.get_logger().error(f'recording ended: {error}')
            raise
        self.kept += 1
        self.last = _Last(self.last.instruction, self.last.task, recording.writer.folder)

    def fail(self, error: RecordError) -> None:
        """End the present episode because of an error; it is kept, with its outcome as it was marked."""
        self._node.get_logger().error(f'recording ended: {error}')
        recording, self.recording, self.failure = self.recording, None, error
        self.episode.event = Episode.ENDED
        self._publish()
        try:
            recording.close({'outcome': OUTCOMES.get(self.episode.outcome, 'unknown')})
        except RecordError:
            pass  # the same one

    def _follow(self, instruction: str) -> None:
        if instruction and instruction != self.episode.instruction:
            self.episode.instruction = instruction
            self._tell(Episode.INSTRUCTED)

    def _tell(self, event: int) -> None:
        self.episode.event = event
        self._publish()
        if event != Episode.DISCARDED:
            self._write(self._mark_topic, self.episode)

    def _publish(self) -> None:
        self.episode.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(self.episode)

    def _write(self, topic: str, message: object) -> None:
        now = self._node.get_clock().now().nanoseconds
        self.recording.put(topic, serialize_message(message), now, now)


def next_folder(folder: Path) -> Path:
    """Return the folder for the next episode: one number above the highest that is there."""
    numbers = [int(path.name.removeprefix('episode_')) for path in folder.glob('episode_*')
               if path.name.removeprefix('episode_').isdigit()]
    return folder / f'episode_{max(numbers, default=0) + 1:06d}'


def _tell_lost(lost: Mapping[str, int]) -> str:
    if not any(lost.values()):
        return ''
    told = ', '.join(f'{topic} {count}' for topic, count in sorted(lost.items()) if count)
    return f'{sum(lost.values())} messages were lost: {told}'
