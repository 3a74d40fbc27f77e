"""The executor on a live graph: refusals, holding, emergency stop, lost publishers, jumps of the clock, a safe end."""

from __future__ import annotations

import csv
from pathlib import Path
import signal
import subprocess
import time
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import control_messages
from geometry_msgs.msg import TwistStamped
import numpy as np
from patient import write_patient
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code
from flow_vla_core.types import ActionChunk
from flow_vla_ros.codecs import chunk_to_message, encode_state, from_time, message_type, to_duration, to_time
from flow_vla_ros.executor_node import ExecutorNode
from flow_vla_ros.qos import CHUNK, CLOCK, STATE

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
CHUNK_PUBLISHER = """
import sys
import rclpy
from builtin_interfaces.msg import Duration
from flow_vla.msg import ActionChunk
rclpy.init()
node = rclpy.create_node('policy')
publisher = node.create_publisher(ActionChunk, 'action_chunk', 2)
def publish():
    chunk = ActionChunk(id=1, contract=sys.argv[1], dt=Duration(nanosec=int(sys.argv[2])), horizon=6, action_dim=4,
                        data=[0.1, 0.0, 0.0, 1.0] * 6)
    chunk.header.stamp = node.get_clock().now().to_msg()
    publisher.publish(chunk)
node.create_timer(0.1, publish)
rclpy.spin(node)
"""


class Rig:
    """Puts an active executor on a graph, with a robot that moves as it is told and reports where it is.

    Args:
        graph: to build on.
        parameters: of the executor.
        measured: whether the robot reports its state.
    """

    patient = ''   # path of a contract that forgives late samples

    def __init__(self, graph: RosGraph, measured: bool = True, **parameters: Any) -> None:
        overrides = [Parameter(key, value=value) for key, value in {'contract': self.patient, **parameters}.items()]
        self.graph, self.unplugged = graph, False
        self.node = graph.add(ExecutorNode(parameter_overrides=overrides))
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self.twists: list[TwistStamped] = graph.inbox(TwistStamped, 'servo/twist_cmd')
        self.grippers = graph.inbox(message_type('trajectory_msgs/JointTrajectory'), 'gripper/command')
        self.statuses: list[ExecutionStatus] = graph.inbox(ExecutionStatus, 'executor/status')
        self.chunks = graph.outbox(ChunkMessage, 'action_chunk', CHUNK)
        self.position = np.array([0.0, 0.6, 0.2])
        stream = CONTRACT.state[0]
        self.poses = graph.outbox(message_type(stream.message), stream.topic, STATE)
        if measured and not parameters.get('use_sim_time'):
            graph.probe.create_timer(0.02, lambda: self.unplugged or self.report(self.now))
            graph.spin_until(lambda: self.node._state.fresh(self.now))
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    @property
    def now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    @property
    def status(self) -> ExecutionStatus:
        return self.statuses[-1] if self.statuses else ExecutionStatus()

    @property
    def stamp(self) -> int:
        return from_time(self.twists[-1].header.stamp) if self.twists else -1

    @property
    def speed(self) -> float:
        return self.twists[-1].twist.linear.x if self.twists else float('nan')

    def report(self, stamp: int) -> None:
        self.poses.publish(encode_state(CONTRACT.state[0], self.position, stamp))

    def send(self, speed: float = 0.1, rows: int = 10, **changes: Any) -> ChunkMessage:
        actions = np.tile(np.array([speed, 0, 0, 1], np.float32), (rows, 1))
        message = chunk_to_message(ActionChunk(self.now, DT, actions, id=3), CONTRACT)
        for key, value in changes.items():
            setattr(message, key, value)
        self.chunks.publish(message)
        return message

    def wait_for(self, state: int, code: Code) -> None:
        self.graph.spin_until(lambda: (self.status.state, self.status.code) == (state, code))


@pytest.fixture(autouse=True, scope='module')
def patience(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let late samples pass, in all tests that are not about them."""
    Rig.patient = write_patient(tmp_path_factory.mktemp('patient'))


def test_it_publishes_at_rest_while_active_and_nothing_before_or_after(graph: RosGraph) -> None:
    rig = Rig(graph)
    graph.spin_until(lambda: len(rig.twists) >= 3)
    rig.wait_for(ExecutionStatus.IDLE, Code.NO_CHUNK)
    assert rig.speed == 0
    assert not rig.grippers
    stamps = [from_time(twist.header.stamp) for twist in rig.twists]
    assert stamps == sorted(set(stamps))
    rig.node.trigger_deactivate()
    # Whatever the executor might still send is on the wire before this.
    sentinel = graph.outbox(TwistStamped, 'servo/twist_cmd')
    rig.send()
    sentinel.publish(TwistStamped())
    graph.spin_until(lambda: rig.stamp == 0)
    count = len(rig.twists)
    sentinel.publish(TwistStamped())
    graph.spin_until(lambda: len(rig.twists) > count)
    assert rig.stamp == from_time(rig.twists[-2].header.stamp) == 0


def test_it_follows_a_chunk_and_holds_when_chunks_stop_and_goes_on(graph: RosGraph) -> None:
    rig = Rig(graph)
    for _ in range(2):
        rig.send(0.1, rows=6)
        rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
        graph.spin_until(lambda: rig.speed == pytest.approx(0.1))
        assert rig.status.chunk_id == 3
        rig.wait_for(ExecutionStatus.HOLDING, Code.NO_CHUNK)
        graph.spin_until(lambda: rig.speed == 0)
        assert rig.grippers[-1].points[0].positions[0] == 1
    assert rig.status.accepted_chunks == 2


def test_every_bad_chunk_is_refused_with_its_code_and_the_plan_goes_on(graph: RosGraph) -> None:
    rig = Rig(graph)
    good = rig.send(0.1, rows=400)
    rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
    bad = [
        ({'data': good.data[:-1]}, Code.CHUNK_SHAPE),
        ({'action_dim': 5, 'horizon': 4, 'data': [0.0] * 20}, Code.CHUNK_SHAPE),
        ({'horizon': 0, 'data': []}, Code.CHUNK_SHAPE),
        ({'data': [float('nan'), *good.data[1:]]}, Code.CHUNK_NOT_FINITE),
        ({'data': [*good.data[:-1], float('-inf')]}, Code.CHUNK_NOT_FINITE),
        ({'contract': 'other@00000000'}, Code.CHUNK_CONTRACT),
        ({'dt': to_duration(DT * 2)}, Code.CHUNK_STEP),
    ]
    for number, (changes, code) in enumerate(bad, start=1):
        rig.send(0.1, rows=400, **changes)
        graph.spin_until(lambda number=number: rig.status.refused_chunks == number)
        assert (rig.status.code, bool(rig.status.message)) == (code, True)
        assert rig.status.state == ExecutionStatus.FOLLOWING
    for offset, code in ((10 ** 10, Code.CHUNK_FROM_FUTURE), (-10 ** 12, Code.CHUNK_TOO_OLD)):
        message = chunk_to_message(ActionChunk(rig.now + offset, DT, np.zeros((4, 4), np.float32)), CONTRACT)
        rig.chunks.publish(message)
        graph.spin_until(lambda code=code: rig.status.code == code)
    rig.send(0.1)
    rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
    assert rig.speed == pytest.approx(0.1)


def test_emergency_stop_latches_until_it_is_reset(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.send(0.1, rows=100)
    graph.spin_until(lambda: rig.speed > 0.05)
    assert graph.call(Trigger, 'executor/estop').success
    rig.wait_for(ExecutionStatus.STOPPED, Code.EMERGENCY_STOP)
    graph.spin_until(lambda: rig.speed == 0)
    rig.send(0.1, rows=100)
    rig.node.trigger_deactivate()
    rig.node.trigger_activate()
    rig.send(0.1, rows=100)
    rig.wait_for(ExecutionStatus.STOPPED, Code.EMERGENCY_STOP)
    ticks = len(rig.twists)
    graph.spin_until(lambda: len(rig.twists) >= ticks + 3)
    assert all(twist.twist.linear.x == 0 for twist in rig.twists[ticks:])
    assert graph.call(Trigger, 'executor/reset_estop').success
    rig.wait_for(ExecutionStatus.IDLE, Code.NO_CHUNK)
    rig.send(0.1)
    graph.spin_until(lambda: rig.speed > 0.05)


def test_an_emergency_stop_commands_before_it_says_anything(graph: RosGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(graph)
    rig.send(0.1, rows=100)
    graph.spin_until(lambda: rig.speed > 0.05)
    done: list[str] = []
    send, logger = rig.node._send, rig.node.get_logger
    monkeypatch.setattr(rig.node, '_send', lambda command, now: done.append(command.state.name) or send(command, now))
    monkeypatch.setattr(rig.node, 'get_logger', lambda: done.append('log') or logger())
    rig.node._estop()
    assert done == ['STOPPED', 'log']
    rig.node._estop()
    assert done == ['STOPPED', 'log'], 'a second call changes nothing'


def test_without_a_measured_position_it_does_not_move(graph: RosGraph) -> None:
    rig = Rig(graph, measured=False)
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.status.code == Code.STATE_STALE and rig.speed == 0)
    graph.probe.create_timer(0.02, lambda: rig.report(rig.now))
    graph.spin_until(lambda: rig.status.code == Code.NO_CHUNK)
    rig.send(0.1, rows=400)
    rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
    graph.spin_until(lambda: rig.speed > 0.05)


def test_true_on_the_estop_topic_stops_and_false_does_nothing(graph: RosGraph) -> None:
    rig = Rig(graph)
    button = graph.outbox(Bool, 'estop')
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.speed > 0.05)
    for pressed in (False, True, False):
        button.publish(Bool(data=pressed))
    rig.wait_for(ExecutionStatus.STOPPED, Code.EMERGENCY_STOP)
    graph.spin_until(lambda: rig.speed == 0)


def test_told_to_hold_it_waits_for_what_the_policy_makes_of_a_newer_observation(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.speed > 0.05)
    in_flight = chunk_to_message(ActionChunk(rig.now, DT, np.full((100, 4), 0.1, np.float32), id=9), CONTRACT)
    assert graph.call(Trigger, 'executor/hold').success
    rig.chunks.publish(in_flight)
    rig.wait_for(ExecutionStatus.HOLDING, Code.CHUNK_TOO_OLD)
    assert rig.status.refused_chunks == 1
    graph.spin_until(lambda: rig.speed == 0)
    rig.send(0.1)
    graph.spin_until(lambda: rig.speed > 0.05)


def test_speed_scales_motion_by_topic_and_by_parameter(graph: RosGraph, capfd: pytest.CaptureFixture) -> None:
    rig = Rig(graph, speed=0.5)
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.05))
    dial = graph.outbox(Float64, 'executor/speed')
    dial.publish(Float64(data=0.25))
    graph.spin_until(lambda: rig.speed == pytest.approx(0.025) and rig.status.speed == 0.25)
    dial.publish(Float64(data=1.5))
    (result,) = rig.node.set_parameters([Parameter('speed', value=1.0)])
    assert result.successful
    graph.spin_until(lambda: rig.speed == pytest.approx(0.1))
    graph.spin_until(lambda: 'refused the speed 1.5' in capfd.readouterr().err)
    assert rig.node.get_parameter('speed').value == 1.0


def test_without_the_echo_of_its_commands_it_does_not_move(graph: RosGraph) -> None:
    rig = Rig(graph, echo_topic='arm/state', echo_timeout=1.0)
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.status.refused_chunks == 1 and rig.speed == 0)
    assert rig.status.code == Code.ECHO_MISSING
    echo = graph.outbox(message_type('sensor_msgs/JointState'), 'arm/state')
    timer = graph.probe.create_timer(0.05, lambda: echo.publish(message_type('sensor_msgs/JointState')()))
    graph.spin_until(lambda: rig.status.code == Code.NO_CHUNK)
    rig.send(0.1, rows=400)
    graph.spin_until(lambda: rig.speed > 0.05)
    graph.probe.destroy_timer(timer)
    rig.wait_for(ExecutionStatus.HOLDING, Code.ECHO_MISSING)
    assert rig.speed == 0 and 'arm/state' in rig.status.message


def test_state_that_stops_coming_drops_the_plan(graph: RosGraph) -> None:
    rig = Rig(graph, contract='metaworld')
    graph.spin_until(lambda: rig.speed > 0.05 or not rig.send(0.1, rows=400))
    rig.unplugged = True
    rig.wait_for(ExecutionStatus.HOLDING, Code.STATE_STALE)
    assert rig.speed == 0 and 'ee_position' in rig.status.message
    rig.unplugged = False
    rig.wait_for(ExecutionStatus.HOLDING, Code.NO_CHUNK)


def test_a_chunk_that_is_not_sure_is_followed_slowly_or_not_at_all(graph: RosGraph) -> None:
    rig = Rig(graph, least_confidence=0.2, careful_below=0.6)
    rig.send(0.1, rows=400, confidence=0.1)
    graph.spin_until(lambda: rig.status.code == Code.CHUNK_UNSURE)
    rig.send(0.1, rows=400, confidence=0.5)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.05))
    rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
    assert (rig.status.confidence, rig.status.speed) == (0.5, 0.5)
    assert 0 <= rig.status.delay < 60 and rig.status.tick_ms > 0
    assert (list(rig.status.refusal_codes), list(rig.status.refusal_counts)) == ([Code.CHUNK_UNSURE], [1])


@pytest.mark.parametrize(('schedule', 'interpolation'), [('synchronous', 'cubic'), ('ensembling', 'hold')])
def test_every_schedule_follows(graph: RosGraph, schedule: str, interpolation: str) -> None:
    rig = Rig(graph, schedule=schedule, interpolation=interpolation)
    for _ in range(2):
        rig.send(0.1)
        graph.spin_until(lambda: rig.speed == pytest.approx(0.1))


def test_joints_are_told_positions_and_velocities_and_how_to_stop(graph: RosGraph, tmp_path: Path) -> None:
    contract = RobotContract.load(find_contract('so101'))
    stream, received = contract.state[0], graph.inbox(JointTrajectory, 'arm_controller/joint_trajectory')
    path = write_patient(tmp_path, 'so101')
    node = graph.add(ExecutorNode(parameter_overrides=[Parameter('contract', value=path)]))
    assert node.autostart()
    states = graph.outbox(message_type(stream.message), stream.topic, STATE)
    chunks = graph.outbox(ChunkMessage, 'action_chunk', CHUNK)
    clock = node.get_clock()
    graph.probe.create_timer(0.02, lambda: states.publish(encode_state(stream, np.zeros(6), clock.now().nanoseconds)))
    graph.spin_until(lambda: received)      # a position is commanded once one is measured
    ramp = np.zeros((40, contract.action_dim), np.float32)
    ramp[:, 0] = 0.4 * 0.05 * np.arange(40)        # 0.4 rad/s in the first joint
    chunks.publish(chunk_to_message(ActionChunk(clock.now().nanoseconds, DT, ramp), contract))
    graph.spin_until(lambda: received[-1].points[0].velocities[0] > 0.2)
    points = received[-1].points
    assert from_time(points[0].time_from_start) == 10_000_000 and len(points) > 1
    assert not any(points[-1].velocities) and points[-1].positions[0] > points[0].positions[0]


def test_a_twist_stops_at_the_face_of_the_workspace(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.position = np.array([0.55, 0.6, 0.2])
    rig.send(0.1, rows=400)
    rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)
    graph.spin_until(lambda: rig.status.limited_ticks > 0)
    assert rig.speed == 0


def test_when_the_policy_is_killed_the_robot_holds_and_goes_on_with_the_next(
        graph: RosGraph, ros_environment: dict[str, str], python: str) -> None:
    rig = Rig(graph)
    for _ in range(2):
        policy = subprocess.Popen([python, '-c', CHUNK_PUBLISHER, CONTRACT.label, str(DT)], env=ros_environment)
        try:
            graph.spin_until(lambda: rig.speed > 0.05, deadline=60)
        finally:
            policy.send_signal(signal.SIGKILL)
            policy.wait()
        rig.wait_for(ExecutionStatus.HOLDING, Code.NO_CHUNK)
        graph.spin_until(lambda: rig.speed == 0)


class SimulatedTime:
    """Moves ``/clock`` and the robot's state along with it.

    Args:
        rig: whose executor uses simulated time.
    """

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._clock = rig.graph.outbox(Clock, '/clock', CLOCK)

    def jump(self, stamp: int) -> None:
        self._rig.report(stamp)
        self._clock.publish(Clock(clock=to_time(stamp)))
        state = self._rig.node._state
        self._rig.graph.spin_until(lambda: self._rig.now == stamp and state.ages(stamp)['ee_position'] == 0)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            stamp = self._rig.now + DT
            self.jump(stamp)
            self._rig.graph.spin_until(lambda stamp=stamp: self._rig.stamp == stamp)


def test_a_clock_that_jumps_backwards_drops_the_plan(graph: RosGraph) -> None:
    rig = Rig(graph, use_sim_time=True)
    clock = SimulatedTime(rig)
    for accepted, (start, code) in enumerate(((1_000 * DT, Code.NO_CHUNK), (500 * DT, Code.CLOCK_JUMP)), start=1):
        clock.jump(start)
        clock.step()
        assert rig.speed == 0
        graph.spin_until(lambda code=code: rig.status.code == code)
        rig.send(0.1, rows=1000)
        graph.spin_until(lambda accepted=accepted: rig.status.accepted_chunks == accepted)
        clock.step(3)
        assert rig.speed == pytest.approx(0.1)
        rig.wait_for(ExecutionStatus.FOLLOWING, Code.OK)


def test_in_simulated_time_every_step_of_the_clock_is_one_tick(graph: RosGraph) -> None:
    rig = Rig(graph, use_sim_time=True)
    clock = SimulatedTime(rig)
    clock.jump(1_000 * DT)
    clock.step(6)
    stamps = [from_time(twist.header.stamp) for twist in rig.twists]
    assert stamps[-6:] == [(1_001 + step) * DT for step in range(6)]
    assert len(set(stamps)) == len(stamps)


def test_the_trace_holds_one_row_for_each_tick(graph: RosGraph, tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'executor.csv'
    rig = Rig(graph, trace_file=str(path))
    rig.send(0.1, rows=6)
    rig.wait_for(ExecutionStatus.HOLDING, Code.NO_CHUNK)
    rig.node.trigger_deactivate()
    rows = list(csv.DictReader(path.open()))
    followed = [row for row in rows if row['chunk_id'] == '3']
    assert len(rows) == rig.status.ticks
    assert followed
    assert float(followed[-1]['command.ee.x']) == pytest.approx(0.1)
    assert float(followed[-1]['measured.ee_position.y']) == pytest.approx(0.6)
    assert abs(int(followed[0]['wall_time']) - time.time_ns()) < 60e9
    assert 0 < min(float(row['work_ms']) for row in rows)


def test_deactivation_slows_down_before_the_last_command(graph: RosGraph) -> None:
    rig = Rig(graph, control_hz=200.0)
    rig.send(0.2, rows=400)
    graph.spin_until(lambda: rig.speed == pytest.approx(0.2))
    before = len(rig.twists)
    rig.node.trigger_deactivate()
    graph.spin_until(lambda: rig.speed == 0)
    speeds = [twist.twist.linear.x for twist in rig.twists[before - 1:]]
    assert np.abs(np.diff(speeds)).max() <= 8.0 * 0.005 + 1e-6
    assert len(speeds) >= 4


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_with_a_safe_command_and_code_0(
        graph: RosGraph, ros_environment: dict[str, str], python: str, number: int) -> None:
    twists = graph.inbox(TwistStamped, 'servo/twist_cmd')
    chunks = graph.probe.create_publisher(ChunkMessage, 'action_chunk', CHUNK)
    poses = graph.probe.create_publisher(message_type(CONTRACT.state[0].message), CONTRACT.state[0].topic, STATE)
    actions = np.tile(np.array([0.1, 0, 0, 1], np.float32), (100, 1))
    clock = graph.probe.get_clock()

    def drive() -> None:
        now = clock.now().nanoseconds
        poses.publish(encode_state(CONTRACT.state[0], np.array([0.0, 0.6, 0.2]), now))
        chunks.publish(chunk_to_message(ActionChunk(now, DT, actions, id=1), CONTRACT))

    graph.probe.create_timer(0.1, drive)
    process = subprocess.Popen([python, '-m', 'flow_vla_ros.executor_node', '--ros-args', '-p', 'autostart:=true'],
                               env=ros_environment)
    try:
        graph.spin_until(lambda: twists and twists[-1].twist.linear.x > 0.05, deadline=60)
        process.send_signal(number)
        graph.spin_until(lambda: process.poll() is not None)
        graph.spin_until(lambda: twists[-1].twist.linear.x == 0)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0


@pytest.mark.parametrize(('parameters', 'said'), [
    ({'control_hz': 5.0}, 'allowed: 20 to 200'), ({'execute': 4}, "allowed: 1 or more with 'synchronous'"),
    ({'echo_topic': 'echo', 'echo_type': 'std_msgs/Nothing'}, 'std_msgs/Nothing'),
    ({'contract': 'ur5e'}, 'control-msgs'), ({'contract': 'metawrld'}, "did you mean 'metaworld'"),
    ({'trace_file': '/proc/none/trace.csv'}, 'trace_file')])
def test_a_setting_that_cannot_be_used_refuses_to_configure(
        graph: RosGraph, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, parameters: dict,
        said: str) -> None:
    control_messages.remove(monkeypatch)
    overrides = [Parameter(key, value=value) for key, value in parameters.items()]
    node = graph.add(ExecutorNode(parameter_overrides=overrides))
    assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert said in capfd.readouterr().err
