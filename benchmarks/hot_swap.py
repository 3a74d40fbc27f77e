"""Measures the time between chunks while checkpoints are swapped into a running policy, and while none is."""

from __future__ import annotations

import csv
from dataclasses import asdict
import json
from pathlib import Path
import shutil
import tempfile
import time
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.simulation.robots import tasks_of
from flow_vla_ros.bringup import ManagedProcesses, default_checkpoint, graph_specs, prepare_environment


def measure(
    swaps: Annotated[int, typer.Option(min=1, help='checkpoints that are swapped in')] = 20,
    every: Annotated[float, typer.Option(min=1, help='s between swaps; their first half counts as swapping')] = 8.0,
    contract: Annotated[str, typer.Option(help='robot contract')] = 'so101',
    replan_steps: Annotated[int, typer.Option(help='policy steps from chunk to chunk')] = 5,
    out: Annotated[Path | None, typer.Option(help='JSON file of the results')] = None,
) -> None:
    """Let a simulated robot be watched by a policy, name another checkpoint now and then, and report the gaps."""
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        copies = [shutil.copytree(default_checkpoint(contract), Path(folder) / name) for name in ('one', 'two')]
        trace = Path(folder) / 'policy.csv'
        asked, swapped = _run(contract, copies, trace, swaps, every, replan_steps)
        gaps = _gaps(trace, asked, every / 2)
    values = {'swaps': len(swapped), 'seconds_to_swap': _describe(swapped), **gaps, 'replan_steps': replan_steps,
              'git_commit': git_state()[0], 'machine': asdict(Machine.here())}
    _show(values)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(values, indent=2) + '\n')


def _run(contract: str, copies: list[Path], trace: Path, swaps: int, every: float,
         replan_steps: int) -> tuple[list[int], list[float]]:
    """Return the wall times, ns, at which checkpoints were named, and how long each took to be in force, s."""
    import rclpy
    from std_msgs.msg import String

    from flow_vla.msg import PolicyStatus
    from flow_vla_ros.qos import LATCHED, STATUS
    specs = {spec.name: spec for spec in graph_specs('bringup', {'contract': contract, 'checkpoint': str(copies[0])})}
    task, words = next(iter(tasks_of(RobotContract.load(find_contract(contract))).items()))
    statuses: list[PolicyStatus] = []
    asked, took = [], []
    with ManagedProcesses() as processes:
        processes.start(specs['sim'], task=task)
        processes.start(specs['policy'], follow_checkpoints=True, trace_file=str(trace), replan_steps=replan_steps)
        rclpy.init(args=[])
        node = rclpy.create_node('swapper')
        node.create_subscription(PolicyStatus, 'policy/status', statuses.append, STATUS)
        topic = node.create_publisher(String, 'checkpoint', LATCHED)
        speech = node.create_publisher(String, 'instruction', LATCHED)
        speech.publish(String(data=words))
        _spin(node, 120.0, lambda: statuses and statuses[-1].chunks > 20)
        for number in range(1, swaps + 1):
            asked.append(time.time_ns())
            checkpoint = str(copies[number % 2])
            topic.publish(String(data=checkpoint))
            began = time.monotonic()
            _spin(node, 60.0, lambda checkpoint=checkpoint: statuses[-1].checkpoint == checkpoint)
            took.append(time.monotonic() - began)
            _spin(node, max(0.0, every - took[-1]), lambda: False)
        node.destroy_node()
        rclpy.try_shutdown()
    return asked, took


def _spin(node: Any, seconds: float, done: Any) -> None:
    import rclpy
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done():
        rclpy.spin_once(node, timeout_sec=0.05)


def _gaps(trace: Path, asked: list[int], window: float) -> dict[str, Any]:
    with trace.open() as file:
        published = np.array([int(row['published']) for row in csv.DictReader(file)])
    published = published[published >= asked[0]]
    gaps = np.diff(published) / 1e9
    since = published[1:, None] - np.array(asked)[None]
    last = np.where(since >= 0, since, np.iinfo(np.int64).max).min(1) / 1e9
    return {'while_swapping': _describe(gaps[last < window]), 'otherwise': _describe(gaps[last >= window])}


def _describe(values: Any) -> dict[str, float]:
    values = np.asarray(values)
    return {'count': len(values), 'median': float(np.median(values)), 'p99': float(np.quantile(values, 0.99)),
            'max': float(values.max())}


def _show(values: dict[str, Any]) -> None:
    table = Table('', 'count', 'median', '99 %', 'longest', title='seconds')
    for name, row in (('from chunk to chunk, while swapping', 'while_swapping'),
                      ('from chunk to chunk, otherwise', 'otherwise'), ('until a checkpoint is in force',
                                                                       'seconds_to_swap')):
        found = values[row]
        table.add_row(name, str(found['count']), *(f'{found[key]:.3f}' for key in ('median', 'p99', 'max')))
    Console().print(table)


if __name__ == '__main__':
    typer.run(measure)
