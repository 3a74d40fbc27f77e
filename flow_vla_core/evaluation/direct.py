"""The closed loop in one process: simulated robot, policy and the executor's code, without ROS."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
import multiprocessing
import time
from typing import Protocol

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ChunkError, Code, ConfigError
from flow_vla_core.evaluation.command_trace import CommandTrace
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.execution import ChunkFollower
from flow_vla_core.execution.continuation import Asked, Succession, realtime_of
from flow_vla_core.messages import resize_image
from flow_vla_core.simulation.metaworld import MAX_STEPS
from flow_vla_core.simulation.robots import SimulatedRobot, make_robot
from flow_vla_core.types import ActionChunk, Continuation, Generated, Observation

__all__ = ['Actor', 'DirectLoop', 'DirectSettings', 'EngineSource', 'Episode', 'observe', 'run_episodes']

START = 1_000_000_000  # ns; the clock of an episode begins here
SYNCHRONOUS = 'synchronous'


class Actor(Protocol):
    """Declares what turns observations into plans; `flow_vla_core.engine.Engine` is one."""

    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        """Return a plan (H, A) float32 in the contract's units that continues the one in force."""

    def seed(self, seed: int) -> None:
        """Make what follows repeatable."""


@dataclass(frozen=True)
class DirectSettings:
    """Chooses how the loop runs.

    Args:
        replan_steps: policy steps between two inferences, at least.
        latency_steps: policy steps after its observation at which a plan arrives.
        max_steps: policy steps after which an episode is given up.
        blank_images: give the policy black images.
        schedule: how plans follow each other, as of `ChunkFollower`; a synchronous loop observes only when the actions
            to execute are over, and the robot waits meanwhile.
        interpolation: between actions, as of `ChunkFollower`.
        realtime: how the actor is told to continue the plan in force; ``auto``: as it has chosen.
    """

    replan_steps: int = 5
    latency_steps: int = 1
    max_steps: int = MAX_STEPS
    blank_images: bool = False
    schedule: str = 'asynchronous'
    interpolation: str = 'auto'
    realtime: Asked = 'auto'

    def __post_init__(self) -> None:
        for name, least in (('replan_steps', 1), ('latency_steps', 0), ('max_steps', 1)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name} is {getattr(self, name)}; allowed: {least} or more')


@dataclass(frozen=True)
class Episode:
    """Orders one episode: a scene and the words to give."""

    task: str
    seed: int
    instruction: str


@dataclass(frozen=True)
class EngineSource:
    """Loads the policy of a checkpoint for the loop; small enough to send to another process.

    Args:
        checkpoint: its folder.
        steps: solver steps; None takes the policy's own.
        device: where it runs.
        allow_empty: answer an empty instruction instead of refusing it.
        threads: of torch; one is quickest for so small a batch while the simulation runs on the other cores.
        realtime: how the engine continues plans; ``auto``: as the policy was trained to.
        beta: largest weight of guidance.
    """

    checkpoint: str
    steps: int | None = None
    device: str = 'auto'
    allow_empty: bool = False
    threads: int = 1
    realtime: Asked = 'auto'
    beta: float = 5.0

    def __call__(self, contract: RobotContract, robot: SimulatedRobot) -> Actor:
        """Return the engine of the policy, warmed up."""
        import torch

        from flow_vla_core.engine import Engine
        from flow_vla_core.training.checkpoint import load_checkpoint
        torch.set_num_threads(self.threads)
        engine = Engine(load_checkpoint(self.checkpoint, contract), device=self.device, steps=self.steps,
                        allow_empty=self.allow_empty, realtime=self.realtime, beta=self.beta)
        engine.warm_up()
        return engine


@dataclass
class DirectLoop:
    """Runs episodes: each policy step observes and plans if it is time, each control tick moves the robot by a command.

    Time is the simulation's: tick k has the time ``START + k * control_period``. As on the graph, one plan is made at a
    time; it is usable ``latency_steps`` after its observation, what it has to continue is decided by the same
    `Succession`, and the commands pass the same `ChunkFollower`. A plan that the follower refuses is counted and left.

    Args:
        contract: of the robot.
        robot: the simulation.
        actor: makes the plans.
        settings: of the loop.
        motion: names the motion that the robot has made, for scenes that two tasks share; an episode ends with it.
        trace: is told every plan and every command.
        generation_ms: fills with the time that each plan took, ms.
        refusals: fills with the codes of plans that were refused.
    """

    contract: RobotContract
    robot: SimulatedRobot
    actor: Actor
    settings: DirectSettings = DirectSettings()
    motion: Callable[[object], str] | None = None
    trace: CommandTrace | None = None
    generation_ms: list[float] = field(default_factory=list)
    refusals: Counter[Code] = field(default_factory=Counter)

    def run(self, episode: Episode) -> EpisodeResult:
        """Run one episode to its end."""
        self.robot.reset(episode.task, episode.seed)
        self.actor.seed(episode.seed)
        self._begin(episode.instruction)
        motion, limit, tick = '', self.settings.max_steps, 0
        ratio = round(self.contract.rates.policy_dt / self.robot.control_period)
        while self.robot.steps < limit and not (motion if self.motion else self.robot.success):
            now = START + tick * self.contract.rates.policy_dt_ns // ratio
            if tick % ratio == 0:
                self._policy_step(now)
            self._control(now)
            tick += 1
            motion = self.motion(self.robot.env) if self.motion else ''
        return EpisodeResult(episode.task, episode.instruction, episode.seed, self.robot.success, self.robot.steps,
                             limit, motion)

    def _begin(self, words: str) -> None:
        self._words = words
        self._follower = self._make_follower(self.contract)
        self._succession = Succession(self.contract, self.settings.replan_steps,
                                      realtime_of(self.settings.realtime, self.actor))
        self._history: deque[dict] = deque(maxlen=self.contract.history)
        self._pending: ActionChunk | None = None
        if self.trace is not None:
            self.trace.begin(self._make_follower)

    def _make_follower(self, contract: RobotContract) -> ChunkFollower:
        settings = self.settings
        execute = settings.replan_steps if settings.schedule == SYNCHRONOUS else None
        return ChunkFollower(contract, control_hz=1 / self.robot.control_period, schedule=settings.schedule,
                             interpolation=settings.interpolation, execute=execute)

    def _policy_step(self, now: int) -> None:
        self._arrive(now)
        due = self._pending is None and self._succession.is_due(now, self._words)
        if due or self.contract.history > 1:
            self._history.append(self._sense(now))
        if due and len(self._history) == self.contract.history:
            self._pending = self._plan(observe(self.contract, self._history, self._words))
            self._arrive(now)

    def _arrive(self, now: int) -> None:
        """Hand the plan over that has been made, if its latency is over."""
        chunk, dt = self._pending, self.contract.rates.policy_dt_ns
        if chunk is None or now < chunk.stamp + self.settings.latency_steps * dt:
            return
        self._pending = None
        # A synchronous plan begins when it arrives, and the next one is due from there on.
        begun = replace(chunk, stamp=now) if self.settings.schedule == SYNCHRONOUS else chunk
        self._succession.publish(begun, now)
        try:
            accepted = self._follower.accept(chunk, now)
        except ChunkError as error:
            self.refusals[error.code] += 1
        else:
            if accepted and self.trace is not None:
                self.trace.accept(chunk, now)

    def _control(self, now: int) -> None:
        measured = self.robot.state()
        command = self._follower.command(now, measured)
        self.robot.step(command.values)
        if self.trace is not None:
            self.trace.add(now, command, measured)

    def _plan(self, observation: Observation) -> ActionChunk:
        rest = self._succession.continuation(observation.stamp, observation.instruction)
        start = time.perf_counter_ns()
        made = self.actor.act(observation, rest)
        taken = time.perf_counter_ns() - start
        self.generation_ms.append(taken / 1e6)
        return ActionChunk(observation.stamp, self.contract.rates.policy_dt_ns, made.actions, len(self.generation_ms),
                           observation.instruction, taken, rest.delay if rest else 0, made.confidence)

    def _sense(self, now: int) -> dict:
        images = self.robot.images()
        if self.settings.blank_images:
            images = {name: np.zeros_like(image) for name, image in images.items()}
        return {'stamp': now, **images, **self.robot.state()}


def observe(contract: RobotContract, history: Iterable[dict], instruction: str) -> Observation:
    """Build the observation that the live nodes would build from the same samples.

    Args:
        contract: of the robot.
        history: T samples, oldest first; each holds its ``stamp`` and one array for each of the contract's streams.
        instruction: the words in force.
    """
    samples = list(history)
    images = {camera.name: np.stack([resize_image(sample[camera.name], camera.size) for sample in samples])
              for camera in contract.cameras}
    state = np.stack([np.concatenate([sample[stream.name] for stream in contract.state]) for sample in samples])
    stamps = tuple(sample['stamp'] for sample in samples)
    return Observation(stamps[-1], images, state.astype(np.float32), instruction,
                       {stream.name: stamps for stream in contract.streams})


def run_episodes(contract: RobotContract, source: Callable, episodes: list[Episode], settings: DirectSettings, *,
                 motion: Callable[[object], str] | None = None,
                 workers: int = 1) -> Iterator[tuple[EpisodeResult, list[float]]]:
    """Run episodes in this process or in several, in their order, and yield each outcome with its plans' times in ms.

    Args:
        contract: of the robot.
        source: ``source(contract, robot) -> Actor``; has to be picklable for several workers.
        episodes: what to run.
        settings: of the loop.
        motion: as for `DirectLoop`.
        workers: how many processes.

    Raises:
        ConfigError: if a task is unknown, or ``workers`` is below 1.
    """
    if workers < 1:
        raise ConfigError(f'workers is {workers}; allowed: 1 or more')
    if workers == 1:
        loop = _make_loop(contract, source, settings, motion)
        try:
            for episode in episodes:
                yield _run_timed(loop, episode)
        finally:
            loop.robot.close()
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context('spawn'), _enter_worker,
                             (contract, source, settings, motion)) as pool:
        yield from pool.map(_run_in_worker, episodes)


def _make_loop(contract: RobotContract, source: Callable, settings: DirectSettings,
               motion: Callable | None) -> DirectLoop:
    robot = make_robot(contract)
    return DirectLoop(contract, robot, source(contract, robot), settings, motion)


def _run_timed(loop: DirectLoop, episode: Episode) -> tuple[EpisodeResult, list[float]]:
    loop.generation_ms.clear()
    return loop.run(episode), list(loop.generation_ms)


_parts_of_worker: list = []  # filled once in each worker process, never in the parent
_loop_of_worker: list[DirectLoop] = []


def _enter_worker(*parts: object) -> None:
    _parts_of_worker[:] = parts


def _run_in_worker(episode: Episode) -> tuple[EpisodeResult, list[float]]:
    if not _loop_of_worker:  # made here and not on entry, so that an error reaches the caller
        _loop_of_worker.append(_make_loop(*_parts_of_worker))
    return _run_timed(_loop_of_worker[0], episode)
