"""The player on a live graph: bytes as recorded, their quality of service, time, pauses, and commands kept apart."""

from __future__ import annotations

import os
from pathlib import Path
import pty
import subprocess
import sys
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, START, TYPES, message, record, serialize, steps
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from geometry_msgs.msg import TwistStamped
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool

from flow_vla.msg import Episode
from flow_vla_core.data.offers import Offer
from flow_vla_ros import cli, qos
from flow_vla_ros.codecs import from_time
from flow_vla_ros.player import Keys, PlayerNode
from flow_vla_ros.playing import is_command

RELIABLE = qos.RECORD


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """A bag of eight steps."""
    return record(tmp_path / 'episode_000001', steps(8))


def player(graph: RosGraph, *bags: Path, **parameters: Any) -> PlayerNode:
    """Put a player on the graph, at ten times the speed and without a wait before the first message."""
    values = {'bags': [str(bag) for bag in bags], 'rate': 10.0, 'gap': 0.0, **parameters}
    return graph.add(PlayerNode(parameter_overrides=[Parameter(key, value=value) for key, value in values.items()]))


def listen(graph: RosGraph, kind: type, topic: str) -> list[bytes]:
    """Return a list to which the bytes on a topic are appended."""
    received: list[bytes] = []
    graph.probe.create_subscription(kind, topic, received.append, RELIABLE, raw=True)
    return received


def recorded(topic: str, count: int) -> list[bytes]:
    """Return what the bag holds of a topic."""
    return [serialize(topic, message(topic, START + k * DT, float(k))) for k in range(count)]


def test_messages_come_as_they_were_recorded_and_commands_come_aside(graph: RosGraph, bag: Path) -> None:
    joints, images = listen(graph, JointState, '/joint_states'), listen(graph, Image, '/camera/front/image_raw')
    obeyed, heard = listen(graph, TwistStamped, '/servo/twist_cmd'), listen(graph, TwistStamped,
                                                                          '/played/servo/twist_cmd')
    clocks = graph.inbox(Clock, '/clock', qos.CLOCK)
    node = player(graph, bag, wait_for_subscribers=False)
    assert node.autostart()
    graph.spin_until(lambda: node._state == 'done')
    graph.spin_until(lambda: len(joints) == len(images) == len(heard) == 8)
    assert joints == recorded('/joint_states', 8)
    assert images == recorded('/camera/front/image_raw', 8)
    assert heard == recorded('/servo/twist_cmd', 8)
    assert obeyed == [] and graph.probe.count_publishers('/servo/twist_cmd') == 0
    times = [from_time(clock.clock) for clock in clocks]
    assert times == sorted(times) and START <= times[0] and times[-1] <= START + 8 * DT


@pytest.mark.parametrize(('commands', 'topics'), [
    ('leave_out', set()), ('as_recorded', {'/servo/twist_cmd', '/gripper/command'}),
    ('aside', {'/played/servo/twist_cmd', '/played/gripper/command'})])
def test_commands_go_where_they_are_told(graph: RosGraph, bag: Path, commands: str, topics: set[str]) -> None:
    node = player(graph, bag, commands=commands)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    streams = {'/' + stream.topic for stream in CONTRACT.streams}
    assert set(node._stage.topics) == streams | {'/instruction'} | topics


@pytest.mark.parametrize(('topic', 'kind', 'expected'), [
    ('/joint_states', 'sensor_msgs/msg/JointState', False), ('/gripper/command', 'std_msgs/msg/Float64', True),
    ('/left/gripper/command', 'std_msgs/msg/Float64', True), ('/cmd_vel', 'geometry_msgs/msg/Twist', True),
    ('/joy', 'sensor_msgs/msg/Joy', True), ('/teleop/action_chunk', 'flow_vla/msg/ActionChunk', True),
    ('/estop', 'std_msgs/msg/Bool', True), ('/executor/speed', 'std_msgs/msg/Float64', True),
    ('/instruction', 'std_msgs/msg/String', False), ('/executor/status', 'flow_vla/msg/ExecutionStatus', False)])
def test_what_a_robot_could_obey_is_a_command(topic: str, kind: str, expected: bool) -> None:
    assert is_command(topic, kind, CONTRACT) is expected


@pytest.mark.parametrize(('offer', 'reliable', 'latched'), [
    (Offer(), True, False), (Offer(reliable=False), False, False), (Offer(latched=True, depth=1), True, True)])
def test_the_quality_of_service_is_what_was_offered(offer: Offer, reliable: bool, latched: bool) -> None:
    described = qos.describe(qos.for_playing(offer))
    assert described['reliability'] == ('reliable' if reliable else 'best_effort')
    assert described['durability'] == ('transient_local' if latched else 'volatile')
    assert described['depth'] == (1 if latched else qos.RELIABLE_SENSOR.depth)


def test_bags_come_one_after_another_each_between_its_marks(graph: RosGraph, bag: Path, tmp_path: Path) -> None:
    other = record(tmp_path / 'episode_000002', steps(4), {**MARKS, 'outcome': 'failure'})
    marks = graph.inbox(Episode, 'episode', qos.LATCHED_STATE)
    node = player(graph, tmp_path, gap=0.1)
    assert node.autostart()
    graph.spin_until(lambda: len(marks) == 4)
    assert [(mark.id, mark.event, mark.outcome) for mark in marks] == [
        (bag.name, Episode.STARTED, Episode.UNKNOWN), (bag.name, Episode.ENDED, Episode.SUCCESS),
        (other.name, Episode.STARTED, Episode.UNKNOWN), (other.name, Episode.ENDED, Episode.FAILURE)]
    assert {mark.instruction for mark in marks} == {MARKS['instruction']}


def test_a_pause_by_service_holds_time_and_messages(graph: RosGraph, bag: Path) -> None:
    joints, clocks = listen(graph, JointState, '/joint_states'), graph.inbox(Clock, '/clock', qos.CLOCK)
    node = player(graph, bag, paused=True)
    assert node.autostart()
    graph.spin_until(lambda: len(clocks) > 5)
    assert joints == [] and {from_time(clock.clock) for clock in clocks} == {START}
    assert graph.call(SetBool, 'player/pause', SetBool.Request(data=False)).message == 'playing'
    graph.spin_until(lambda: len(joints) == 8)
    assert graph.call(SetBool, 'player/pause', SetBool.Request(data=True)).message == 'paused'
    assert node._player.paused


def test_nothing_is_played_where_a_robot_runs(graph: RosGraph, bag: Path, capfd: pytest.CaptureFixture) -> None:
    joints = listen(graph, JointState, '/joint_states')
    graph.probe.create_publisher(JointState, '/joint_states', qos.STATE)
    node = player(graph, bag)
    assert node.autostart()
    graph.spin_until(lambda: node._state == 'failed')
    assert "others publish the contract's streams: /probe (/joint_states)" in capfd.readouterr().err
    assert joints == []
    graph.remove(node)
    node = player(graph, bag, alone=False)
    assert node.autostart()
    graph.spin_until(lambda: len(joints) == 8)


def test_it_waits_for_subscribers_if_that_is_asked_for(graph: RosGraph, bag: Path) -> None:
    node = player(graph, bag, wait_for_subscribers=True)
    words = listen(graph, String, '/instruction')
    assert node.autostart()
    missing = ['/camera/front/image_raw', '/camera/gripper/image_raw', '/ee_pose', '/joint_states']
    graph.spin_until(lambda: node._stage.missing_readers() == missing)
    received = {topic: listen(graph, node._stage._publishers[topic].msg_type, topic) for topic in missing}
    graph.spin_until(lambda: all(len(found) == 8 for found in received.values()))
    assert len(words) == 1


@pytest.mark.parametrize(('parameters', 'said'), [
    ({'bags': ['']}, 'give at least one'), ({'bags': ['/nowhere']}, '/nowhere'),
    ({'topics': ['/joints']}, "'/joints' is in no bag"), ({'rate': 0.0}, None)])
def test_mistakes_are_named(graph: RosGraph, bag: Path, parameters: dict, said: str | None,
                            capfd: pytest.CaptureFixture) -> None:
    if said is None:
        with pytest.raises(Exception, match='rate out of range'):
            player(graph, bag, **parameters)
        return
    node = player(graph, bag, **parameters)
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert said in capfd.readouterr().err


def test_the_space_key_is_heard_and_the_terminal_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import termios
    import threading
    master, slave = pty.openpty()
    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, 'stdin', terminal)
        before, pressed = termios.tcgetattr(terminal), threading.Event()
        keys = Keys(pressed.set)
        os.write(master, b'x ')
        assert pressed.wait(20)
        keys.close()
        assert termios.tcgetattr(terminal) == before
    os.close(master)


@pytest.mark.parametrize(('words', 'reason'), [
    (('nowhere',), 'nowhere: no such file or folder'), (('.',), 'no bag at or below it'),
    (('bag', '--rate', '0'), "'--rate'"), (('bag', '--start-offset', '-1'), "'--start-offset'"),
    (('bag', '--clock', '-1'), "'--clock'")], ids=['missing', 'empty', 'rate', 'offset', 'clock'])
def test_what_cannot_be_played_ends_with_two(words: tuple[str, ...], reason: str, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(['bags', 'play', *words])
    assert end.value.code == 2 and reason in capsys.readouterr().err


def test_the_command_plays_to_the_end(ros_environment: dict, bag: Path) -> None:
    command = [sys.executable, '-m', 'flow_vla_ros.cli', 'bags', 'play', str(bag), '--rate', '20', '--remap',
               '/joint_states:=/arm/joint_states', '--topics', '/joint_states']
    done = subprocess.run(command, env=ros_environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f'playing {bag}' in done.stderr and 'done: 8 messages' in done.stderr
    refused = subprocess.run([*command, '--remap', 'nonsense'], env=ros_environment, capture_output=True, text=True,
                             timeout=60)
    assert refused.returncode == 2 and 'write OLD:=NEW' in refused.stderr
    assert set(TYPES) >= {'/joint_states'}
