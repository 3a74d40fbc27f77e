"""The bridge from action vectors to commands: all or nothing, and gripper goals only when they say something new."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import control_messages
from rclpy.task import Future
from ros_graph import RosGraph
from std_msgs.msg import Float64MultiArray

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ActionNotFinite, ConfigError
from flow_vla_ros import command_bridge
from flow_vla_ros.command_bridge import CommandBridge

SECOND = 10 ** 9
CONTRACT = RobotContract.load(find_contract('ur5e'))


class Gripper:
    """Stands for the action client, and for the gripper behind it.

    Args:
        arguments: as of `rclpy.action.ActionClient`.
    """

    made: list[Gripper] = []

    def __init__(self, *arguments: Any) -> None:
        self.goals: list[float] = []
        self.there = self.willing = True
        self.made.append(self)

    def server_is_ready(self) -> bool:
        return self.there

    def send_goal_async(self, goal: Any) -> Future:
        self.goals.append(goal.command.position)
        answer: Future = Future()
        answer.accepted = self.willing
        answer.set_result(answer)
        return answer

    def destroy(self) -> None:
        self.made.remove(self)


@pytest.fixture
def gripper(monkeypatch: pytest.MonkeyPatch) -> type[Gripper]:
    """Put the stand-ins into place."""
    control_messages.install(monkeypatch)
    monkeypatch.setattr(command_bridge, 'ActionClient', Gripper)
    Gripper.made.clear()
    return Gripper


def action(gripper: float) -> np.ndarray:
    return np.array([0.0, -1.5, 1.5, 0, 0, 0, gripper], np.float32)


def test_goals_go_out_on_change_and_never_faster_than_the_rate(graph: RosGraph, gripper: type[Gripper]) -> None:
    bridge = CommandBridge(graph.probe, CONTRACT)   # threshold 0.02 rad, 5 Hz
    times = {0.0: 0.0, 0.01: 0.5, 0.19: 0.5, 0.2: 0.5, 0.21: 0.6, 1.0: 0.51, 2.0: 0.53}
    for time, value in times.items():
        bridge.publish(action(value), round(time * SECOND))
    assert gripper.made[0].goals == pytest.approx([0.0, 0.5, 0.53])


def test_a_goal_that_was_not_taken_is_sent_again(graph: RosGraph, gripper: type[Gripper]) -> None:
    bridge = CommandBridge(graph.probe, CONTRACT)
    hand = gripper.made[0]
    hand.there = False
    bridge.publish(action(0.5), 0)
    assert not hand.goals
    hand.there, hand.willing = True, False
    bridge.publish(action(0.5), SECOND)
    hand.willing = True
    bridge.publish(action(0.5), 2 * SECOND)
    bridge.publish(action(0.5), 3 * SECOND)
    assert hand.goals == pytest.approx([0.5, 0.5])


def test_nothing_is_sent_unless_all_of_it_is_finite(graph: RosGraph, gripper: type[Gripper]) -> None:
    bridge = CommandBridge(graph.probe, CONTRACT)
    received = graph.inbox(Float64MultiArray, 'forward_position_controller/commands')
    for values, velocities in ((action(np.nan), None), (action(0.0), action(np.inf)), (action(0.0)[:-1], None)):
        with pytest.raises(ActionNotFinite):
            bridge.publish(values, 0, velocities=velocities)
    bridge.publish(action(0.25), SECOND, ['arm'])
    graph.spin_until(lambda: received)
    assert list(received[0].data) == action(0.25)[:6].tolist()
    assert not gripper.made[0].goals and len(received) == 1
    bridge.destroy()
    assert not gripper.made


def test_without_the_package_of_the_action_there_is_no_bridge(
        graph: RosGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    control_messages.remove(monkeypatch)
    with pytest.raises(ConfigError, match='control-msgs'):
        CommandBridge(graph.probe, CONTRACT)
