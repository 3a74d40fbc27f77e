"""A joystick on a live graph: motion under the dead-man button, take-over, hand-back, and the recorder's services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from fake_recorder import FakeRecorder
from moving_robot import MovingRobot, node_on, sensors
from patient import write_patient
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import Episode, ExecutionStatus, RecorderStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.types import Actor
from flow_vla_ros.executor_node import ExecutorNode
from flow_vla_ros.joystick_node import JoystickNode
from flow_vla_ros.leader_node import LeaderNode
from flow_vla_ros.qos import LATCHED, STATE

A, B, X, LB, RB, BACK, START = 0, 1, 2, 4, 5, 6, 7


class Stick:
    """Publishes a joystick's state over and over.

    Args:
        graph: to build on.
    """

    def __init__(self, graph: RosGraph) -> None:
        self._graph, self._publisher = graph, graph.outbox(Joy, 'joy')
        self.axes, self.held, self.plugged = [0.0] * 8, set(), True
        self.sent = 0
        graph.probe.create_timer(0.02, self._send)

    def hold(self, *buttons: int, **axes: float) -> None:
        """Hold buttons, and move axes such as ``a1=0.5``, from now on; wait until that was sent."""
        self.held = set(buttons)
        self.axes = [axes.get(f'a{index}', 0.0) for index in range(8)]
        sent = self.sent
        self._graph.spin_until(lambda: self.sent > sent + 2)

    def _send(self) -> None:
        if self.plugged:
            self._publisher.publish(Joy(axes=self.axes, buttons=[int(index in self.held) for index in range(11)]))
            self.sent += 1


def unhurried(folder: Path) -> str:
    """Write bindings for a busy machine: what is heard counts for longer."""
    (folder / 'unhurried.yaml').write_text('timeout: 1.0')
    return str(folder / 'unhurried.yaml')


class Rig(MovingRobot):
    """Adds a joystick and a recorder."""

    def __init__(self, graph: RosGraph, folder: Path, **parameters: Any) -> None:
        super().__init__(graph, folder)
        self.recorder = FakeRecorder(graph)
        self.words: list[String] = graph.inbox(String, 'instruction', LATCHED)
        self.node = node_on(graph, JoystickNode, contract=self.path, task='pick#1', bindings=unhurried(folder),
                            **parameters)
        self.chunks: list[ChunkMessage] = graph.inbox(ChunkMessage, 'teleop/action_chunk')
        self.stick = Stick(graph)
        self.stick.hold()

    def asked(self, count: int) -> list[tuple[str, Any]]:
        """Return what the recorder was asked, once it was so often."""
        self.graph.spin_until(lambda: len(self.recorder.asked) >= count)
        return self.recorder.asked


def test_the_stick_drives_while_the_dead_man_button_is_held(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.stick.hold(a1=1.0)
    rig.stick.hold(LB)
    rig.wait_for(Actor.PERSON)
    assert not any(any(chunk.data[0::4]) for chunk in rig.chunks)
    rig.stick.hold(LB, A, a1=1.0)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.1))       # half of the limit of 0.2 m/s
    graph.spin_until(lambda: rig.grippers[-1].points[0].positions[0] == 1.0)
    rig.stick.hold(LB, B, a1=-1.0)
    graph.spin_until(lambda: rig.speed == pytest.approx(-0.1))
    rig.stick.hold(a1=-1.0)
    graph.spin_until(lambda: rig.speed == 0)
    rig.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)             # and nobody else drives until it is handed back
    count = len(rig.chunks)
    rig.stick.hold(a1=-1.0)
    assert len(rig.chunks) == count


def test_a_lost_joystick_stops_the_robot_and_must_be_taken_anew(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.stick.hold(LB, a1=1.0)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.1))
    rig.stick.plugged = False
    graph.spin_until(lambda: rig.speed == 0)
    rig.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)
    rig.stick.plugged = True
    rig.stick.hold(LB, a1=1.0)
    assert rig.speed == 0
    rig.stick.hold()
    rig.stick.hold(LB, a1=1.0)
    graph.spin_until(lambda: rig.speed > 0.05)


def test_a_killed_node_leaves_a_robot_that_comes_to_rest(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.stick.hold(LB, a1=1.0)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.1))
    graph.remove(rig.node)
    graph.spin_until(lambda: rig.speed == 0)
    rig.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)


def test_it_takes_over_from_the_policy_and_hands_back(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.policy.publish(rig.chunk(0.15, rows=400))
    rig.wait_for(Actor.POLICY)
    rig.stick.hold(LB)
    rig.wait_for(Actor.PERSON)
    graph.spin_until(lambda: rig.speed == 0)
    rig.stick.hold(LB, START)           # the button stays down, and yet the person has let go
    rig.wait_for(Actor.NOBODY)
    count = len(rig.chunks)
    rig.stick.hold(LB)
    assert len(rig.chunks) == count
    rig.policy.publish(rig.chunk(0.15, rows=400))
    rig.wait_for(Actor.POLICY)


def test_buttons_ask_the_recorder(graph: RosGraph, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    rig = Rig(graph, tmp_path, instruction='open the tap')
    graph.spin_until(lambda: rig.words and rig.words[-1].data == 'open the tap')
    rig.stick.hold(A)
    name, request = rig.asked(1)[0]
    assert (name, request.instruction, request.task) == ('start', 'open the tap', 'pick#1')
    graph.spin_until(lambda: rig.node._desk.recording)
    rig.stick.hold(RB)
    assert rig.asked(2)[1][1].outcome == Episode.SUCCESS
    graph.spin_until(lambda: rig.node._desk._outcome == Episode.SUCCESS)
    rig.stick.hold(B)
    name, request = rig.asked(3)[2]
    assert (name, request.keep, request.outcome) == ('stop', True, Episode.SUCCESS)
    rig.stick.hold()
    rig.recorder.refusal = 'nobody publishes ee_pose'
    rig.stick.hold(A)
    rig.asked(4)
    graph.spin_until(lambda: 'start: refused: TOPIC_MISSING: nobody publishes ee_pose' in capfd.readouterr().err)


def test_x_deletes_only_while_nobody_drives(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.recorder.status.state = RecorderStatus.RECORDING
    rig.stick.hold(LB)
    rig.stick.hold(LB, X)
    rig.stick.hold()
    assert not rig.recorder.asked
    rig.stick.hold(X)
    name, request = rig.asked(1)[0]
    assert (name, request.keep) == ('stop', False)


def test_the_stop_button_stops_whoever_drives(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.stick.hold(LB, a1=1.0)
    graph.spin_until(lambda: rig.speed > 0.05)
    rig.stick.hold(LB, BACK, a1=1.0)
    rig.wait_for(Actor.NOBODY, ExecutionStatus.STOPPED)
    graph.spin_until(lambda: rig.speed == 0)


class LeaderRig:
    """Puts an executor, SO-101's measured joints, a leader arm and its node on a graph."""

    def __init__(self, graph: RosGraph, folder: Path) -> None:
        path = write_patient(folder, 'so101')
        self.contract, self.graph = RobotContract.load(find_contract(path)), graph
        self.names = self.contract.state[0].names
        self.node = node_on(graph, ExecutorNode, contract=path)
        self.commands: list[JointTrajectory] = graph.inbox(JointTrajectory, 'arm_controller/joint_trajectory')
        self.statuses: list[ExecutionStatus] = graph.inbox(ExecutionStatus, 'executor/status')
        self.robot, self.posture, self.plugged = np.full(6, 0.1), np.full(6, 0.1), True
        sensors(graph, self.contract, 0, lambda: self.robot)
        graph.spin_until(lambda: self.commands)
        self.leader_node = node_on(graph, LeaderNode, contract=path, bindings=unhurried(folder))
        self.leader = graph.outbox(JointState, 'leader/joint_states', STATE)
        graph.probe.create_timer(0.01, self._publish)
        graph.spin_until(lambda: not self.leader_node._lost())

    @property
    def commanded(self) -> np.ndarray:
        return np.array(self.commands[-1].points[0].positions)

    @property
    def source(self) -> int:
        return self.statuses[-1].source if self.statuses else -1

    def _publish(self) -> None:
        if self.plugged:
            self.leader.publish(JointState(name=list(self.names), position=self.posture.tolist()))


def test_the_robot_follows_the_leader_from_take_over_to_release(graph: RosGraph, tmp_path: Path) -> None:
    rig = LeaderRig(graph, tmp_path)
    assert graph.call(Trigger, 'leader/take_over').message == 'the robot follows'
    graph.spin_until(lambda: rig.source == Actor.PERSON)
    rig.posture = np.full(6, 0.4)
    graph.spin_until(lambda: np.allclose(rig.commanded, 0.4, atol=1e-3))
    assert graph.call(Trigger, 'leader/release').success
    graph.spin_until(lambda: rig.source == Actor.NOBODY)
    rig.posture = np.zeros(6)
    count = len(rig.commands)
    graph.spin_until(lambda: len(rig.commands) > count + 30)
    assert np.allclose(rig.commanded, 0.4, atol=2e-2)


def test_a_leader_that_is_far_is_refused_with_joint_and_distance(graph: RosGraph, tmp_path: Path) -> None:
    rig = LeaderRig(graph, tmp_path)
    rig.posture = np.array([0.1, 0.1, 0.9, 0.1, 0.1, 0.1])
    graph.spin_until(lambda: rig.leader_node._heard.positions['elbow_flex'] == 0.9)
    answer = graph.call(Trigger, 'leader/take_over')
    assert not answer.success and 'too far apart: arm.elbow_flex by 0.8; allowed: 0.15' in answer.message
    rig.plugged = False
    graph.spin_until(rig.leader_node._lost)
    assert 'nothing from the leader' in graph.call(Trigger, 'leader/take_over').message


def test_a_lost_leader_stops_the_robot_and_has_to_take_over_anew(graph: RosGraph, tmp_path: Path) -> None:
    rig = LeaderRig(graph, tmp_path)
    assert graph.call(Trigger, 'leader/take_over').success
    graph.spin_until(lambda: rig.source == Actor.PERSON)
    rig.plugged = False
    graph.spin_until(lambda: rig.statuses[-1].state == ExecutionStatus.HOLDING)
    assert rig.source == Actor.PERSON
    rig.plugged, rig.posture = True, np.full(6, 0.2)
    graph.spin_until(lambda: not rig.leader_node._lost())
    count = len(rig.commands)
    graph.spin_until(lambda: len(rig.commands) > count + 30)
    assert np.allclose(rig.commanded, 0.1, atol=1e-2)


@pytest.mark.parametrize(('kind', 'parameters', 'said'), [
    (JoystickNode, {'bindings': 'xboxx'}, "did you mean 'xbox'"),
    (JoystickNode, {'bindings': 'xbox', 'contract': 'so101'}, "sticks: no axis 'ee.x'"),
    (LeaderNode, {}, "this is 'ee_twist'"), (LeaderNode, {'contract': 'so101', 'rate': 40.0, 'bindings': 'none.yaml'},
                                             'none.yaml')])
def test_what_cannot_be_used_refuses_to_configure(graph: RosGraph, capfd: pytest.CaptureFixture, kind: type,
                                                  parameters: dict, said: str) -> None:
    node = graph.add(kind(parameter_overrides=[Parameter(key, value=value) for key, value in parameters.items()]))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert said in capfd.readouterr().err


def test_without_an_executor_it_says_so(graph: RosGraph, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    node_on(graph, JoystickNode, contract=write_patient(tmp_path, 'so101'))
    stick = Stick(graph)
    stick.hold()
    stick.hold(BACK)
    stick.hold()
    stick.hold(LB)
    said = ''

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return 'nobody serves executor/estop' in said and 'cannot drive: where arm.shoulder_pan is' in said

    graph.spin_until(heard)
