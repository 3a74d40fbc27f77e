"""Keys of a real (pseudo) terminal on a live graph: motion, services, words, the panel; and no terminal at all."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import pty
import signal
import subprocess
import termios
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from fake_recorder import FakeRecorder
from moving_robot import MovingRobot
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from std_msgs.msg import String

from flow_vla.msg import Episode, ExecutionStatus, RecorderStatus
from flow_vla_core.errors import ConfigError
from flow_vla_core.types import Actor
from flow_vla_ros.keyboard_node import KeyboardNode
from flow_vla_ros.qos import LATCHED
from flow_vla_ros.teleop_panel import describe_execution, describe_recorder, describe_topics, in_lines
from flow_vla_ros.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Put a pseudo terminal in the place of standard input and output; `press` types, `shown` reads the screen."""
    outer, inner = pty.openpty()
    os.set_blocking(outer, False)
    screen: list[str] = []

    def shown() -> str:
        try:
            screen.append(os.read(outer, 65536).decode())
        except BlockingIOError:
            pass
        return ''.join(screen)[-20_000:]

    source = os.fdopen(os.dup(inner))
    monkeypatch.setattr('flow_vla_ros.keyboard_node.Terminal', lambda: Terminal(source))
    yield SimpleNamespace(press=lambda keys: os.write(outer, keys.encode()), shown=shown, inner=inner, outer=outer)
    source.close()
    os.close(inner)
    os.close(outer)


class Rig(MovingRobot):
    """Adds a keyboard and a recorder."""

    def __init__(self, graph: RosGraph, folder: Path, terminal: SimpleNamespace, **parameters: Any) -> None:
        super().__init__(graph, folder)
        self.recorder, self.terminal = FakeRecorder(graph), terminal
        self.words: list[String] = graph.inbox(String, 'instruction', LATCHED)
        bindings = folder / 'slow.yaml'
        bindings.write_text('hold: 0.6')
        values = {'contract': self.path, 'bindings': str(bindings), 'panel_hz': 20.0, **parameters}
        self.node = graph.add(KeyboardNode(parameter_overrides=[
            Parameter(key, value=value) for key, value in values.items()]))
        assert self.node.autostart()
        graph.spin_until(lambda: self.node._desk.recorder and self.node._desk._clients_by_name[
            'recorder/start'].service_is_ready())

    def asked(self, count: int) -> tuple[str, Any]:
        self.graph.spin_until(lambda: len(self.recorder.asked) >= count)
        return self.recorder.asked[count - 1]

    def wait_for_screen(self, *texts: str) -> None:
        self.graph.spin_until(lambda: all(text in self.terminal.shown() for text in texts))


def test_a_key_moves_for_a_moment_and_takes_over(graph: RosGraph, tmp_path: Path, terminal: SimpleNamespace) -> None:
    rig = Rig(graph, tmp_path, terminal)
    rig.policy.publish(rig.chunk(-0.15, rows=400))
    rig.wait_for(Actor.POLICY)
    terminal.press('w')
    graph.spin_until(lambda: rig.speed == pytest.approx(0.05))      # a quarter of the limit
    rig.wait_for(Actor.PERSON, ExecutionStatus.HOLDING)
    graph.spin_until(lambda: rig.speed == 0)
    terminal.press('\t')
    rig.wait_for(Actor.NOBODY)
    terminal.press(' ')
    rig.wait_for(Actor.PERSON)
    rig.wait_for_screen('HOLDING, person acts', 'w s  ee.x', 'enter  start', 'release: waiting for a chunk')


def test_keys_ask_the_recorder_and_answers_are_shown(graph: RosGraph, tmp_path: Path,
                                                     terminal: SimpleNamespace) -> None:
    rig = Rig(graph, tmp_path, terminal, task='tap')
    rig.wait_for_screen('ready, 3 episodes kept', '12,345 MB free, 2 h 01 min', 'ee_pose    50.0    0.01 s')
    terminal.press('eopen the\x7fe tap\r')
    graph.spin_until(lambda: rig.words and rig.words[-1].data == 'open the tap')
    terminal.press('\r')
    name, request = rig.asked(1)
    assert (name, request.instruction, request.task) == ('start', 'open the tap', 'tap')
    rig.wait_for_screen('RECORDING episode_000004', 'words     open the tap', 'LOST' if rig.recorder.status.dropped
                        else 'not marked')
    terminal.press('1')
    assert rig.asked(2)[1].outcome == Episode.SUCCESS
    rig.wait_for_screen('success')
    terminal.press('eclose it\r')
    graph.spin_until(lambda: rig.words[-1].data == 'close it')
    terminal.press('z')
    assert rig.asked(3)[0] == 'rerecord'
    rig.recorder.refusal = 'ee_pose comes at 3 Hz'
    terminal.press('c')
    assert rig.asked(4)[0] == 'check'
    rig.wait_for_screen('check: refused: ee_pose comes at 3 Hz')
    rig.recorder.refusal = ''
    terminal.press('n')
    name, request = rig.asked(5)
    assert (name, request.keep) == ('stop', True)


def test_escape_stops_also_in_the_middle_of_a_word(graph: RosGraph, tmp_path: Path, terminal: SimpleNamespace) -> None:
    rig = Rig(graph, tmp_path, terminal)
    terminal.press('ew')
    rig.wait_for_screen('new words: w_')
    terminal.press('\x1b')
    rig.wait_for(Actor.NOBODY, ExecutionStatus.STOPPED)
    assert not rig.words and rig.node._typed is None
    terminal.press('\x7f')
    rig.wait_for(Actor.NOBODY, ExecutionStatus.IDLE)


def test_the_terminal_is_given_back(graph: RosGraph, tmp_path: Path, terminal: SimpleNamespace) -> None:
    before = termios.tcgetattr(terminal.inner)
    rig = Rig(graph, tmp_path, terminal)
    assert termios.tcgetattr(terminal.inner) != before
    graph.remove(rig.node)
    assert termios.tcgetattr(terminal.inner) == before
    assert terminal.shown().endswith('\x1b[?1049l')


def test_q_ends_the_process_in_order(ros_environment: dict[str, str], python: str) -> None:
    outer, inner = pty.openpty()
    process = subprocess.Popen([python, '-m', 'flow_vla_ros.keyboard_node', '--ros-args', '-p', 'autostart:=true'],
                               env=ros_environment, stdin=inner, stdout=inner, stderr=subprocess.PIPE)
    try:
        seen = ''
        while 'q  quit' not in seen:
            seen += os.read(outer, 4096).decode()
        os.write(outer, b'q')
        while '\x1b[?1049l' not in seen:
            seen += os.read(outer, 4096).decode()
        assert process.wait(30) == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        os.close(inner)
        os.close(outer)


def test_without_a_terminal_it_says_what_to_do(ros_environment: dict[str, str], python: str) -> None:
    done = subprocess.run([python, '-m', 'flow_vla_ros.keyboard_node', '--ros-args', '-p', 'autostart:=true'],
                          env=ros_environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'standard input is none: run it in a terminal of its own, with `flow-vla teleop keyboard`' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_terminal_that_hangs_up_is_noticed() -> None:
    outer, inner = pty.openpty()
    with os.fdopen(inner) as source:
        terminal = Terminal(source)
        os.close(outer)
        assert terminal.read() == '' and terminal.hung_up
        terminal.close()
    with open(os.devnull) as source, pytest.raises(ConfigError, match='standard input is none'):
        Terminal(source)


def test_a_terminal_that_takes_nothing_keeps_nobody_waiting() -> None:
    outer, inner = pty.openpty()
    with os.fdopen(inner) as source:
        terminal = Terminal(source)
        for _ in range(100):
            terminal.draw(['x' * 70] * 20)
        os.write(outer, b'w')
        terminal.close()
        os.close(outer)
    assert not terminal.hung_up


def test_bad_bindings_leave_the_terminal_alone(graph: RosGraph, terminal: SimpleNamespace,
                                               capfd: pytest.CaptureFixture) -> None:
    before = termios.tcgetattr(terminal.inner)
    node = graph.add(KeyboardNode(parameter_overrides=[Parameter('bindings', value='xbox')]))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'xbox.yaml: deadman: unknown key' in capfd.readouterr().err
    assert termios.tcgetattr(terminal.inner) == before


def test_the_panel_says_what_is_known_and_what_is_wrong() -> None:
    assert in_lines(['ab', 'cd', 'efgh', 'i'], 7) == ['ab   cd', 'efgh', 'i']
    assert describe_execution(None) == ['robot     nothing heard from the executor']
    assert describe_recorder(None) == ['recorder  nothing heard from the recorder'] and not describe_topics(None)
    line, = describe_execution(ExecutionStatus(state=ExecutionStatus.STOPPED, code=212, message='until it is reset'))
    assert line == 'robot     STOPPED, nobody acts, speed 0%   EMERGENCY_STOP: until it is reset'
    refused = RecorderStatus(code=302, message='disk', free_mb=3, seconds_left=-1.0)
    assert describe_recorder(refused) == [
        'recorder  not ready: DISK_FULL: disk, 0 episodes kept', 'disk      3 MB free']
    recording = RecorderStatus(state=RecorderStatus.RECORDING, id='e', outcome=2, dropped=3, seconds_left=3_725.0,
                               topics=['a', 'bb'], rates=[1.0, 2.0], ages=[-1.0, 0.5], counts=[0, 1200], drops=[0, 3])
    lines = describe_recorder(recording)
    assert 'failure' in lines[0] and lines[2] == 'dropped   3 messages  LOST bb: 3' and '1 h 02 min' in lines[3]
    assert describe_topics(recording)[1:] == ['a      1.0     never          0      0',
                                              'bb     2.0    0.50 s      1,200      3']
