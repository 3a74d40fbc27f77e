"""What a policy saw live equals, frame for frame, what its recorded bag gives offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import random
from typing import Any

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import numpy as np
import rclpy
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from rosgraph_msgs.msg import Clock

from flow_vla.msg import Episode
from flow_vla.srv import StartEpisode, StopEpisode
from flow_vla_core.align import Aligned, Synchroniser
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import Windows, read_episode
from flow_vla_core.data.bag_reader import read_bag
from flow_vla_core.errors import ObservationError, StreamMissing
from flow_vla_core.messages import make_observation
from flow_vla_core.types import Observation
from flow_vla_ros.codecs import encode_action, encode_image, encode_state, message_type, to_time
from flow_vla_ros.observation_bridge import ObservationBridge
from flow_vla_ros.qos import CLOCK, RECORD
from flow_vla_ros.recorder_node import RecorderNode

START = 1_700_000_000 * 10 ** 9
MILLISECOND = 10 ** 6
PERIODS = {'front': 33, 'gripper_cam': 47, 'ee_position': 9, 'gripper': 21, 'command': 50}  # ms, out of phase
DURATION = 1000  # ms


@pytest.fixture
def contract(tmp_path: Path) -> RobotContract:
    """Meta-World's contract with a history of two observations, as a file."""
    contract = RobotContract.load(find_contract('metaworld')).model_copy(update={'history': 2})
    contract.dump(tmp_path / 'contract.yaml')
    return RobotContract.load(tmp_path / 'contract.yaml')


def arrivals() -> list[tuple[int, str, int]]:
    """List arrival time, stream and stamp: every stream keeps its order, but some wait longer on the way."""
    generator = random.Random(3)
    events = []
    for phase, (name, period) in enumerate(PERIODS.items()):
        arrival = 0
        for time in range(3 * phase, DURATION, period):
            stamp = START + time * MILLISECOND + generator.randrange(2 * MILLISECOND)
            arrival = max(arrival + 1, stamp + generator.randrange(30 * MILLISECOND))
            events.append((arrival, name, stamp))
    return sorted(events)


class Robot:
    """Publishes random images and states, in simulated time.

    Args:
        graph: to publish on.
        contract: says what.
        nodes: that follow the time.
    """

    def __init__(self, graph: RosGraph, contract: RobotContract, *nodes: Any) -> None:
        self.graph, self.contract, self.nodes = graph, contract, nodes
        self.random = np.random.default_rng(1)
        self.clock = graph.outbox(Clock, '/clock', CLOCK, readers=len(nodes))
        self.publishers = {stream.name: graph.outbox(message_type(getattr(stream, 'message', 'sensor_msgs/Image')),
                                                     stream.topic, RECORD, readers=2) for stream in contract.streams}
        self.commands = {part.name: graph.outbox(message_type(part.message), part.topic, RECORD)
                         for part in contract.actions}

    def set_time(self, time: int) -> None:
        self.clock.publish(Clock(clock=to_time(time)))
        self.graph.spin_until(lambda: all(node.get_clock().now().nanoseconds == time for node in self.nodes))

    def send(self, name: str, stamp: int) -> None:
        if name == 'command':
            for part in self.contract.actions:
                self.commands[part.name].publish(encode_action(part, self.random.uniform(-1, 1, part.dim), stamp))
            return
        stream = next(stream for stream in self.contract.streams if stream.name == name)
        if stream in self.contract.cameras:
            pixels = self.random.integers(0, 256, (*stream.resolution, 3), np.uint8)
            self.publishers[name].publish(encode_image(pixels, stream, stamp))
        else:
            numbers = self.random.uniform(-1, 1, len(stream.names))
            self.publishers[name].publish(encode_state(stream, numbers, stamp))


def capture(graph: RosGraph, contract: RobotContract, folder: Path) -> tuple[list[Aligned], Path]:
    """Record while a bridge selects after each sample; return what it selected, and the bag."""
    overrides = {'use_sim_time': True, 'contract': str(folder / 'contract.yaml'), 'folder': str(folder / 'bags'),
                 'min_free_mb': 1, 'catch_up': 0.0, 'check': False}
    recorder = graph.add(RecorderNode(parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()]))
    assert recorder.autostart()
    host = graph.add(rclpy.create_node('host', parameter_overrides=[Parameter('use_sim_time', value=True)]))
    arrived: list[None] = []
    bridge = ObservationBridge(host, contract, lambda: arrived.append(None))
    robot = Robot(graph, contract, recorder, host)
    robot.set_time(START)
    request = StartEpisode.Request(instruction='open the faucet')
    graph.spin_until(lambda: graph.call(StartEpisode, 'recorder/start', request).success)
    seen = list(select_after_each(graph, robot, bridge, arrived))
    answer = graph.call(StopEpisode, 'recorder/stop', StopEpisode.Request(keep=True, outcome=Episode.SUCCESS))
    assert answer.success, answer.message
    return seen, Path(answer.path)


def select_after_each(graph: RosGraph, robot: Robot, bridge: ObservationBridge, arrived: list) -> Iterator[Aligned]:
    for time, name, stamp in arrivals():
        robot.set_time(time)
        expected = len(arrived) + (name != 'command')
        robot.send(name, stamp)
        graph.spin_until(lambda expected=expected: len(arrived) >= expected)
        try:
            yield bridge.select()
        except ObservationError as error:
            assert isinstance(error, StreamMissing) and stamp < START + 200 * MILLISECOND, error


def replay(bag: Path, contract: RobotContract) -> Synchroniser:
    """Push everything that a bag holds."""
    recorded = read_bag(bag)
    synchroniser = Synchroniser.for_contract(contract)
    for stream in contract.streams:
        for stamp, data in recorded.stamped('/' + stream.topic):
            synchroniser.push(stream.name, stamp, recorded.decode('/' + stream.topic, data))
    return synchroniser


def assert_equal(live: Observation, offline: Observation) -> None:
    assert (live.stamp, live.stamps, live.instruction) == (offline.stamp, offline.stamps, offline.instruction)
    np.testing.assert_array_equal(live.state, offline.state)
    assert live.images.keys() == offline.images.keys()
    for name in live.images:
        np.testing.assert_array_equal(live.images[name], offline.images[name])


def test_live_and_offline_are_equal(graph: RosGraph, contract: RobotContract, tmp_path: Path) -> None:
    seen, bag = capture(graph, contract, tmp_path)
    synchroniser = replay(bag, contract)
    references = {aligned.stamp: aligned for aligned in seen}
    assert len(references) > 30, 'too few different reference times to prove anything'
    for aligned in references.values():
        live = make_observation(contract, aligned, 'open the faucet')
        assert_equal(live, make_observation(contract, synchroniser.select(aligned.stamp), 'open the faucet'))
        assert len({stamp for stamps in live.stamps.values() for stamp in stamps}) > 2
    assert_grid_equals_episode(bag, contract, synchroniser)


def assert_grid_equals_episode(bag: Path, contract: RobotContract, synchroniser: Synchroniser) -> None:
    """Training windows of the bag hold what a policy would have seen at the same reference times."""
    episode = read_episode(bag, contract)
    windows = Windows([episode], horizon=4, history=contract.history)
    assert len(windows) == len(episode) - 1 > 10
    for index in range(len(windows)):
        observation = make_observation(contract, synchroniser.select(int(episode.stamps[index + 1])), 'x')
        window = windows[index]
        np.testing.assert_array_equal(window.state, observation.state)
        for name, view in observation.images.items():
            np.testing.assert_array_equal(window.images[name], view.transpose(0, 3, 1, 2))
