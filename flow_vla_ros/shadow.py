"""A policy that only watches: its chunks against the commands that others send or that a bag holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node

from flow_vla.msg import OpenLoopError
from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.open_loop import Comparison, OpenLoop, value_names
from flow_vla_core.evaluation.open_loop_report import OpenLoopSummary
from flow_vla_core.messages import decode_action, stamp_of
from flow_vla_core.types import ActionChunk
from flow_vla_ros import codecs, qos
from flow_vla_ros.playing import ASIDE

__all__ = ['Shadow', 'command_topics']

JUMP = JumpThreshold(min_forward=Duration(seconds=2), min_backward=Duration(nanoseconds=-1), on_clock_change=False)


class Shadow:
    """Hears the commands of a contract on a node, compares chunks with them and publishes how far they lie apart.

    Commands are heard on their own topics and below `ASIDE`. Where ROS time jumps, as from one bag to the next, an
    episode ends. Nothing is ever sent to a robot from here.

    Args:
        node: hosts subscriptions and the publisher.
        contract: says which topics.
        report_file: of the summary; none if empty.

    Raises:
        ConfigError: for a contract with a part that is an action, or a file that can't be written.
    """

    def __init__(self, node: Node, contract: RobotContract, report_file: str = '') -> None:
        self._node, self._contract = node, contract
        self._open_loop = OpenLoop(contract)
        self._jumps = node.get_clock().create_jump_callback(JUMP, post_callback=lambda _: self.finish())
        self._names = value_names(contract)
        self.summary = OpenLoopSummary(self._names, Path(report_file).expanduser() if report_file else None)
        self._publisher = node.create_publisher(OpenLoopError, '~/open_loop_error', qos.STATUS)
        for part in contract.actions:
            kind = codecs.message_type(part.message)
            for topic in command_topics(node, part):
                node.create_subscription(kind, topic, partial(self._hear, part), qos.COMMAND)

    def add(self, chunk: ActionChunk, scale: np.ndarray, checkpoint: str) -> None:
        """Take in a chunk that was made, with the scale (A,) of its values."""
        self._open_loop.add(chunk, scale, checkpoint)
        self._tell(self._open_loop.take())

    def finish(self) -> None:
        """End an episode: compare what waits as far as commands are known, forget them, write the report."""
        self._tell(self._open_loop.finish())
        self.summary.write()

    def close(self) -> None:
        """Let go of clock and files; the node removes the rest."""
        self._jumps.unregister()
        self.summary.close()

    def facts(self) -> str:
        """Say how many chunks were compared, and how they did."""
        return f'SHADOW: {self.summary.chunks} chunks compared, open-loop error {self.summary.mean:.3f}'

    def _hear(self, part: ActionPart, message: Any) -> None:
        try:
            values = decode_action(message, part)
        except DataError as error:
            self._node.get_logger().warning(f'a command was left out: {error}', throttle_duration_sec=5.0)
            return
        self._open_loop.log.push(part.name, stamp_of(message) or self._node.get_clock().now().nanoseconds, values)
        self._tell(self._open_loop.take())

    def _tell(self, comparisons: list[Comparison]) -> None:
        for found in comparisons:
            self.summary.add(found)
            message = OpenLoopError(chunk_id=found.chunk.id, instruction=found.chunk.instruction,
                                    steps=len(found.errors), names=self._names,
                                    errors=found.errors.mean(0).tolist(), mean=found.mean)
            message.header.stamp = codecs.to_time(found.chunk.stamp)
            self._publisher.publish(message)


def command_topics(node: Node, part: ActionPart) -> tuple[str, str]:
    """Return the topics on which the commands of a part are heard: its own, and that of a played bag."""
    own = node.resolve_topic_name(part.topic)
    return own, ASIDE + own
