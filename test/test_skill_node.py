"""The skill as an action, on a graph with policy, executor and a robot that stays where it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import TwistStamped
import numpy as np
from patient import write_patient
import rclpy
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
import typer
import yaml

from flow_vla.action import ExecuteInstruction
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code, ConfigError, InstructionUnknown
from flow_vla_core.types import Continuation, Generated, Observation
from flow_vla_ros import qos
from flow_vla_ros.codecs import encode_image, encode_state, from_time, message_type, to_duration
from flow_vla_ros.do import do
from flow_vla_ros.executor_node import ExecutorNode
from flow_vla_ros.policy_node import PolicyNode
from flow_vla_ros.skill_node import SkillNode

CONTRACT = RobotContract.load(find_contract('metaworld'))
STATE = {'ee_position': np.array([0.0, 0.6, 0.2]), 'gripper': np.array([1.0])}


class SteadyEngine:
    """Answers every observation with the same slow motion, and knows no word about dancing."""

    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        if 'dance' in observation.instruction:
            raise InstructionUnknown('unknown word: dance')
        return Generated(np.tile(np.array([0.1, 0, 0, 1], np.float32), (12, 1)), 0.75)


class Rig:
    """Puts robot, policy, executor and skill on a graph, and a client of the skill.

    Args:
        graph: to build on.
        acting: whether there are policy and executor.
        parameters: of the skill.
    """

    patient = ''   # path of a contract that forgives late samples

    def __init__(self, graph: RosGraph, acting: bool = True, **parameters: Any) -> None:
        self.graph = graph
        contract = [Parameter('contract', value=self.patient)]
        overrides = [*contract, *(Parameter(key, value=value) for key, value in parameters.items())]
        self.skill = graph.add(SkillNode(parameter_overrides=overrides))
        assert self.skill.autostart()
        self.words: list[String] = graph.inbox(String, CONTRACT.instruction.topic)
        self.twists: list[TwistStamped] = graph.inbox(TwistStamped, 'servo/twist_cmd')
        self.feedback: list[ExecuteInstruction.Feedback] = []
        self.client = ActionClient(graph.probe, ExecuteInstruction, 'execute_instruction')
        graph.spin_until(self.client.server_is_ready)
        if acting:
            graph.add(ExecutorNode(parameter_overrides=contract)).autostart()
            graph.add(PolicyNode(engine_factory=lambda *_: SteadyEngine(), parameter_overrides=contract)).autostart()
            self._show_robot()

    @property
    def speed(self) -> float:
        return self.twists[-1].twist.linear.x if self.twists else 0.0

    def _show_robot(self) -> None:
        probe = self.graph.probe
        cameras = [(camera, probe.create_publisher(message_type('sensor_msgs/Image'), camera.topic,
                                                   qos.RELIABLE_SENSOR)) for camera in CONTRACT.cameras]
        streams = [(stream, probe.create_publisher(message_type(stream.message), stream.topic, qos.STATE))
                   for stream in CONTRACT.state]

        def show() -> None:
            now = probe.get_clock().now().nanoseconds
            for camera, publisher in cameras:
                publisher.publish(encode_image(np.full((*camera.resolution, 3), 7, np.uint8), camera, now))
            for stream, publisher in streams:
                publisher.publish(encode_state(stream, STATE[stream.name], now))

        probe.create_timer(0.05, show)

    def send(self, instruction: str = 'open the drawer', timeout: float = 0.0, success_topic: str = '') -> Any:
        """Send a goal; return its handle and the future of its answer."""
        goal = ExecuteInstruction.Goal(instruction=instruction, timeout=to_duration(round(timeout * 1e9)),
                                       success_topic=success_topic)
        sent = self.client.send_goal_async(goal, feedback_callback=lambda heard: self.feedback.append(heard.feedback))
        self.graph.spin_until(sent.done)
        return sent.result(), sent.result().get_result_async()

    def wait(self, answer: Any) -> tuple[int, ExecuteInstruction.Result]:
        """Return status and result."""
        self.graph.spin_until(answer.done)
        return answer.result().status, answer.result().result

    def close(self) -> None:
        self.client.destroy()


@pytest.fixture(autouse=True, scope='module')
def patience(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let late samples pass: these tests are not about them."""
    Rig.patient = write_patient(tmp_path_factory.mktemp('patient'))


@pytest.fixture
def rig(graph: RosGraph) -> Any:
    """A complete robot."""
    rig = Rig(graph)
    yield rig
    rig.close()


@pytest.fixture
def lonely(graph: RosGraph) -> Any:
    """A skill without policy and executor."""
    rig = Rig(graph, acting=False, ready_timeout=0.3)
    yield rig
    rig.close()


def test_success_ends_it_and_the_robot_stands_still(rig: Rig) -> None:
    done = rig.graph.probe.create_publisher(Bool, 'robot/success', 10)
    _, answer = rig.send(success_topic='robot/success')
    rig.graph.spin_until(lambda: rig.speed > 0.05 and rig.feedback and rig.feedback[-1].code == Code.OK)
    heard = rig.feedback[-1]
    assert heard.chunks > 0 and heard.confidence == 0.75 and from_time(heard.elapsed) > 0
    assert not answer.done()
    rig.graph.spin_until(lambda: done.publish(Bool(data=True)) or answer.done())
    status, result = rig.wait(answer)
    assert (status, result.code) == (GoalStatus.STATUS_SUCCEEDED, Code.OK)
    assert result.chunks >= heard.chunks and from_time(result.elapsed) >= from_time(heard.elapsed)
    assert {words.data for words in rig.words[1:]} == {''} and rig.words[0].data == 'open the drawer'
    ticks = len(rig.twists)
    rig.graph.spin_until(lambda: len(rig.twists) > ticks + 3)
    assert rig.speed == 0


def test_cancelling_answers_only_when_the_robot_stands_still(rig: Rig) -> None:
    handle, answer = rig.send()
    rig.graph.spin_until(lambda: rig.speed > 0.05)
    rig.graph.spin_until(handle.cancel_goal_async().done)
    status, result = rig.wait(answer)
    assert (status, result.code) == (GoalStatus.STATUS_CANCELED, Code.CANCELLED)
    ticks = len(rig.twists)
    rig.graph.spin_until(lambda: len(rig.twists) > ticks + 3)
    assert all(twist.twist.linear.x == 0 for twist in rig.twists[ticks:])
    assert rig.words[-1].data == ''


def test_a_newer_goal_replaces_without_a_stop_and_an_emergency_stop_ends_it(rig: Rig) -> None:
    _, first = rig.send()
    rig.graph.spin_until(lambda: rig.speed > 0.05)
    _, second = rig.send('close the drawer')
    status, result = rig.wait(first)
    assert (status, result.code) == (GoalStatus.STATUS_ABORTED, Code.REPLACED)
    assert [words.data for words in rig.words] == ['open the drawer', 'close the drawer']
    assert rig.graph.call(Trigger, 'executor/estop').success
    status, result = rig.wait(second)
    assert (status, result.code) == (GoalStatus.STATUS_ABORTED, Code.STOPPED)


def test_it_ends_when_its_time_is_up_or_the_policy_cannot_act(graph: RosGraph) -> None:
    rig = Rig(graph, acting_timeout=0.5)
    try:
        assert rig.wait(rig.send(timeout=0.4)[1])[1].code == Code.TIMED_OUT
        rig.graph.spin_until(lambda: rig.twists)
        result = rig.wait(rig.send('dance')[1])[1]
        assert result.code == Code.NOT_ACTING and 'unknown word: dance' in result.message
    finally:
        rig.close()


def test_its_parameter_file_holds_every_parameter_and_its_default(root: Path) -> None:
    written = yaml.safe_load((root / 'config/nodes/skill.yaml').read_text())['/**']['skill']['ros__parameters']
    assert written == {'autostart': False} | {parameter.name: parameter.default for parameter in SkillNode.PARAMETERS}


@pytest.mark.parametrize(('goal', 'said'), [
    ({'instruction': ' '}, 'the instruction is empty'), ({'timeout': -1.0}, 'allowed: 0 or more'),
    ({'success_topic': 'no topic!'}, 'success_topic')])
def test_a_goal_that_makes_no_sense_says_nothing_to_the_policy(lonely: Rig, goal: dict, said: str) -> None:
    status, result = lonely.wait(lonely.send(**goal)[1])
    assert (status, result.code) == (GoalStatus.STATUS_ABORTED, Code.BAD_GOAL)
    assert said in result.message and not lonely.words


def test_without_policy_and_executor_it_is_not_ready(lonely: Rig) -> None:
    status, result = lonely.wait(lonely.send()[1])
    assert (status, result.code) == (GoalStatus.STATUS_ABORTED, Code.NOT_READY)
    assert result.message == 'the policy is not there'
    lonely.graph.spin_until(lambda: [words.data for words in lonely.words] == ['open the drawer', ''])
    assert math.isnan(lonely.feedback[-1].confidence)


def test_deactivation_answers_and_later_goals_are_not_ready(lonely: Rig) -> None:
    _, answer = lonely.send()
    lonely.skill.trigger_deactivate()
    assert 'deactivated' in lonely.wait(answer)[1].message
    lonely.skill.trigger_cleanup()
    result = lonely.wait(lonely.send()[1])[1]
    assert (result.code, result.message) == (Code.NOT_READY, 'the skill node is not active')


def test_the_command_line_reports_and_leaves_with_the_outcome(
        lonely: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(rclpy, 'init', lambda **_: None)        # the graph's context serves for both
    monkeypatch.setattr(rclpy, 'try_shutdown', lambda: None)
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(do, 'open the drawer', timeout=5.0)
        lonely.graph.spin_until(command.done)
    assert isinstance(command.exception(), typer.Exit) and command.exception().exit_code == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith('NOT_READY after') and said[-1].endswith('0 chunks. the policy is not there')


def test_the_command_line_wants_to_know_when_to_end() -> None:
    with pytest.raises(ConfigError, match='--success-topic'):
        do('open the drawer')
