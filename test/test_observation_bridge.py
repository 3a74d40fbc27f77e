"""The observation bridge on a bare node: pushes without decoding, ages, rates, missing streams, jumps of the clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import rclpy
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ClockJump, ObservationError, StreamMissing, StreamStale
from flow_vla_core.messages import make_observation
from flow_vla_ros.codecs import encode_image, encode_state, message_type, to_time
from flow_vla_ros.observation_bridge import ObservationBridge
from flow_vla_ros.qos import CLOCK, LATCHED, RELIABLE_SENSOR, STATE

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
START = 1_000 * DT
NAMES = [stream.name for stream in CONTRACT.streams]


class Rig:
    """Puts a bridge on a bare node in simulated time, and publishers for all that it listens to."""

    def __init__(self, graph: RosGraph) -> None:
        self.graph = graph
        self.node = graph.add(rclpy.create_node('host', parameter_overrides=[Parameter('use_sim_time', value=True)]))
        self.samples, self.jumps = 0, 0
        self.bridge = ObservationBridge(self.node, CONTRACT, self.count_sample, self.count_jump)
        self.clock = graph.outbox(Clock, '/clock', CLOCK)
        self.words = graph.outbox(String, CONTRACT.instruction.topic, LATCHED)
        self.publishers = {camera.name: graph.outbox(message_type('sensor_msgs/Image'), camera.topic, RELIABLE_SENSOR)
                           for camera in CONTRACT.cameras}
        self.publishers |= {stream.name: graph.outbox(message_type(stream.message), stream.topic, STATE)
                            for stream in CONTRACT.state}
        self.set_time(START)

    def count_sample(self) -> None:
        self.samples += 1

    def count_jump(self) -> None:
        self.jumps += 1

    def set_time(self, stamp: int) -> None:
        self.clock.publish(Clock(clock=to_time(stamp)))
        self.graph.spin_until(lambda: self.node.get_clock().now().nanoseconds == stamp)

    def send(self, name: str, stamp: int, **changes: Any) -> None:
        stream = next(stream for stream in CONTRACT.streams if stream.name == name)
        if stream in CONTRACT.cameras:
            message = encode_image(np.full((*stream.resolution, 3), 9, np.uint8), stream, stamp)
        else:
            message = encode_state(stream, np.full(len(stream.names), 0.5), stamp)
        for key, value in changes.items():
            setattr(message, key, value)
        self.publishers[name].publish(message)

    def send_all(self, stamp: int, *left_out: str) -> None:
        expected = self.samples + len(NAMES) - len(left_out)
        for name in NAMES:
            if name not in left_out:
                self.send(name, stamp)
        self.graph.spin_until(lambda: self.samples == expected)


def test_it_selects_what_belongs_together_and_leaves_messages_undecoded(graph: RosGraph) -> None:
    rig = Rig(graph)
    with pytest.raises(StreamMissing, match='front, gripper_cam, ee_position, gripper'):
        rig.bridge.select()
    rig.send_all(START)
    rig.send_all(START + DT, 'gripper')
    aligned = rig.bridge.select()
    assert aligned.stamp == START
    message = aligned.samples['front'][0][1]
    assert (type(message).__name__, message.height) == ('Image', 168)
    observation = make_observation(CONTRACT, aligned, 'go')
    np.testing.assert_allclose(observation.state, [[0.5] * 4])
    newest_image, complete = rig.bridge.published(aligned)
    assert 0 < newest_image <= complete


def test_an_invalid_message_is_kept_as_it_is_until_somebody_decodes_it(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.send_all(START, 'front')
    rig.send('front', START, encoding='bgr8')
    graph.spin_until(lambda: rig.samples == 4)
    aligned = rig.bridge.select()
    with pytest.raises(ObservationError, match='bgr8'):
        make_observation(CONTRACT, aligned, 'go')


def test_ages_and_rates_are_those_of_the_stamps(graph: RosGraph) -> None:
    rig = Rig(graph)
    assert set(rig.bridge.ages().values()) == {-1.0}
    for step in range(4):
        rig.set_time(START + step * DT)
        rig.send_all(START + step * DT, 'gripper_cam')
    rig.set_time(START + 5 * DT)
    assert rig.bridge.ages()['front'] == pytest.approx(0.1)
    assert rig.bridge.ages()['gripper_cam'] == -1
    assert rig.bridge.rates()['ee_position'] == pytest.approx(20.0)


def test_a_stale_stream_is_named_and_logged_once_each_way(graph: RosGraph, capfd: pytest.CaptureFixture) -> None:
    rig = Rig(graph)
    rig.send_all(START)
    rig.set_time(START + 8 * DT)
    rig.send_all(START + 8 * DT, 'front')
    with pytest.raises(StreamStale, match='front: newest sample is 0.400 s old, allowed: 0.3 s'):
        rig.bridge.select()
    for _ in range(3):
        rig.bridge.log_changes()
    rig.send_all(START + 8 * DT)
    for _ in range(3):
        rig.bridge.log_changes()
    said = capfd.readouterr().err
    assert said.count('nothing fresh on front') == 1
    assert said.count('every stream is fresh') == 1


def test_an_instruction_from_before_the_node_is_in_force(graph: RosGraph) -> None:
    publisher = graph.probe.create_publisher(String, CONTRACT.instruction.topic, LATCHED)
    publisher.publish(String(data='open the faucet'))
    node = graph.add(rclpy.create_node('late'))
    bridge = ObservationBridge(node, CONTRACT)
    assert bridge.instruction is None
    graph.spin_until(lambda: bridge.instruction == 'open the faucet')
    publisher.publish(String(data=''))
    graph.spin_until(lambda: bridge.instruction == '')


def test_a_clock_that_jumps_backwards_clears_the_buffers_and_is_reported(graph: RosGraph) -> None:
    rig = Rig(graph)
    rig.send_all(START)
    rig.bridge.select()
    early = START // 2
    rig.set_time(early)
    with pytest.raises(ClockJump, match='waiting for new input'):
        rig.bridge.select()
    assert rig.jumps == 1
    rig.send('front', START + DT)  # was in flight when the clock jumped
    rig.send_all(early)
    assert rig.bridge.select().stamp == early
    assert rig.jumps == 1


def test_it_leaves_nothing_on_its_node(graph: RosGraph) -> None:
    node = graph.add(rclpy.create_node('host'))
    before = len(list(node.subscriptions))
    bridge = ObservationBridge(node, CONTRACT)
    assert len(list(node.subscriptions)) == before + len(NAMES) + 1
    bridge.destroy()
    assert len(list(node.subscriptions)) == before
