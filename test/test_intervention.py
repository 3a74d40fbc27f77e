"""A person takes over from the policy on a live graph: at once, smoothly, and until they let go."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from moving_robot import MovingRobot
from ros_graph import RosGraph
from std_srvs.srv import Trigger

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.errors import Code
from flow_vla_core.types import Actor
from flow_vla_ros.qos import CHUNK


def take_over(robot: MovingRobot, speed: float = -0.1) -> object:
    """Let the policy drive, then a person; return the person's publisher."""
    person = robot.graph.outbox(ChunkMessage, 'teleop/action_chunk', CHUNK)
    robot.policy.publish(robot.chunk(0.15, rows=400))
    robot.wait_for(Actor.POLICY, ExecutionStatus.FOLLOWING)
    robot.graph.spin_until(lambda: robot.speed == pytest.approx(0.15))
    person.publish(robot.chunk(speed, rows=400))
    robot.wait_for(Actor.PERSON, ExecutionStatus.FOLLOWING)
    return person


def test_a_person_takes_over_at_once_and_within_the_limits(graph: RosGraph, tmp_path: Path) -> None:
    trace = tmp_path / 'trace.csv'
    robot = MovingRobot(graph, tmp_path, control_hz=100.0, trace_file=str(trace))
    take_over(robot)
    graph.spin_until(lambda: robot.speed == pytest.approx(-0.1))
    speeds = np.array([twist.twist.linear.x for twist in robot.twists])
    assert np.abs(np.diff(speeds)).max() <= 8.0 * 0.01 + 1e-6
    robot.executor.trigger_deactivate()
    sources = [row['source'] for row in csv.DictReader(trace.open())]
    assert list(dict.fromkeys(sources)) == ['NOBODY', 'POLICY', 'PERSON']


def test_the_policy_is_refused_until_the_person_lets_go_and_it_has_looked_again(graph: RosGraph,
                                                                                tmp_path: Path) -> None:
    robot = MovingRobot(graph, tmp_path)
    person = take_over(robot)
    robot.policy.publish(robot.chunk(0.15, rows=400, number=8))
    graph.spin_until(lambda: Code.CHUNK_OVERRULED in robot.status.refusal_codes)
    assert (robot.status.state, robot.status.source) == (ExecutionStatus.FOLLOWING, Actor.PERSON)
    # A short chunk, and silence: the robot comes to rest, and the person still has it.
    person.publish(robot.chunk(-0.1, rows=2))
    robot.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)
    graph.spin_until(lambda: robot.speed == 0)
    robot.policy.publish(robot.chunk(0.15, rows=400, number=9))
    graph.spin_until(lambda: robot.status.code == Code.CHUNK_OVERRULED and robot.status.refused_chunks == 2)
    old = robot.chunk(0.15, rows=400, number=10)
    assert graph.call(Trigger, 'executor/release').success
    robot.policy.publish(old)
    graph.spin_until(lambda: robot.status.code == Code.CHUNK_TOO_OLD)
    assert (robot.actor, robot.speed) == (Actor.NOBODY, 0)
    robot.policy.publish(robot.chunk(0.15, rows=400, number=11))
    robot.wait_for(Actor.POLICY, ExecutionStatus.FOLLOWING)
    assert robot.status.chunk_id == 11
    assert not graph.call(Trigger, 'executor/release').success


def test_release_in_the_middle_of_a_motion_slows_down_first(graph: RosGraph, tmp_path: Path) -> None:
    robot = MovingRobot(graph, tmp_path, control_hz=100.0)
    take_over(robot)
    graph.spin_until(lambda: robot.speed == pytest.approx(-0.1))
    assert graph.call(Trigger, 'executor/release').message == 'waiting for a chunk of a newer observation'
    graph.spin_until(lambda: robot.speed == 0)
    robot.wait_for(Actor.NOBODY, ExecutionStatus.HOLDING)
    speeds = np.array([twist.twist.linear.x for twist in robot.twists])
    assert np.abs(np.diff(speeds)).max() <= 8.0 * 0.01 + 1e-6


def test_silence_hands_back_where_the_parameter_says_so(graph: RosGraph, tmp_path: Path) -> None:
    robot = MovingRobot(graph, tmp_path, hand_back=0.5)
    person = take_over(robot)
    person.publish(robot.chunk(-0.1, rows=2))
    robot.wait_for(Actor.NOBODY, ExecutionStatus.HOLDING)
    robot.policy.publish(robot.chunk(0.15))
    robot.wait_for(Actor.POLICY)


def test_an_emergency_stop_stops_a_person_too_who_keeps_control_after_it(graph: RosGraph, tmp_path: Path) -> None:
    robot = MovingRobot(graph, tmp_path)
    person = take_over(robot)
    assert graph.call(Trigger, 'executor/estop').success
    robot.wait_for(Actor.NOBODY, ExecutionStatus.STOPPED)
    graph.spin_until(lambda: robot.speed == 0)
    person.publish(robot.chunk(-0.1, rows=400))
    assert graph.call(Trigger, 'executor/reset_estop').success
    robot.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)
    robot.policy.publish(robot.chunk(0.15, rows=400))
    graph.spin_until(lambda: robot.status.code == Code.CHUNK_OVERRULED)
    person.publish(robot.chunk(-0.1, rows=400))
    graph.spin_until(lambda: robot.speed == pytest.approx(-0.1))


def test_a_bad_chunk_of_a_person_takes_nothing_over(graph: RosGraph, tmp_path: Path) -> None:
    robot = MovingRobot(graph, tmp_path)
    person = graph.outbox(ChunkMessage, 'teleop/action_chunk', CHUNK)
    robot.policy.publish(robot.chunk(0.15, rows=400))
    robot.wait_for(Actor.POLICY, ExecutionStatus.FOLLOWING)
    wrong = robot.chunk(-0.1)
    wrong.contract = 'other@00000000'
    person.publish(wrong)
    graph.spin_until(lambda: robot.status.code == Code.CHUNK_CONTRACT)
    assert robot.actor == Actor.POLICY
    graph.spin_until(lambda: robot.speed == pytest.approx(0.15))
