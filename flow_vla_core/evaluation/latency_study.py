"""How methods of execution stand up to late plans: success and jerk against injected delay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
import hashlib
import multiprocessing
from pathlib import Path
import statistics
import time
from typing import Any

import numpy as np
from rich.console import Console

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.command_trace import Commands, CommandTrace
from flow_vla_core.evaluation.direct import Actor, DirectLoop, DirectSettings, EngineSource, Episode
from flow_vla_core.evaluation.latency_results import JERKS, CellResult, Example
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.evaluation.sweep import UNSEEN_SEED
from flow_vla_core.execution.continuation import Realtime
from flow_vla_core.simulation.robots import SimulatedRobot, make_robot, max_steps_of, tasks_of

__all__ = ['METHODS', 'Cell', 'LatencyStudy', 'Method', 'choose']

WEIGHTS = 'model.safetensors'  # in the folder of a checkpoint
Source = Callable[[RobotContract, SimulatedRobot], Actor]


@dataclass(frozen=True)
class Method:
    """Names a way to execute plans.

    Args:
        schedule: of the executor.
        realtime: how plans continue each other.
    """

    schedule: str
    realtime: Realtime = 'none'


METHODS: Mapping[str, Method] = {
    'synchronous': Method('synchronous'),
    'asynchronous': Method('asynchronous'),
    'ensembling': Method('ensembling'),
    'guided': Method('asynchronous', 'guided'),
    'prefix': Method('asynchronous', 'prefix'),
}


@dataclass(frozen=True)
class Cell:
    """Orders the episodes of one method with one delay, in policy steps, on one task."""

    method: str
    delay: int
    task: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f'{self.method}-{self.delay}-{self.task}'


@dataclass(frozen=True)
class LatencyStudy:
    """Runs every method with every delay on every task, with the same scenes and the same noise.

    Each cell has two files in ``out/cells``; one that is there, found with the same settings, is not run again.

    Args:
        contract: of a simulated robot.
        checkpoint: folder of the policy.
        out: folder of the results.
        prefix_checkpoint: policy of the method ``prefix``, such as one that learned to go on from prefixes
            (arXiv 2512.05964); the same as ``checkpoint`` if None.
        tasks: names; all of the robot if empty.
        methods: names out of `METHODS`.
        delays: policy steps from an observation to its plan.
        episodes: of each cell.
        seed: of the first episode of each cell.
        replan_steps: policy steps from one plan to the next, at least; a synchronous robot executes so many.
        interpolation: between actions.
        max_steps: policy steps after which an episode is given up; the robot's if None.
        steps: solver steps; None takes the policy's own.
        beta: largest weight of guidance.

    Raises:
        ConfigError: for an unknown method or task, or a number out of range.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> study = LatencyStudy(contract, 'policy', Path('out'), tasks=('faucet-open',), delays=(0, 4))
        >>> len(list(study.cells())), next(study.cells()).name
        (10, 'synchronous-0-faucet-open')
    """

    contract: RobotContract
    checkpoint: str
    out: Path
    prefix_checkpoint: str | None = None
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = tuple(METHODS)
    delays: tuple[int, ...] = (0, 1, 2, 4, 6)
    episodes: int = 10
    seed: int = UNSEEN_SEED
    replan_steps: int = 5
    interpolation: str = 'auto'
    max_steps: int | None = None
    steps: int | None = None
    beta: float = 5.0

    def __post_init__(self) -> None:
        for name, values, known in (('tasks', self.tasks, tasks_of(self.contract)), ('methods', self.methods, METHODS)):
            for value in values:
                if value not in known:
                    raise ConfigError(f'{name}: {value!r}; {closest(value, known)}')
        if not self.methods or not self.delays or min(self.delays) < 0:
            raise ConfigError(f'methods: {self.methods}, delays: {self.delays}; allowed: at least one of each, '
                              'delays of 0 or more')
        if self.episodes < 1:
            raise ConfigError(f'episodes: {self.episodes}; allowed: 1 or more')

    def cells(self) -> Iterator[Cell]:
        """List what has to be run: all methods and delays of one task, then of the next."""
        return (Cell(method, delay, task) for task in self.tasks or tasks_of(self.contract)
                for method in self.methods for delay in self.delays)

    def run(self, workers: int = 1, console: Console | None = None,
            source: Callable[[LatencyStudy, Method], Source] | None = None) -> list[CellResult]:
        """Run what is not there yet, and return all results in the order of `cells`.

        Args:
            workers: processes.
            console: is told of each cell.
            source: ``source(study, method)`` makes what makes the actor; engines of the checkpoints by default. Has to
                be picklable for several workers.

        Raises:
            ConfigError: if the folder holds a cell that was found with other settings.
        """
        console, cells = console or Console(quiet=True), list(self.cells())
        found = {cell: result for cell in cells if (result := self._saved(cell)) is not None}
        left = [cell for cell in cells if cell not in found]
        console.print(f'{len(found)} of {len(cells)} cells are there')
        for cell, result in zip(left, self._run(left, workers, source or engine_source)):
            found[cell] = result
            done = sum(episode.success for episode in result.episodes)
            console.print(f'{len(found):4d}/{len(cells)}  {cell.method}, delay {cell.delay}, {cell.task}: '
                          f'{done}/{len(result.episodes)}, {result.seconds:.0f} s', soft_wrap=True)
        return [found[cell] for cell in cells]

    def settings(self, cell: Cell) -> DirectSettings:
        """Return the settings of the loop for a cell."""
        method = METHODS[cell.method]
        return DirectSettings(self.replan_steps, cell.delay, self.max_steps or max_steps_of(self.contract),
                              schedule=method.schedule, interpolation=self.interpolation, realtime=method.realtime)

    def policy_of(self, method: Method) -> str:
        """Return the folder of the policy of a method."""
        return self.prefix_checkpoint or self.checkpoint if method.realtime == 'prefix' else self.checkpoint

    def key(self, cell: Cell) -> dict[str, Any]:
        """Name what a cell's result depends on."""
        return {'contract': self.contract.label, 'policy': _fingerprint(self.policy_of(METHODS[cell.method])),
                'episodes': self.episodes, 'seed': self.seed, 'replan_steps': self.replan_steps,
                'interpolation': self.interpolation, 'max_steps': self.max_steps, 'steps': self.steps,
                'beta': self.beta}

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell."""
        return self.out / 'cells' / f'{cell.name}.json'

    def _saved(self, cell: Cell) -> CellResult | None:
        path = self.path(cell)
        if not path.is_file():
            return None
        result = CellResult.load(path)
        for name, value in self.key(cell).items():
            if result.key.get(name) != value:
                raise ConfigError(f'{path}: {name} was {result.key.get(name)!r}, now it is {value!r}; '
                                  'choose another folder')
        return result

    def _run(self, cells: list[Cell], workers: int, source: Callable[[LatencyStudy, Method], Source]
             ) -> Iterator[CellResult]:
        if workers == 1 or len(cells) < 2:
            bench = _Bench(self, source)
            try:
                yield from map(bench.run, cells)
            finally:
                bench.close()
            return
        with ProcessPoolExecutor(min(workers, len(cells)), multiprocessing.get_context('spawn'), _enter_worker,
                                 (self, source)) as pool:
            yield from pool.map(_run_in_worker, cells)


def engine_source(study: LatencyStudy, method: Method) -> Source:
    """Return what loads the engine of a method's policy."""
    return EngineSource(study.policy_of(method), study.steps, device='cpu', realtime=method.realtime, beta=study.beta)


@cache
def _fingerprint(folder: str) -> str:
    """Tell policies apart that lie in folders of one name."""
    weights = Path(folder) / WEIGHTS
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:8] if weights.is_file() else Path(folder).name


@dataclass
class _Bench:
    """Keeps the simulation and the actors of one process."""

    study: LatencyStudy
    source: Callable[[LatencyStudy, Method], Source]
    actors: dict[tuple[str, str], Actor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.robot = make_robot(self.study.contract)

    def close(self) -> None:
        self.robot.close()

    def run(self, cell: Cell) -> CellResult:
        """Run the episodes of a cell and write its files."""
        study, words = self.study, tasks_of(self.study.contract)[cell.task]
        trace = CommandTrace(study.contract, self.robot.control_period)
        loop = DirectLoop(study.contract, self.robot, self._actor(METHODS[cell.method]), study.settings(cell),
                          trace=trace)
        start, episodes, commands = time.monotonic(), [], []
        for index in range(study.episodes):
            episodes.append(loop.run(Episode(cell.task, study.seed + index, words)))
            commands.append(trace.commands)
        result = _make_result(study, cell, episodes, commands, loop, time.monotonic() - start)
        result.save(study.path(cell))
        return result

    def _actor(self, method: Method) -> Actor:
        key = (self.study.policy_of(method), method.realtime)
        if key not in self.actors:
            self.actors[key] = self.source(self.study, method)(self.study.contract, self.robot)
        return self.actors[key]


def _make_result(study: LatencyStudy, cell: Cell, episodes: list[EpisodeResult], commands: list[Commands],
                 loop: DirectLoop, seconds: float) -> CellResult:
    parts = [[*item.jerk(item.published), *item.jerk(item.planned)] for item in commands]
    first = commands[0]
    refusals: Counter[Any] = loop.refusals
    return CellResult(
        method=cell.method, delay=cell.delay, task=cell.task, episodes=episodes,
        policy_dt=study.contract.rates.policy_dt, chunk_ms=statistics.median(loop.generation_ms), seconds=seconds,
        refusals={code.name: count for code, count in refusals.items()}, key=study.key(cell),
        jerks={name: np.concatenate(values) for name, values in zip(JERKS, zip(*parts))},
        example=Example(first.period, first.names, first.units, first.published, first.planned, first.chunks))


def choose(text: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Read names with commas between them; ``all`` means every known one.

    Example:
        >>> choose('guided, prefix', METHODS)
        ('guided', 'prefix')
    """
    return tuple(known) if text == 'all' else tuple(word.strip() for word in text.split(',') if word.strip())


_bench_of_worker: list[_Bench] = []  # filled once in each worker process, never in the parent
_parts_of_worker: list[Any] = []


def _enter_worker(*parts: Any) -> None:
    _parts_of_worker[:] = parts


def _run_in_worker(cell: Cell) -> CellResult:
    if not _bench_of_worker:  # made here and not on entry, so that an error reaches the caller
        _bench_of_worker.append(_Bench(*_parts_of_worker))
    return _bench_of_worker[0].run(cell)
