"""Records demonstrations in process: the bags that the nodes would record, without the nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
import multiprocessing
from pathlib import Path

import numpy as np
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from flow_vla.msg import Episode
from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.simulation.noise import ExecutionNoise
from flow_vla_core.simulation.robots import SimulatedRobot, make_robot, max_steps_of
from flow_vla_ros import codecs, qos
from flow_vla_ros.recorder_node import next_folder

__all__ = ['DirectOrder', 'DirectRecorder', 'make_orders', 'record_all']

START = 1_000_000_000  # ns; the clock of an episode begins here


@dataclass(frozen=True)
class DirectOrder:
    """Orders one episode.

    Args:
        task: one of the robot's.
        seed: of the scene and of the disturbances.
        folder: of the bag.
    """

    task: str
    seed: int
    folder: Path


@dataclass
class DirectRecorder:
    """Lets the scripted expert act in a simulation of its own and writes what the topics would carry.

    Each policy step is observed, then the expert's command is written and executed until the next one, as the
    simulator in lockstep and the expert's node do it. Log times are the stamps.

    Args:
        contract: of the robot.
        noise: largest disturbance of what is executed, as a share of the action's range.
        hold_steps: observations with success that end an episode.
    """

    contract: RobotContract
    noise: float
    hold_steps: int

    @cached_property
    def robot(self) -> SimulatedRobot:
        """The simulation; made when it is needed, so that a recorder can be sent to another process."""
        return make_robot(self.contract, ExecutionNoise(self.noise) if self.noise > 0 else None)

    def record(self, order: DirectOrder) -> int | None:
        """Record one episode; return its steps, or None if it was discarded for lack of success."""
        robot, now, held = self.robot, START, 0
        periods = round(self.contract.rates.policy_dt / robot.control_period)
        robot.reset(order.task, order.seed)
        with _Bag(self.contract, order, robot.instruction) as bag:
            while True:
                bag.observe(robot.state(), robot.images(), now)
                held = held + 1 if robot.success else 0
                if held >= self.hold_steps or robot.steps >= max_steps_of(self.contract):
                    break
                action = robot.expert_action()
                bag.command(action, now)
                for _ in range(periods):
                    robot.step(action)
                now += self.contract.rates.policy_dt_ns
            bag.finish(held >= self.hold_steps, now)
        return robot.steps if held >= self.hold_steps else None


class _Bag:
    """Is the bag of one episode; an error inside of its ``with`` block deletes it."""

    def __init__(self, contract: RobotContract, order: DirectOrder, instruction: str) -> None:
        self._contract = contract
        marks = {'instruction': instruction, 'task': f'{order.task}#{order.seed}', 'outcome': 'unknown',
                 'contract': contract.label}
        topics = _topics(contract)
        self._kinds = {topic.name: topic.type for topic in topics}
        self._writer = EpisodeWriter(order.folder, topics, marks)
        self._episode = Episode(id=order.folder.name, event=Episode.STARTED, instruction=instruction,
                                task=marks['task'], contract=contract.label)
        self._mark(START)
        self._write(contract.instruction.topic, String(data=instruction), START)

    def __enter__(self) -> _Bag:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._writer.discard()

    def observe(self, state: dict[str, np.ndarray], images: dict[str, np.ndarray], stamp: int) -> None:
        for stream in self._contract.state:
            self._write(stream.topic, codecs.encode_state(stream, state[stream.name], stamp), stamp)
        for camera in self._contract.cameras:
            self._write(camera.topic, codecs.encode_image(images[camera.name], camera, stamp), stamp)

    def command(self, action: np.ndarray, stamp: int) -> None:
        reach_in = round(1e9 / self._contract.rates.control_hz)
        for part, place in zip(self._contract.actions, self._contract.action_slices.values()):
            self._write(part.topic, codecs.encode_action(part, action[place], stamp, reach_in=reach_in), stamp)

    def finish(self, success: bool, stamp: int) -> None:
        if not success:
            self._writer.discard()
            return
        self._episode.event, self._episode.outcome = Episode.ENDED, Episode.SUCCESS
        self._mark(stamp)
        self._writer.close({'outcome': 'success'})

    def _mark(self, stamp: int) -> None:
        self._episode.header.stamp = codecs.to_time(stamp)
        self._write('episode', self._episode, stamp)

    def _write(self, topic: str, message: object, stamp: int) -> None:
        name = f'/{topic.lstrip("/")}'
        self._writer.write(name, _serialize(message, self._kinds[name]), stamp, stamp)


def make_orders(episodes: Sequence[tuple[str, int]], out: Path) -> list[DirectOrder]:
    """Order episodes, pairs of task and seed, into folders of their own behind those that ``out`` holds."""
    first = next_folder(out)
    number = int(first.name.removeprefix('episode_'))
    return [DirectOrder(task, seed, first.with_name(f'episode_{number + index:06d}'))
            for index, (task, seed) in enumerate(episodes)]


def record_all(recorder: DirectRecorder, orders: list[DirectOrder], workers: int) -> Iterator[int | None]:
    """Record episodes in this process or in several; yield each one's steps, or None, in their order."""
    if workers == 1:
        yield from map(recorder.record, orders)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _enter_worker, (recorder,)) as pool:
        yield from pool.map(_record_in_worker, orders)


def _topics(contract: RobotContract) -> list[Topic]:
    named = [*((camera.topic, 'sensor_msgs/Image', qos.RELIABLE_SENSOR) for camera in contract.cameras),
             *((stream.topic, stream.message, qos.STATE) for stream in contract.state),
             *((part.topic, part.message, qos.COMMAND) for part in contract.actions),
             (contract.instruction.topic, 'std_msgs/String', qos.LATCHED), ('episode', 'flow_vla/Episode', qos.LATCHED)]
    return [Topic(f'/{name.lstrip("/")}', full_name(kind), (qos.describe(profile),)) for name, kind, profile in named]


def _serialize(message: object, kind: str) -> bytes:
    """Serialize as on the wire: rclpy leaves up to a few bytes behind the end, which no reader expects."""
    definition = typestore().get_msgdef(kind)
    size = definition.size_cdr or definition.getsize_cdr(0, message, typestore())
    return serialize_message(message)[:4 + size]


_recorder_of_worker: list[DirectRecorder] = []  # filled once in each worker process, never in the parent


def _enter_worker(recorder: DirectRecorder) -> None:
    _recorder_of_worker[:] = [recorder]


def _record_in_worker(order: DirectOrder) -> int | None:
    return _recorder_of_worker[0].record(order)
