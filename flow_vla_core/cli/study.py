"""The command `flow-vla study`: what late plans cost, for every way to execute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
import json
from pathlib import Path
import sys
from typing import Annotated

from rich.console import Console
import torch
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.latency_plots import plot_jerk, plot_success, plot_traces
from flow_vla_core.evaluation.latency_results import CellResult, results_rows, rows_table, write_csv
from flow_vla_core.evaluation.latency_study import METHODS, LatencyStudy, choose
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.evaluation.sweep import UNSEEN_SEED

__all__ = ['study', 'write_study']

WIDTH = 120  # of the table in a file


def study(
    checkpoint: Annotated[Path, typer.Option(help='Folder of the policy.')],
    out: Annotated[Path, typer.Option(help='Folder of the results; cells that are there are not run again.')],
    prefix_checkpoint: Annotated[Path | None, typer.Option(
        help='Folder of the policy for the method prefix, trained with prefix_steps; by default the same.')] = None,
    contract: Annotated[str, typer.Option(help='Robot contract: a file, or a name in config/robots.')] = 'metaworld',
    tasks: Annotated[str, typer.Option(help='all, or names with commas between them.')] = 'all',
    methods: Annotated[str, typer.Option(help='all, or names with commas between them.')] = 'all',
    delays: Annotated[str, typer.Option(help='Policy steps from observation to plan.')] = '0,1,2,4,6',
    episodes: Annotated[int, typer.Option(min=1, help='Of each method, delay and task.')] = 10,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode of each task.')] = UNSEEN_SEED,
    replan_steps: Annotated[int, typer.Option(min=1, help='Policy steps from one plan to the next, at least.')] = 5,
    interpolation: Annotated[str, typer.Option(help='Between actions: auto, linear, cubic or hold.')] = 'auto',
    max_steps: Annotated[int | None, typer.Option(
        min=1, help="Policy steps after which an episode is given up; by default the robot's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps; by default the policy's own.")] = None,
    beta: Annotated[float, typer.Option(min=0, help='Largest weight of guidance.')] = 5.0,
    workers: Annotated[int, typer.Option(min=1, help='Processes, each with one thread.')] = 1,
) -> None:
    """Measure success and jerk of every way to execute plans against the delay with which plans come."""
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    robot = RobotContract.load(find_contract(contract))
    plan = LatencyStudy(robot, str(checkpoint), out, None if prefix_checkpoint is None else str(prefix_checkpoint),
                        () if tasks == 'all' else choose(tasks, {}), choose(methods, METHODS), _numbers(delays),
                        episodes, seed, replan_steps, interpolation, max_steps, steps, beta)
    cells = plan.run(workers, console)
    write_study(plan, cells)
    console.print(rows_table(results_rows(cells)))
    console.print(f'written: {out}', soft_wrap=True)


def write_study(plan: LatencyStudy, cells: Sequence[CellResult]) -> None:
    """Write ``study.json`` and ``.csv``, and the pictures; example commands are those at the largest delay up to 4."""
    rows, out = results_rows(cells), plan.out
    commit, modified = git_state()
    settings = plan.key(next(plan.cells()))
    values = {'settings': {**settings, 'tasks': list(dict.fromkeys(cell.task for cell in cells))},
              'git_commit': commit, 'git_modified': modified, 'machine': asdict(Machine.here()),
              'rows': [row.values() for row in rows]}
    out.mkdir(parents=True, exist_ok=True)
    (out / 'study.json').write_text(json.dumps(values, indent=1) + '\n')
    write_csv(out / 'study.csv', rows)
    plot_success(out / 'success.png', rows)
    for figure in ('p99', 'maximum', 'mean'):
        plot_jerk(out / f'jerk-{figure}.png', rows, figure)
    shown = max((delay for delay in plan.delays if delay <= 4), default=min(plan.delays))
    for task in values['settings']['tasks']:
        chosen = [cell for cell in cells if cell.task == task and cell.delay == shown]
        plot_traces(out / f'commands-{task}.png', chosen)


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(',') if word.strip()]
    if not words or not all(word.isdigit() for word in words):
        raise ConfigError(f'delays: {text!r}; allowed: whole numbers with commas between them')
    return tuple(map(int, words))
