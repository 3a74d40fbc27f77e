"""Captures demonstrations of the scripted experts: over simulator, expert and recorder as nodes, or in process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import itertools
import os
from pathlib import Path
import shutil
import time
from typing import TYPE_CHECKING, Annotated

import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError, DataError, FlowVLAError, closest
from flow_vla_core.simulation.robots import max_steps_of, tasks_of

if TYPE_CHECKING:
    from flow_vla_core.data.bag_reader import Bag
    from flow_vla_ros.direct_capture import DirectOrder

__all__ = ['capture_demos', 'lost_messages']

SERVICE_SECONDS = 60.0  # a reset builds a new scene when the task changes
ANSWER_SECONDS = 15.0   # after which a service is asked again
EPISODE_SECONDS = 300.0


@dataclass(frozen=True)
class Demonstration:
    """Names one episode to capture, and the words of its task."""

    task: str
    seed: int
    instruction: str


def capture_demos(
    out: Annotated[Path, typer.Option(help='folder of the bags')],
    tasks: Annotated[str, typer.Option(help='comma-separated task names; all of the robot if empty')] = '',
    episodes: Annotated[int, typer.Option(min=1, help='kept episodes for each task')] = 60,
    seed: Annotated[int, typer.Option(min=0, help='seed of the first scene; each episode takes the next one')] = 10000,
    noise: Annotated[float, typer.Option(min=0, max=1, help='disturbance of what is executed')] = 0.3,
    contract: Annotated[str, typer.Option(help='robot contract')] = 'metaworld',
    hold_steps: Annotated[int, typer.Option(min=1, help='states with success that end an episode')] = 8,
    direct: Annotated[bool, typer.Option('--direct', help='in process, without nodes: the same bags, sooner')] = False,
    workers: Annotated[int, typer.Option(min=1, help='--direct: processes')] = 1,
) -> None:
    """Record expert demonstrations, one bag an episode.

    They come through sim_node, expert_node and recorder_node in lockstep, or, with --direct, from the same robot and
    expert in this process. An episode without success is discarded and the next seed tried. Episodes that ``out``
    already holds count, so an interrupted capture goes on where it was.
    """
    robot = RobotContract.load(find_contract(contract))
    names = tasks.split(',') if tasks else list(tasks_of(robot))
    for name in names:
        if name not in tasks_of(robot):
            raise ConfigError(f'--tasks: no task {name!r}; {closest(name, tasks_of(robot))}')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'--out {out}: {error.strerror}') from error
    if direct:
        from flow_vla_ros.direct_capture import DirectRecorder, record_all
        recorder = DirectRecorder(robot, noise, hold_steps)
        _capture_directly(names, episodes, seed, out, lambda orders: record_all(recorder, orders, workers))
        return
    from flow_vla_ros.bringup import ManagedProcesses, node_spec
    with ManagedProcesses() as processes:
        common = {'contract': contract, 'autostart': True}
        processes.start(node_spec('sim', parameters={
            **common, 'lockstep': True, 'execution_noise': noise, 'task': names[0], 'seed': seed}))
        processes.start(node_spec('expert', use_sim_time=True, parameters={**common, 'hold_steps': hold_steps}))
        processes.start(node_spec('recorder', use_sim_time=True, parameters={
            **common, 'folder': str(out), 'check': False}))  # in lockstep nothing moves before the expert does
        with _Director(robot, hold_steps, out) as director:
            for name in names:
                _capture_task(director, name, episodes, seed, out)


def _capture_task(director: _Director, task: str, episodes: int, seed: int, out: Path) -> None:
    kept = _recorded_seeds(out, [task])[task]
    started, frames = time.monotonic(), 0
    words = tasks_of(director.contract)[task]
    candidates = (Demonstration(task, unused, words) for unused in _unused(seed, tuple(kept)))
    while len(kept) < episodes:
        demonstration = next(candidates)
        steps = director.record(demonstration)
        if steps is None:
            typer.echo(f'{task} seed {demonstration.seed}: no success, discarded')
            continue
        kept.append(demonstration.seed)
        frames += steps
    seconds = time.monotonic() - started
    typer.echo(f'{task}: {len(kept)} episodes; {frames} new frames in {seconds:.0f} s '
               f'({frames / max(seconds, 1e-9):.0f} frames/s)')


def _capture_directly(names: Sequence[str], episodes: int, seed: int, out: Path,
                      record: Callable[[list[DirectOrder]], Iterable[int | None]]) -> None:
    """Record what is missing of every task, then again with further seeds for what was discarded."""
    from flow_vla_ros.direct_capture import make_orders
    kept = _recorded_seeds(out, names)
    tried = {name: set(seeds) for name, seeds in kept.items()}
    while missing := [(name, new) for name in names for new in itertools.islice(
            _unused(seed, tuple(tried[name])), max(0, episodes - len(kept[name])))]:
        orders, started, frames = make_orders(missing, out), time.monotonic(), 0
        for order, steps in zip(orders, record(orders)):
            tried[order.task].add(order.seed)
            if steps is None:
                typer.echo(f'{order.task} seed {order.seed}: no success, discarded')
                continue
            kept[order.task].append(order.seed)
            frames += steps
            if len(kept[order.task]) == episodes:
                typer.echo(f'{order.task}: {episodes} episodes')
        seconds = time.monotonic() - started
        typer.echo(f'{frames} new frames in {seconds:.0f} s ({frames / max(seconds, 1e-9):.0f} frames/s)')


def _recorded_seeds(out: Path, tasks: Sequence[str]) -> dict[str, list[int]]:
    """List the seeds of the successful episodes of each task that a folder holds; those by hand have none."""
    from flow_vla_core.data import find_bags, read_metadata
    seeds: dict[str, list[int]] = {task: [] for task in tasks}
    for mark in map(read_metadata, find_bags(out)):
        task, _, number = mark.get('task', '').partition('#')
        if mark.get('outcome') == 'success' and task in seeds and number.isdecimal():
            seeds[task].append(int(number))
    return seeds


def _unused(first: int, taken: Sequence[int]) -> Iterator[int]:
    return (seed for seed in itertools.count(first) if seed not in taken)


def lost_messages(folder: Path, contract: RobotContract) -> int:
    """Count the steps of the simulation that a bag lacks, over all streams and commands.

    Each must reach from the first to the last step that any of them has, but for one: the last command is not followed
    by an observation, and an image may be under way when the episode ends.
    """
    from flow_vla_core.data.bag_reader import read_bag
    bag = read_bag(folder)
    topics = [(stream.topic, stream.message) for stream in contract.streams]
    topics += [(part.topic, part.message) for part in contract.actions]
    rows = [_stamps(bag, *topic) for topic in topics]
    first, last = min(row[0] for row in rows if row), max(row[-1] for row in rows if row)

    def steps(start: int, end: int) -> int:
        return round((end - start) / contract.rates.policy_dt_ns)

    return sum(steps(row[0], row[-1]) + 1 - len(row) + max(0, steps(first, row[0]) - 1)
               + max(0, steps(row[-1], last) - 1) if row else steps(first, last) + 1 for row in rows)


def _stamps(bag: Bag, topic: str, kind: str) -> list[int]:
    try:
        return sorted(stamp for stamp, _ in bag.stamped(bag.find(topic, kind)))
    except DataError:
        return []  # nothing of it arrived


class _Director:
    """Says when an episode begins and ends, by the services of the three nodes.

    The first answer of a service may be lost while client and server still find each other: what can be asked again is,
    and what a node does counts as its answer.
    """

    def __init__(self, contract: RobotContract, hold_steps: int, out: Path) -> None:
        import rclpy
        from std_srvs.srv import SetBool

        from flow_vla.msg import SimulationState
        from flow_vla.srv import ResetSimulation, StartEpisode, StopEpisode
        from flow_vla_ros import qos
        self._rclpy = rclpy
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(os.environ.get('ROS_DOMAIN_ID', 0)))
        self._node = rclpy.create_node('capture_director', context=self._context)
        self._spinner = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._spinner.add_node(self._node)
        self.contract, self._hold_steps, self._out = contract, hold_steps, out
        self._state: SimulationState | None = None
        self._held = 0
        self._node.create_subscription(SimulationState, 'sim/state', self._on_state, qos.STATE)
        self._clients = {
            name: self._node.create_client(kind, name) for name, kind in (
                ('sim/reset', ResetSimulation), ('expert/enable', SetBool),
                ('recorder/start', StartEpisode), ('recorder/stop', StopEpisode))}

    def __enter__(self) -> _Director:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.shutdown()
        self._node.destroy_node()
        self._rclpy.shutdown(context=self._context)

    def record(self, demonstration: Demonstration) -> int | None:
        """Record one episode; return its steps, or None if it was discarded for lack of success."""
        self._enable(False)
        self._start_recording(demonstration)
        self._reset(demonstration)
        self._held = 0
        self._enable(True)
        self._wait(lambda: self._held >= self._hold_steps or self._state.steps >= max_steps_of(self.contract),
                   EPISODE_SECONDS, f'the end of {demonstration.task}')
        success = self._held >= self._hold_steps
        bag = self._stop_recording(success)
        if success and (lost := lost_messages(bag, self.contract)):
            shutil.rmtree(bag)
            typer.echo(f'{demonstration.task} seed {demonstration.seed}: {lost} messages lost on a busy machine, '
                       'recorded again')
            return self.record(demonstration)
        return self._state.steps if success else None

    def _enable(self, on: bool) -> None:
        answer, _ = self._ask('expert/enable', data=on)
        if not answer.success:
            raise FlowVLAError(f'expert/enable: {answer.message}')

    def _start_recording(self, demonstration: Demonstration) -> None:
        """Begin an episode; just after the start of the nodes the recorder may not know every publisher yet."""
        from flow_vla.srv import StartEpisode
        codes, deadline = StartEpisode.Request, time.monotonic() + SERVICE_SECONDS
        while True:
            answer, repeated = self._ask('recorder/start', instruction=demonstration.instruction,
                                         task=f'{demonstration.task}#{demonstration.seed}')
            if answer.success or repeated and answer.code == codes.ALREADY_RECORDING:
                return
            if answer.code != codes.TOPIC_MISSING or time.monotonic() > deadline:
                raise FlowVLAError(f'recorder/start: {answer.message}')
            self._spinner.spin_once(timeout_sec=0.2)

    def _stop_recording(self, keep: bool) -> Path | None:
        """End the episode; return its bag if it is kept."""
        from flow_vla.msg import Episode
        from flow_vla.srv import StartEpisode
        from flow_vla_core.data import find_bags
        answer, repeated = self._ask('recorder/stop', keep=keep, outcome=Episode.SUCCESS if keep else Episode.FAILURE)
        if answer.success:
            return Path(answer.path) if keep else None
        if not repeated or answer.code != StartEpisode.Request.NOT_RECORDING:
            raise FlowVLAError(f'recorder/stop: {answer.message}')
        return find_bags(self._out)[-1] if keep else None

    def _reset(self, demonstration: Demonstration) -> None:
        """Change the scene, once: a second time would end the recording."""
        client, self._state = self._client('sim/reset'), None
        future = client.call_async(client.srv_type.Request(task=demonstration.task, seed=demonstration.seed))

        def shown() -> bool:
            state = self._state
            return state is not None and (state.task, state.seed, state.steps) == (
                demonstration.task, demonstration.seed, 0)

        self._wait(lambda: future.done() or shown(), SERVICE_SECONDS, 'an answer of sim/reset')
        if future.done() and not future.result().success:
            raise FlowVLAError(f'sim/reset: {future.result().message}')
        self._wait(shown, SERVICE_SECONDS, 'the reset state')

    def _on_state(self, state: object) -> None:
        self._state = state
        self._held = self._held + 1 if state.success else 0

    def _client(self, name: str) -> object:
        self._wait(self._clients[name].service_is_ready, SERVICE_SECONDS, f'the service {name}')
        return self._clients[name]

    def _ask(self, name: str, **request: object) -> tuple[object, bool]:
        """Call a service, again if no answer comes; return the answer, and whether it was called more than once."""
        client, calls = self._client(name), []
        while len(calls) < round(SERVICE_SECONDS / ANSWER_SECONDS):
            calls.append(client.call_async(client.srv_type.Request(**request)))
            self._becomes_true(lambda: any(call.done() for call in calls), ANSWER_SECONDS)
            if answered := [call for call in calls if call.done()]:
                return answered[0].result(), len(calls) > 1
        raise FlowVLAError(f'waited {SERVICE_SECONDS:.0f} s in vain for an answer of {name}')

    def _wait(self, predicate: Callable[[], bool], seconds: float, what: str) -> None:
        if not self._becomes_true(predicate, seconds):
            raise FlowVLAError(f'waited {seconds:.0f} s in vain for {what}')

    def _becomes_true(self, predicate: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > deadline:
                return False
            self._spinner.spin_once(timeout_sec=0.1)
        return True
