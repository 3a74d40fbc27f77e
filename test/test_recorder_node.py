"""The recorder on a live graph: nothing is lost, services with codes, lagging streams, and a disk that gets full."""

from __future__ import annotations

from pathlib import Path
import signal
import subprocess
import threading
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from bag_tools import fill_disk
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
import yaml

from flow_vla.msg import Episode
from flow_vla.srv import StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import read_episode, read_metadata
from flow_vla_core.data.bag_reader import read_bag
from flow_vla_core.errors import Code
from flow_vla_ros.codecs import encode_action, encode_image, encode_state, message_type
from flow_vla_ros.qos import CLOCK, LATCHED, RECORD, SENSOR
from flow_vla_ros.recorder_node import RecorderNode

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
START = 1_700_000_000 * 10 ** 9
PARTS = (*CONTRACT.streams, *CONTRACT.actions)
NOISE = np.random.default_rng(0).integers(0, 256, (168, 168, 3), np.uint8)
SUCCESS = TransitionCallbackReturn.SUCCESS


class Robot:
    """Publishes every topic of the contract; the k-th message of each carries the number k.

    Args:
        graph: to publish on.
        qos: of the cameras and the state.
    """

    def __init__(self, graph: RosGraph, qos: Any = RECORD) -> None:
        self.publishers = {stream.name: graph.probe.create_publisher(
            message_type(getattr(stream, 'message', 'sensor_msgs/Image')), stream.topic, qos)
            for stream in CONTRACT.streams}
        self.commands = {part.name: graph.probe.create_publisher(message_type(part.message), part.topic, RECORD)
                         for part in CONTRACT.actions}

    def connected(self) -> bool:
        return all(publisher.get_subscription_count() for publisher in
                   (*self.publishers.values(), *self.commands.values()))

    def step(self, k: int, *left_out: str) -> None:
        for name in self.publishers:
            if name not in left_out:
                self.send(name, k)
        for part in CONTRACT.actions:
            self.commands[part.name].publish(encode_action(part, np.full(part.dim, float(k)), START + k * DT))

    def send(self, name: str, k: int) -> None:
        stream = next(stream for stream in CONTRACT.streams if stream.name == name)
        if stream in CONTRACT.cameras:
            message = encode_image(NOISE + np.uint8(k % 256), stream, START + k * DT)
        else:
            message = encode_state(stream, np.full(len(stream.names), float(k)), START + k * DT)
        self.publishers[name].publish(message)


class Rig:
    """Puts an active recorder on a graph, and a robot beside it."""

    def __init__(self, graph: RosGraph, folder: Path, qos: Any = RECORD, **parameters: Any) -> None:
        self.graph, self.folder = graph, folder
        values = {'folder': str(folder), 'min_free_mb': 1, 'check': False, **parameters}
        self.node = graph.add(RecorderNode(parameter_overrides=[Parameter(k, value=v) for k, v in values.items()]))
        assert self.node.autostart()
        self.robot = Robot(graph, qos)
        graph.spin_until(self.robot.connected)

    def taken(self) -> int:
        return self.node._episodes.recording.taken.total()

    def start(self, instruction: str = 'open the faucet', task: str = 'faucet-open') -> StartEpisode.Response:
        request = StartEpisode.Request(instruction=instruction, task=task)
        return self.graph.call(StartEpisode, 'recorder/start', request)

    def begin(self) -> StartEpisode.Response:
        """Start, once the recorder knows every publisher."""
        answers: list[StartEpisode.Response] = []
        self.graph.spin_until(lambda: answers.append(self.start()) or answers[-1].code != Code.TOPIC_MISSING)
        assert answers[-1].success, answers[-1].message
        return answers[-1]

    def stop(self, keep: bool = True, outcome: int = Episode.SUCCESS) -> StopEpisode.Response:
        return self.graph.call(StopEpisode, 'recorder/stop', StopEpisode.Request(keep=keep, outcome=outcome))


def test_an_episode_becomes_a_bag(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path / 'bags')
    marks = graph.inbox(Episode, 'episode', LATCHED)
    started = rig.begin()
    for k in range(6):
        rig.robot.step(k)
    stopped = rig.stop()
    assert stopped.success and stopped.code == Code.OK
    assert (started.id, started.path) == (stopped.id, stopped.path) == (
        'episode_000001', str(tmp_path / 'bags' / 'episode_000001'))
    bag = read_bag(Path(stopped.path))
    assert bag.complete and stopped.messages == 6 * len(PARTS) + 3
    for part in PARTS:
        assert [stamp for stamp, _ in bag.stamped('/' + part.topic)] == [START + k * DT for k in range(6)], part.topic
    graph.spin_until(lambda: len(marks) == 2)
    recorded = [bag.decode('/episode', data) for _, data in bag.messages['/episode']]
    for mark in (*marks, *recorded):
        assert (mark.id, mark.instruction, mark.task) == ('episode_000001', 'open the faucet', 'faucet-open')
    assert [mark.event for mark in recorded] == [mark.event for mark in marks] == [Episode.STARTED, Episode.ENDED]
    assert (recorded[1].outcome, recorded[1].contract) == (Episode.SUCCESS, CONTRACT.label)
    assert bag.decode('/instruction', bag.messages['/instruction'][0][1]).data == 'open the faucet'


def test_a_recorded_episode_reads_as_it_was_sent(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.begin()
    for k in range(5):
        rig.robot.step(k)
    episode = read_episode(Path(rig.stop().path), CONTRACT)
    np.testing.assert_array_equal(episode.actions, np.repeat(np.arange(5.0), 4).reshape(5, 4))
    np.testing.assert_array_equal(episode.state[:, 3], np.arange(5))
    assert (episode.instruction, episode.task, episode.outcome) == ('open the faucet', 'faucet-open', 'success')


def test_episodes_are_numbered_and_only_what_is_between_start_and_stop_is_kept(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.begin()
    rig.robot.step(0)
    assert rig.stop(outcome=Episode.FAILURE).id == 'episode_000001'
    rig.robot.step(1)
    rig.begin()
    rig.robot.step(2)
    second = rig.stop(outcome=77)
    assert second.id == 'episode_000002'
    assert {stamp for stamp, _ in read_bag(Path(second.path)).stamped('/ee_pose')} == {START + 2 * DT}
    assert [read_metadata(tmp_path / name)['outcome'] for name in ('episode_000001', 'episode_000002')] == [
        'failure', 'unknown']


def test_a_discarded_episode_is_gone(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    path = Path(rig.begin().path)
    rig.robot.step(0)
    assert path.is_dir()
    assert rig.stop(keep=False).success
    assert list(tmp_path.iterdir()) == []


def test_refusals_have_codes(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    assert (rig.stop().code, rig.stop().success) == (Code.NOT_RECORDING, False)
    rig.begin()
    again = rig.start()
    assert (again.code, again.success) == (Code.ALREADY_RECORDING, False)
    assert 'episode_000001 is being recorded' in again.message
    assert rig.stop().success
    assert rig.start(instruction='  ').code == Code.NO_INSTRUCTION
    assert rig.node.trigger_deactivate() == SUCCESS
    assert (rig.start().code, rig.start().message) == (Code.WRITE_FAILED, 'the recorder is not active')


def test_nobody_publishes(graph: RosGraph, tmp_path: Path) -> None:
    node = graph.add(RecorderNode(parameter_overrides=[Parameter('folder', value=str(tmp_path))]))
    assert node.autostart()
    answer = graph.call(StartEpisode, 'recorder/start', StartEpisode.Request(instruction='go'))
    assert answer.code == Code.TOPIC_MISSING
    assert all(part.topic in answer.message for part in PARTS)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_refuses_the_start(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, min_free_mb=10 ** 9)
    answers: list[StartEpisode.Response] = []
    graph.spin_until(lambda: answers.append(rig.start()) or answers[-1].code != Code.TOPIC_MISSING)
    assert answers[-1].code == Code.DISK_FULL and '1000000000 or more' in answers[-1].message


def test_a_disk_that_gets_full_ends_the_episode(graph: RosGraph, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(graph, tmp_path, compression='none')
    statuses = graph.inbox(DiagnosticArray, '/diagnostics')
    with monkeypatch.context() as patch:
        fill_disk(patch, 6_000_000)  # room for one chunk, not for two
        path = Path(rig.begin().path)
        for k in range(60):
            rig.robot.step(k)
        graph.spin_until(lambda: any(value.value == '302 DISK_FULL' for array in statuses
                                     for status in array.status for value in status.values))
        answer = rig.stop()
    assert (answer.success, answer.code) == (False, Code.DISK_FULL)
    assert 'what was written so far stays readable' in answer.message
    episode = read_episode(path, CONTRACT)
    assert 1 <= len(episode) < 60 and not episode.complete
    assert rig.stop().code == Code.NOT_RECORDING
    rig.begin()
    rig.robot.step(70)
    assert rig.stop().success


def test_a_disk_that_gets_full_at_the_stop_is_reported(graph: RosGraph, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 100_000)
    rig = Rig(graph, tmp_path, compression='none')
    rig.begin()
    rig.robot.step(0)
    assert rig.stop().code == Code.DISK_FULL
    assert rig.stop().code == Code.NOT_RECORDING


def test_an_episode_ends_where_the_clock_is_set_back(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    rig.node.set_parameters([Parameter('use_sim_time', value=True)])
    clock = graph.outbox(Clock, '/clock', CLOCK, readers=2)

    def run_to(second: int) -> None:
        clock.publish(Clock(clock=Time(sec=second)))
        graph.spin_until(lambda: rig.node.get_clock().now().nanoseconds == second * 10 ** 9)

    run_to(100)
    rig.begin()
    rig.robot.step(0)
    run_to(103)
    assert rig.node._episodes.running
    run_to(20)
    refused = rig.stop()
    assert (refused.success, refused.code) == (False, Code.CLOCK_JUMP)
    assert 'ROS time went back by 83.000 s' in refused.message
    assert read_bag(tmp_path / 'episode_000001').complete
    assert rig.begin().id == 'episode_000002'


def test_a_stop_waits_for_a_stream_that_lags_behind(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, catch_up=20.0)
    rig.begin()
    rig.robot.step(0)
    rig.robot.step(1, 'gripper')
    late = threading.Timer(0.5, rig.robot.send, ('gripper', 1))
    late.start()
    stopped = rig.stop()
    late.join()
    assert [stamp for stamp, _ in read_bag(Path(stopped.path)).stamped('/joint_states')] == [START, START + DT]


def test_a_stop_does_not_wait_for_ever(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, catch_up=0.1)
    rig.begin()
    rig.robot.step(0)
    rig.robot.step(1, 'gripper')
    stopped = rig.stop()
    assert stopped.success and stopped.messages == 2 * len(PARTS) - 1 + 3


def test_publishers_of_best_effort_are_followed(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, qos=SENSOR)  # waits until the recorder has subscribed again
    rig.begin()
    rig.robot.step(0)
    graph.spin_until(lambda: rig.taken() == len(PARTS) + 2)
    assert len(read_bag(Path(rig.stop().path)).messages['/camera/front/image_raw']) == 1


def test_further_topics_are_recorded_with_the_time_of_receipt(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, extra_topics=['notes std_msgs/msg/String', ''])
    notes = graph.outbox(String, 'notes')
    rig.begin()
    before = graph.probe.get_clock().now().nanoseconds
    notes.publish(String(data='half way'))
    graph.spin_until(lambda: rig.taken() == 3)
    bag = read_bag(Path(rig.stop().path))
    (log_time, data), = bag.messages['/notes']
    assert bag.decode('/notes', data).data == 'half way'
    assert before <= log_time <= graph.probe.get_clock().now().nanoseconds


@pytest.mark.parametrize('parameters', [{'extra_topics': ['notes']}, {'folder': '/dev/null/bags'},
                                        {'contract': 'nobody'}])
def test_settings_that_cannot_be_used_refuse_to_configure(graph: RosGraph, parameters: dict[str, Any]) -> None:
    node = graph.add(RecorderNode(parameter_overrides=[Parameter(k, value=v) for k, v in parameters.items()]))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE


def test_deactivation_keeps_the_episode(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    path = Path(rig.begin().path)
    rig.robot.step(0)
    assert rig.node.trigger_deactivate() == SUCCESS
    assert read_episode(path, CONTRACT).outcome == 'unknown'
    assert read_bag(path).complete


def test_the_parameter_file_holds_every_parameter_and_its_default(root: Path) -> None:
    written = yaml.safe_load((root / 'config/nodes/recorder.yaml').read_text())['/**']['recorder']['ros__parameters']
    defaults = {parameter.name: parameter.default for parameter in RecorderNode.PARAMETERS}
    assert written == {'autostart': False} | defaults


@pytest.mark.parametrize('rate', [20, 60])
def test_a_recorder_process_loses_nothing(graph: RosGraph, ros_environment: dict[str, str], python: str,
                                          tmp_path: Path, rate: int) -> None:
    """Send three seconds of two cameras and the small topics, then interrupt the process in mid-episode."""
    command = [python, '-m', 'flow_vla_ros.recorder_node', '--ros-args', '-p', 'autostart:=true',
               '-p', f'folder:={tmp_path}', '-p', 'min_free_mb:=1', '-p', 'check:=false']
    process = subprocess.Popen(command, env=ros_environment)
    try:
        robot = Robot(graph)
        graph.spin_until(robot.connected, 60)
        answers: list[StartEpisode.Response] = []
        request = StartEpisode.Request(instruction='open the faucet')
        graph.spin_until(lambda: answers.append(graph.call(StartEpisode, 'recorder/start', request))
                         or answers[-1].success or answers[-1].code == Code.ALREADY_RECORDING, 60)
        sent: list[int] = []
        graph.probe.create_timer(1 / rate, lambda: robot.step(len(sent)) or sent.append(len(sent)))
        graph.spin_until(lambda: len(sent) >= 3 * rate, 120)
        answer = graph.call(StopEpisode, 'recorder/stop', StopEpisode.Request(keep=True))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    bag = read_bag(Path(answer.path))
    for part in PARTS:
        stamps = {stamp for stamp, _ in bag.stamped('/' + part.topic)}
        assert set(range(START, START + 3 * rate * DT, DT)) <= stamps, part.topic
