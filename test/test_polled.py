"""State that is asked for: the newest sample counts, and none of them wakes an executor."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from ros_graph import RosGraph

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code
from flow_vla_ros import state_inbox
from flow_vla_ros.codecs import encode_state, message_type
from flow_vla_ros.qos import STATE
from flow_vla_ros.state_inbox import StateInbox
from flow_vla_ros.watchdogs import EchoWatch

STREAM = RobotContract.load(find_contract('metaworld')).state[0]
SECOND = 10 ** 9


def test_only_the_newest_sample_is_decoded_and_a_bad_one_leaves_none(graph: RosGraph,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [], state_inbox.decode_state
    monkeypatch.setattr(state_inbox, 'decode_state', lambda *given: decoded.append(given) or decode(*given))
    inbox = StateInbox(graph.probe, RobotContract.load(find_contract('metaworld')), [STREAM.name])
    source = graph.outbox(message_type(STREAM.message), STREAM.topic, STATE)
    heard = graph.inbox(message_type(STREAM.message), STREAM.topic, STATE)
    for number in range(1, 4):
        source.publish(encode_state(STREAM, np.full(3, float(number)), SECOND + number))
    graph.spin_until(lambda: len(heard) == 3)
    assert not decoded
    np.testing.assert_array_equal(inbox.fresh(SECOND)[STREAM.name], np.full(3, 3.0))
    assert len(decoded) == 1 and list(inbox.newest()) == [STREAM.name]
    source.publish(encode_state(STREAM, np.full(3, np.nan), SECOND + 4))
    graph.spin_until(lambda: not inbox.fresh(SECOND))
    assert inbox.ages(SECOND) == {STREAM.name: -1.0}


def test_no_executor_waits_for_what_is_polled(graph: RosGraph) -> None:
    before = set(graph.probe.subscriptions)
    watch = EchoWatch(graph.probe, 'controller/state', STREAM.message, 0.5)
    polled, = set(graph.probe.subscriptions) - before
    assert not polled.callback_group.can_execute(polled)
    assert watch.complaint(SECOND)[0] == Code.ECHO_MISSING
    source = graph.outbox(message_type(STREAM.message), 'controller/state', STATE)
    heard = graph.inbox(message_type(STREAM.message), 'controller/state', STATE)
    source.publish(encode_state(STREAM, np.zeros(3), SECOND))
    graph.spin_until(lambda: watch.complaint(SECOND)[0] == Code.OK)
    assert watch.complaint(2 * SECOND)[0] == Code.ECHO_MISSING
    heard.clear()
    source.publish(encode_state(STREAM, np.zeros(3), SECOND))
    graph.spin_until(lambda: heard)
    watch.clear()  # what came before an activation says nothing about now
    assert watch.complaint(2 * SECOND)[0] == Code.ECHO_MISSING
