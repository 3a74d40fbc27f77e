"""Messages get the time at which they came, however late they are taken."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2')

from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from flow_vla_ros import clock_tap, codecs, qos
from flow_vla_ros.topic_taps import TopicTaps

if TYPE_CHECKING:
    from ros_graph import RosGraph

SECOND = 10 ** 9


def test_each_message_has_the_clock_before_it_though_all_are_taken_at_once(graph: RosGraph) -> None:
    node = graph.probe
    node.set_parameters([Parameter('use_sim_time', value=True)])
    received: list[tuple[str, int]] = []
    taps = TopicTaps(node, {'/words': 'std_msgs/msg/String'},
                     lambda topic, data, log_time, stamp: received.append((data[8:-1].decode(), log_time)))
    clock, words = graph.outbox(Clock, '/clock', qos.CLOCK, readers=2), graph.outbox(String, '/words', 100)
    for step in range(1, 40):  # nobody spins meanwhile
        clock.publish(Clock(clock=codecs.to_time(step * SECOND)))
        words.publish(String(data=str(step)))
    wanted = [(str(step), step * SECOND) for step in range(1, 40)]
    end = time.monotonic() + 30
    while len(received) < len(wanted) and time.monotonic() < end:
        taps.drain()
    assert received == wanted


def test_a_clock_beside_silent_topics_fills_no_memory(graph: RosGraph) -> None:
    node = graph.probe
    node.set_parameters([Parameter('use_sim_time', value=True)])
    received: list[int] = []
    taps = TopicTaps(node, {'/words': 'std_msgs/msg/String'}, lambda *message: received.append(message[2]))
    clock, words = graph.outbox(Clock, '/clock', qos.CLOCK, readers=2), graph.outbox(String, '/words', 100)
    for step in range(1, 3 * clock_tap.DEPTH):
        clock.publish(Clock(clock=codecs.to_time(step * SECOND)))
        if step % 200 == 0:
            taps.drain()
    graph.spin_until(lambda: taps.drain() or node.get_clock().now().nanoseconds == step * SECOND)
    assert len(taps._clock._told) <= clock_tap.DEPTH
    words.publish(String(data='now'))
    graph.spin_until(lambda: taps.drain() or received)
    assert received == [step * SECOND]


def test_in_real_time_it_is_the_time_of_receipt(graph: RosGraph) -> None:
    received: list[int] = []
    taps = TopicTaps(graph.probe, {'/words': 'std_msgs/msg/String'},
                     lambda topic, data, log_time, stamp: received.append(log_time))
    words = graph.outbox(String, '/words', 10)
    before = time.time_ns()
    words.publish(String(data='now'))
    end = time.monotonic() + 30
    while not received and time.monotonic() < end:
        taps.drain()
    assert received and before <= received[0] <= time.time_ns()
