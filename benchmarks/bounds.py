"""Counts violations of bounds in random and adversarial chunk streams, and times the commands."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
import json
import os
from pathlib import Path
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
import typer

from flow_vla_core.contract import RobotContract, config_folder, find_contract
from flow_vla_core.evaluation.adversary import BoundsTrial, TrialResult
from flow_vla_core.evaluation.report import Machine, git_state

RATES = (None, 200.0)   # Hz; None: the contract's
MODES = tuple({'schedule': schedule, 'interpolation': interpolation} for schedule, interpolation in product(
    ('asynchronous', 'synchronous', 'ensembling'), ('linear', 'cubic', 'hold')))


def measure(
    commands: Annotated[int, typer.Option(min=1, help='to publish, all trials together')] = 1_000_000,
    workers: Annotated[int, typer.Option(min=1, help='processes')] = os.cpu_count() or 1,
    seed: Annotated[int, typer.Option(min=0, help='of the first trial')] = 0,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/bounds'),
) -> None:
    """Let an adversary drive every robot of config/robots with every schedule and interpolation."""
    begin = time.monotonic()
    robots = sorted(path.stem for path in (config_folder() / 'robots').glob('*.yaml'))
    cells = list(product(robots, RATES, MODES))
    jobs = [(*cell, seed + number, -(-commands // len(cells))) for number, cell in enumerate(cells)]
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(_trial, jobs))
    rows = [{'robot': robot, 'control_hz': hertz, **mode, **asdict(result)}
            for (robot, hertz, mode), result in zip(cells, results)]
    show(robots, rows)
    total = {'commands': sum(row['commands'] for row in rows),
             'violations': sum(sum(row['violations'].values()) for row in rows)}
    out.mkdir(parents=True, exist_ok=True)
    report = {**total, 'wall_seconds': time.monotonic() - begin, 'git_commit': git_state()[0],
              'machine': asdict(Machine.here()), 'trials': rows}
    (out / 'bounds.json').write_text(json.dumps(report, indent=2) + '\n')
    Console().print(f'{total["violations"]} violations in {total["commands"]} commands')
    raise typer.Exit(int(total['violations'] > 0))


def show(robots: list[str], rows: list[dict]) -> None:
    """Print a table with one row for each robot."""
    table = Table('robot', 'commands', 'followed', 'accepted', 'refused', 'violations', 'ms')
    for robot in robots:
        mine = [row for row in rows if row['robot'] == robot]
        sums = [sum(row[key] for row in mine) for key in ('commands', 'followed', 'accepted', 'refused')]
        found = sum(sum(row['violations'].values()) for row in mine)
        seconds = sum(row['seconds'] for row in mine) / len(mine)
        table.add_row(robot, *map(str, sums), str(found), f'{seconds * 1e3:.3f}')
    Console().print(table)


def _trial(job: tuple[str, float | None, dict, int, int]) -> TrialResult:
    robot, hertz, mode, seed, commands = job
    contract = RobotContract.load(find_contract(robot))
    return BoundsTrial(contract, seed, hertz, careful_below=0.3, **mode).run(commands)


if __name__ == '__main__':
    typer.run(measure)
