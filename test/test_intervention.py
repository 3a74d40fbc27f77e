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
from test_policy_node import DT, START
from test_policy_node import Rig as PolicyRig

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.errors import Code
from flow_vla_core.types import Actor
from flow_vla_ros.codecs import to_time
from flow_vla_ros.qos import CHUNK, STATUS


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


@pytest.mark.parametrize('source', [Actor.PERSON, Actor.NOBODY])
def test_the_policy_continues_no_plan_that_was_not_followed(graph: RosGraph, source: Actor) -> None:
    rig = PolicyRig(graph, realtime='prefix', replan_steps=3, use_sim_time=True)
    executor = graph.outbox(ExecutionStatus, 'executor/status', STATUS)

    def say(actor: Actor, stamp: int) -> None:
        status = ExecutionStatus(source=actor, state=ExecutionStatus.FOLLOWING)
        status.header.stamp = to_time(stamp)
        executor.publish(status)

    rig.set_time(START)
    rig.say('open the faucet')
    rig.answer(START, delay=DT)
    say(source, START)                     # what it says of the time before the chunk came counts for nothing
    say(Actor.POLICY, START + 2 * DT)
    assert rig.answer(START + 3 * DT, delay=DT).delay == 1
    say(source, START + 5 * DT)
    graph.spin_until(lambda: rig.node._succession._disowned)
    assert rig.answer(START + 6 * DT, delay=DT).delay == 0
    say(Actor.POLICY, START + 8 * DT)
    assert rig.answer(START + 9 * DT).delay == 1
    assert [continuation is None for continuation in rig.engine.continuations] == [True, False, True, False]


def test_actors_are_numbered_as_in_the_message() -> None:
    assert {actor.name: actor.value for actor in Actor} == {
        name: getattr(ExecutionStatus, name) for name in ('NOBODY', 'POLICY', 'PERSON')}
