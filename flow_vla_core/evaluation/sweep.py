"""Evaluates a policy in one process or in several, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
import time

from rich.console import Console

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.console import Progress
from flow_vla_core.evaluation.direct import DirectSettings, EngineSource, Episode, run_episodes
from flow_vla_core.evaluation.pair import PairReport, pair_episodes
from flow_vla_core.evaluation.report import Percentiles, Report, Timing, summarise
from flow_vla_core.simulation.judges import FAUCET_PAIR, faucet_motion
from flow_vla_core.simulation.robots import tasks_of

__all__ = ['UNSEEN_SEED', 'Plan', 'evaluate_direct', 'evaluate_pair', 'make_episodes']

UNSEEN_SEED = 500_000  # demonstrations are captured with smaller seeds


@dataclass(frozen=True)
class Plan:
    """Says what to evaluate.

    Args:
        checkpoint: folder of the policy.
        contract: of the robot.
        tasks: which ones, in order.
        episodes: of each task.
        seed: of the first episode of each task; the next ones count up.
        instruction: replaces every task's own words; '' blanks them, None keeps them.
        steps: solver steps; None takes the policy's own.
        settings: of the loop.
    """

    checkpoint: str
    contract: RobotContract
    tasks: tuple[str, ...]
    episodes: int
    seed: int = UNSEEN_SEED
    instruction: str | None = None
    steps: int | None = None
    settings: DirectSettings = DirectSettings()

    def __post_init__(self) -> None:
        known = tasks_of(self.contract)
        for task in self.tasks:
            if task not in known:
                raise ConfigError(f'tasks: no task {task!r}; {closest(task, known)}')
        if not self.tasks:
            raise ConfigError('tasks is empty; name at least one')
        if self.episodes < 1:
            raise ConfigError(f'episodes is {self.episodes}; allowed: 1 or more')
        if self.seed < 0:
            raise ConfigError(f'seed is {self.seed}; allowed: 0 or more')


def make_episodes(plan: Plan) -> list[Episode]:
    """List the episodes of a plan, task by task."""
    words = tasks_of(plan.contract)
    return [Episode(task, plan.seed + index, words[task] if plan.instruction is None else plan.instruction)
            for task in plan.tasks for index in range(plan.episodes)]


def evaluate_direct(plan: Plan, *, source: Callable | None = None, workers: int = 1, device: str = 'auto',
                    console: Console | None = None) -> Report:
    """Run a plan through the policy's engine and the executor's code, in this process or in several.

    Args:
        plan: what to evaluate.
        source: ``source(contract, robot) -> Actor``; the engine of the plan's checkpoint by default.
        workers: how many processes.
        device: where the engine runs.
        console: where to show how it goes.
    """
    source = source or EngineSource(plan.checkpoint, plan.steps, device, allow_empty=plan.instruction == '')
    orders, start, generation_ms = make_episodes(plan), time.monotonic(), []
    with Progress(len(orders), console) as progress:
        for result, delays in run_episodes(plan.contract, source, orders, plan.settings, workers=workers):
            progress.add(result)
            generation_ms.extend(delays)
    return Report(mode='direct', checkpoint=plan.checkpoint, contract=plan.contract.label, seed=plan.seed,
                  max_steps=plan.settings.max_steps, instruction=plan.instruction,
                  blank_images=plan.settings.blank_images, tasks=summarise(progress.results),
                  timing=Timing(chunk_ms=Percentiles.of(generation_ms)), seconds=time.monotonic() - start,
                  episodes=progress.results,
                  settings={**asdict(plan.settings), 'steps': plan.steps, 'workers': workers})


def evaluate_pair(plan: Plan, *, source: Callable | None = None, workers: int = 1, device: str = 'auto',
                  console: Console | None = None) -> PairReport:
    """Give both faucet tasks their own, the other's and no words, and judge which motion is made.

    The arguments are those of `evaluate_direct`; the plan's tasks and instruction are not used.
    """
    if not set(FAUCET_PAIR) <= set(tasks_of(plan.contract)):
        raise ConfigError(f'--pair: the robot {plan.contract.name!r} has no two tasks that share a scene')
    source = source or EngineSource(plan.checkpoint, plan.steps, device, allow_empty=True)
    orders = pair_episodes(plan.episodes, plan.seed)
    with Progress(len(orders), console, lambda results: PairReport.of(results).table()) as progress:
        for result, _ in run_episodes(plan.contract, source, orders, plan.settings, motion=faucet_motion,
                                      workers=workers):
            progress.add(result)
    return PairReport.of(progress.results)
