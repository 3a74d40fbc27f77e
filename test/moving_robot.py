"""A robot for tests that goes where the executor tells it, and reports where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geometry_msgs.msg import TwistStamped
import numpy as np
from patient import write_patient
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from trajectory_msgs.msg import JointTrajectory

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.types import ActionChunk, Actor
from flow_vla_ros.codecs import chunk_to_message, encode_state, message_type
from flow_vla_ros.executor_node import ExecutorNode
from flow_vla_ros.qos import CHUNK, STATE

__all__ = ['MovingRobot', 'node_on', 'sensors']

PERIOD = 0.02


def node_on(graph: RosGraph, kind: type, **parameters: Any) -> Any:
    """Put an active node on a graph."""
    node = graph.add(kind(parameter_overrides=[Parameter(key, value=value) for key, value in parameters.items()]))
    assert node.autostart()
    return node


def sensors(graph: RosGraph, contract: RobotContract, stream: int, values: Any) -> Any:
    """Publish a state stream over and over, ``values()`` each time; return the publisher."""
    described, clock = contract.state[stream], graph.probe.get_clock()
    publisher = graph.outbox(message_type(described.message), described.topic, STATE)
    graph.probe.create_timer(PERIOD, lambda: publisher.publish(
        encode_state(described, values(), clock.now().nanoseconds)))
    return publisher


class MovingRobot:
    """Puts an executor on a graph, and Meta-World's arm, which moves at the velocities that it is told.

    Args:
        graph: to build on.
        folder: for the contract, which forgives late samples.
        parameters: of the executor.
    """

    def __init__(self, graph: RosGraph, folder: Path, **parameters: Any) -> None:
        self.graph, self.path = graph, write_patient(folder)
        self.contract = RobotContract.load(find_contract(self.path))
        self.executor = node_on(graph, ExecutorNode, contract=self.path, **parameters)
        self.position = np.array([0.0, 0.6, 0.2])
        self.twists: list[TwistStamped] = graph.inbox(TwistStamped, 'servo/twist_cmd')
        self.grippers: list[JointTrajectory] = graph.inbox(JointTrajectory, 'gripper/command')
        self.statuses: list[ExecutionStatus] = graph.inbox(ExecutionStatus, 'executor/status')
        self.policy = graph.outbox(ChunkMessage, 'action_chunk', CHUNK)
        sensors(graph, self.contract, 0, self._move)
        graph.spin_until(lambda: self.executor._state.fresh(self.now))

    @property
    def now(self) -> int:
        return self.executor.get_clock().now().nanoseconds

    @property
    def velocity(self) -> np.ndarray:
        linear = self.twists[-1].twist.linear if self.twists else None
        return np.zeros(3) if linear is None else np.array([linear.x, linear.y, linear.z])

    @property
    def speed(self) -> float:
        return float(self.velocity[0])

    @property
    def actor(self) -> Actor:
        return Actor(self.statuses[-1].source) if self.statuses else Actor.NOBODY

    @property
    def status(self) -> ExecutionStatus:
        return self.statuses[-1] if self.statuses else ExecutionStatus()

    def chunk(self, speed: float, rows: int = 10, stamp: int | None = None, number: int = 3) -> ChunkMessage:
        actions = np.tile(np.array([speed, 0, 0, -1], np.float32), (rows, 1))
        stamp = self.now if stamp is None else stamp
        return chunk_to_message(ActionChunk(stamp, self.contract.rates.policy_dt_ns, actions, id=number,
                                            confidence=1.0), self.contract)

    def wait_for(self, actor: Actor, state: int | None = None) -> None:
        self.graph.spin_until(lambda: self.actor == actor and state in (None, self.status.state))

    def _move(self) -> np.ndarray:
        self.position = np.clip(self.position + PERIOD * self.velocity, [-0.5, 0.4, 0.05], [0.5, 1.0, 0.4])
        return self.position
