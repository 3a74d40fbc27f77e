"""Simulator and expert on the graph: clock, sensors, commands, resets, lockstep."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS tests need the ROS wheels or a sourced distribution')
pytest.importorskip('metaworld')

from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool
from std_srvs.srv import SetBool

from flow_vla.msg import SimulationState
from flow_vla.srv import ResetSimulation
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.simulation.metaworld import TASKS
from flow_vla_ros import codecs, qos
from flow_vla_ros.command_bridge import CommandBridge
from flow_vla_ros.sim.expert_node import ExpertNode
from flow_vla_ros.sim.sim_node import SimNode

PERIOD = 50_000_000


@pytest.fixture
def contract():
    return RobotContract.load(find_contract('metaworld'))


def start(graph, node_class, **parameters):
    node = graph.add(node_class(parameter_overrides=[Parameter(key, value=value) for key, value in parameters.items()]))
    assert node.autostart()
    return node


def test_every_stream_carries_the_same_stamp_in_the_contracts_shape(graph, contract):
    clocks, poses, states = graph.inbox(Clock, '/clock'), graph.inbox(PoseStamped, 'ee_pose'), []
    states = graph.inbox(SimulationState, 'sim/state')
    images = graph.inbox(Image, 'camera/front/image_raw')
    infos = graph.inbox(CameraInfo, 'camera/front/camera_info')
    start(graph, SimNode, real_time_factor=2.0)
    graph.spin_until(lambda: len(images) > 5 and len(infos) > 5)
    stamps = [codecs.from_time(image.header.stamp) for image in images]
    assert set(np.diff(stamps)) == {PERIOD}
    for inbox in (poses, states, infos):
        assert {codecs.from_time(message.header.stamp) for message in inbox} & set(stamps)
    assert {codecs.from_time(message.clock) for message in clocks} & set(stamps)
    assert (images[0].height, images[0].width, images[0].encoding) == (*contract.cameras[0].resolution, 'rgb8')
    assert infos[0].k[0] == pytest.approx(168 / 2 / np.tan(np.radians(43) / 2))
    assert np.frombuffer(images[-1].data, np.uint8).std() > 10


def moved(poses, steps):
    """Return how far the hand went along x in the last steps, m."""
    return abs(poses[-1].pose.position.x - poses[-1 - steps].pose.position.x)


def test_a_command_moves_the_hand_and_silence_stops_it(graph, contract):
    poses = graph.inbox(PoseStamped, 'ee_pose')
    sim = start(graph, SimNode, task='window-open')
    bridge = CommandBridge(graph.probe, contract)
    graph.spin_until(lambda: poses)
    start_x = poses[-1].pose.position.x

    def drive():
        bridge.publish(np.array([0.2, 0, 0, 0]), codecs.from_time(poses[-1].header.stamp))
        return poses[-1].pose.position.x > start_x + 0.05

    graph.spin_until(drive)
    graph.spin_until(lambda: moved(poses, 10) < 2e-3)
    count = len(poses)
    graph.spin_until(lambda: len(poses) > count + 20)
    assert moved(poses, 20) < 0.02  # under command it would be 0.2
    assert sim.active


def test_reset_changes_the_scene_and_time_goes_on(graph):
    states = graph.inbox(SimulationState, 'sim/state')
    start(graph, SimNode, task='drawer-open', seed=1, real_time_factor=4.0)
    graph.spin_until(lambda: len(states) > 3)
    answer = graph.call(ResetSimulation, 'sim/reset', ResetSimulation.Request(task='faucet-close', seed=9))
    assert answer.success and answer.instruction == TASKS['faucet-close']
    graph.spin_until(lambda: states[-1].task == 'faucet-close')
    first = next(state for state in states if state.task == 'faucet-close')
    assert (first.steps, first.seed, first.success) == (0, 9, False)
    stamps = [codecs.from_time(state.header.stamp) for state in states]
    assert min(np.diff(stamps)) > 0


def test_reset_to_an_unknown_task_is_refused_and_named(graph):
    states = graph.inbox(SimulationState, 'sim/state')
    start(graph, SimNode, task='drawer-open')
    answer = graph.call(ResetSimulation, 'sim/reset', ResetSimulation.Request(task='drawer-opn', seed=0))
    assert not answer.success and "did you mean 'drawer-open'" in answer.message
    count = len(states)
    graph.spin_until(lambda: len(states) > count)
    assert states[-1].task == 'drawer-open'


def test_lockstep_waits_for_every_part_of_the_command(graph, contract):
    states, sentinel = graph.inbox(SimulationState, 'sim/state'), graph.inbox(Bool, 'sentinel')
    start(graph, SimNode, lockstep=True)
    graph.spin_until(lambda: states)
    stamp = codecs.from_time(states[-1].header.stamp)
    twist, gripper = contract.actions
    publishers = [graph.outbox(codecs.message_type(part.message), part.topic, qos.COMMAND)
                  for part in contract.actions]
    ring = graph.outbox(Bool, 'sentinel')
    publishers[0].publish(codecs.encode_action(twist, np.zeros(3), stamp))
    ring.publish(Bool())
    graph.spin_until(lambda: sentinel)
    assert len(states) == 1
    publishers[1].publish(codecs.encode_action(gripper, np.zeros(1), stamp))
    graph.spin_until(lambda: len(states) == 2)
    assert codecs.from_time(states[-1].header.stamp) == stamp + PERIOD


def test_commands_that_are_not_finite_are_not_executed(graph, contract):
    states, sentinel = graph.inbox(SimulationState, 'sim/state'), graph.inbox(Bool, 'sentinel')
    start(graph, SimNode, lockstep=True)
    graph.spin_until(lambda: states)
    stamp = codecs.from_time(states[-1].header.stamp)
    publishers = [graph.outbox(codecs.message_type(part.message), part.topic, qos.COMMAND)
                  for part in contract.actions]
    for part, publisher in zip(contract.actions, publishers):
        publisher.publish(codecs.encode_action(part, np.full(part.dim, np.nan), stamp))
    ring = graph.outbox(Bool, 'sentinel')
    ring.publish(Bool())
    graph.spin_until(lambda: sentinel)
    assert len(states) == 1
    CommandBridge(graph.probe, contract).publish(np.zeros(4), stamp)
    graph.spin_until(lambda: len(states) == 2)


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_expert_succeeds_in_lockstep_and_then_falls_silent(graph, noise):
    states, sentinel = graph.inbox(SimulationState, 'sim/state', 1000), graph.inbox(Bool, 'sentinel')
    start(graph, SimNode, lockstep=True, task='coffee-button', seed=3, execution_noise=noise)
    start(graph, ExpertNode, hold_steps=4)
    graph.spin_until(lambda: states)
    assert graph.call(SetBool, 'expert/enable', SetBool.Request(data=True)).success
    graph.spin_until(lambda: sum(state.success for state in states[-4:]) == 4, 60.0)
    count = len(states)
    ring = graph.outbox(Bool, 'sentinel')
    ring.publish(Bool())
    graph.spin_until(lambda: sentinel)
    assert len(states) == count
