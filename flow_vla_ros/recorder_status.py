"""Says what a recorder does: its status message, and its line on /diagnostics."""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

from rclpy.node import Node

from flow_vla.msg import RecorderStatus
from flow_vla_core.errors import Code, RecordError
from flow_vla_ros import qos
from flow_vla_ros.diagnostics import DiagnosticsOutbox
from flow_vla_ros.episodes import Episodes
from flow_vla_ros.preflight import MEGABYTE, Disk
from flow_vla_ros.topic_taps import TopicTaps

__all__ = ['StatusOutbox']

MEASURABLE_SECONDS = 2.0  # of an episode, before its own size tells its rate


class StatusOutbox:
    """Publishes the state of a recorder.

    Args:
        node: hosts the publishers.
        hardware: the robot's name.
        taps: its subscriptions.
        episodes: what it records.
        disk: where to.
    """

    def __init__(self, node: Node, hardware: str, taps: TopicTaps, episodes: Episodes, disk: Disk) -> None:
        self._node, self._taps, self._episodes, self._disk = node, taps, episodes, disk
        self._publisher = node.create_publisher(RecorderStatus, '~/status', qos.STATUS)
        self._diagnostics = DiagnosticsOutbox(node, hardware)
        self._told_lost = 0

    def bytes_per_second(self) -> float:
        """Return how fast the disk fills: as the present episode does, else as what comes in would."""
        episodes = self._episodes
        if episodes.duration > MEASURABLE_SECONDS:
            return episodes.recording.writer.bytes / episodes.duration
        return sum(meter.bytes_per_second for meter in self._taps.meters.values())

    def publish(self, problem: RecordError | None) -> None:
        """Send the status; ``problem`` is why a start would be refused, or why the last recording ended early."""
        self._publisher.publish(self._message(problem))

    def diagnose(self, problem: RecordError | None) -> None:
        """Send the line on /diagnostics, and log what was lost since the last one."""
        status = self._message(problem)
        lost = status.dropped
        if lost > self._told_lost:
            self._node.get_logger().warning(f'{lost} messages of this episode were lost: {_told(status)}')
        self._told_lost = lost
        waiting = self._episodes.recording.waiting if self._episodes.running else 0
        self._diagnostics.publish(problem is None and not lost, Code(status.code), status.message, {
            'episode': status.id, 'free_mb': status.free_mb, 'messages': status.messages, 'lost': lost,
            'waiting_mb': round(waiting / MEGABYTE, 1), 'seconds_left': round(status.seconds_left)})

    def _message(self, problem: RecordError | None) -> RecorderStatus:
        episodes = self._episodes
        status = RecorderStatus(
            code=int(problem.code) if problem else int(Code.OK), message=str(problem or ''), kept=episodes.kept,
            duration=episodes.duration, free_mb=self._disk.free // MEGABYTE,
            seconds_left=self._disk.seconds_left(self.bytes_per_second()))
        status.header.stamp = self._node.get_clock().now().to_msg()
        if episodes.running:
            writer, episode = episodes.recording.writer, episodes.episode
            status.state, status.id, status.instruction = RecorderStatus.RECORDING, episode.id, episode.instruction
            status.outcome, status.messages, status.bytes = episode.outcome, writer.messages, writer.bytes
        _fill_topics(status, self._topic_rows())
        return status

    def _topic_rows(self) -> list[tuple[str, float, float, int, int]]:
        """Return name, rate, age, messages and losses of each topic."""
        lost = self._episodes.lost(self._taps)
        taken: Mapping[str, int] = self._episodes.recording.taken if self._episodes.running else {}
        return [(topic, meter.rate, meter.age if math.isfinite(meter.age) else -1.0, taken.get(topic, 0),
                 lost.get(topic, 0)) for topic, meter in self._taps.meters.items()]


def _fill_topics(status: RecorderStatus, rows: list[tuple[str, float, float, int, int]]) -> None:
    columns: tuple[Any, ...] = tuple(zip(*rows))
    status.topics, status.rates, status.ages, status.counts, status.drops = (list(column) for column in columns)
    status.dropped = sum(status.drops)


def _told(status: RecorderStatus) -> str:
    return ', '.join(f'{topic} {count}' for topic, count in zip(status.topics, status.drops) if count)
