"""Simulator and expert on the graph: clock, sensors, commands, resets, lockstep."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS tests need the ROS wheels or a sourced distribution')
pytest.importorskip('metaworld')

from geometry_msgs.msg import PoseStamped
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState
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


@pytest.fixture
def arm():
    return RobotContract.load(find_contract('so101'))


def test_an_arm_ticks_at_control_rate_and_is_seen_at_policy_rate(graph, arm):
    clocks, joints = graph.inbox(Clock, '/clock', 1000), graph.inbox(JointState, 'joint_states', 1000)
    images = [graph.inbox(Image, camera.topic) for camera in arm.cameras]
    start(graph, SimNode, contract='so101', real_time_factor=0.5)
    graph.spin_until(lambda: all(len(seen) > 4 for seen in images) and len(joints) > 25)
    for seen in images:
        assert set(np.diff([codecs.from_time(image.header.stamp) for image in seen])) == {PERIOD}
    stamps = [codecs.from_time(state.header.stamp) for state in joints]
    assert set(np.diff(stamps)) == {PERIOD // 5}
    assert set(np.diff([codecs.from_time(clock.clock) for clock in clocks])) == {PERIOD // 5}
    assert {codecs.from_time(image.header.stamp) for image in images[0]} <= set(stamps)
    assert tuple(joints[0].name) == arm.state[0].names


@pytest.mark.parametrize('message', ['trajectory_msgs/JointTrajectory', 'std_msgs/Float64MultiArray'])
def test_an_arm_follows_joint_angles_and_holds_them(graph, arm, tmp_path, message):
    parts = tuple(part.model_copy(update={'message': message}) for part in arm.actions)
    arm = arm.model_copy(update={'actions': parts})
    arm.dump(tmp_path / 'so101.yaml')
    joints = graph.inbox(JointState, 'joint_states', 1000)
    start(graph, SimNode, contract=str(tmp_path / 'so101.yaml'))
    bridge = CommandBridge(graph.probe, arm)
    graph.spin_until(lambda: joints)
    goal = np.array(joints[-1].position) + [0.2, 0.1, 0.1, -0.1, 0.3, 0.4]
    graph.spin_until(lambda: not bridge.publish(goal, codecs.from_time(joints[-1].header.stamp))
                     and np.abs(np.array(joints[-1].position) - goal).max() < 0.06)
    count = len(joints)
    graph.spin_until(lambda: len(joints) > count + 50)
    assert np.abs(np.array(joints[-1].position) - goal).max() < 0.06, 'a position stays in force'


def test_commands_without_a_header_make_steps_in_lockstep(graph, arm, tmp_path):
    parts = tuple(part.model_copy(update={'message': 'std_msgs/Float64MultiArray'}) for part in arm.actions)
    arm = arm.model_copy(update={'actions': parts})
    arm.dump(tmp_path / 'so101.yaml')
    states, joints = graph.inbox(SimulationState, 'sim/state'), graph.inbox(JointState, 'joint_states')
    start(graph, SimNode, contract=str(tmp_path / 'so101.yaml'), lockstep=True)
    bridge = CommandBridge(graph.probe, arm)
    graph.spin_until(lambda: states and joints)
    for count in (2, 3):
        bridge.publish(np.array(joints[0].position), 0)
        graph.spin_until(lambda count=count: len(states) == count and len(joints) == count)
    assert [state.steps for state in states] == [0, 1, 2]
    assert set(np.diff([codecs.from_time(state.header.stamp) for state in states])) == {PERIOD}


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


def test_commands_that_cannot_be_read_are_not_executed(graph, arm):
    states, sentinel = graph.inbox(SimulationState, 'sim/state'), graph.inbox(Bool, 'sentinel')
    node = start(graph, SimNode, contract='so101', lockstep=True)
    graph.spin_until(lambda: states)
    part = arm.actions[0]
    graph.outbox(codecs.message_type(part.message), part.topic, qos.COMMAND).publish(
        codecs.message_type(part.message)())
    graph.outbox(Bool, 'sentinel').publish(Bool())
    graph.spin_until(lambda: sentinel)
    assert node.active and len(states) == 1
    CommandBridge(graph.probe, arm).publish(np.zeros(arm.action_dim), codecs.from_time(states[-1].header.stamp))
    graph.spin_until(lambda: len(states) == 2)


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


@pytest.mark.parametrize(('robot', 'task', 'noise'), [
    ('metaworld', 'coffee-button', 0.0), ('metaworld', 'coffee-button', 0.3), ('so101', 'reach-green', 0.3)])
def test_expert_succeeds_in_lockstep_and_then_falls_silent(graph, robot, task, noise):
    states, sentinel = graph.inbox(SimulationState, 'sim/state', 1000), graph.inbox(Bool, 'sentinel')
    start(graph, SimNode, contract=robot, lockstep=True, task=task, seed=3, execution_noise=noise)
    start(graph, ExpertNode, contract=robot, hold_steps=4)
    graph.spin_until(lambda: states)
    assert graph.call(SetBool, 'expert/enable', SetBool.Request(data=True)).success
    graph.spin_until(lambda: sum(state.success for state in states[-4:]) == 4, 60.0)
    count = len(states)
    ring = graph.outbox(Bool, 'sentinel')
    ring.publish(Bool())
    graph.spin_until(lambda: sentinel)
    assert len(states) == count
