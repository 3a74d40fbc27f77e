"""Measures late control ticks and camera-to-command delays while simulation, policy and executor share this machine."""

from __future__ import annotations

from dataclasses import asdict
from itertools import cycle
import json
from pathlib import Path
import time
from typing import Annotated

from rich.console import Console
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.evaluation.plots import plot_latency
from flow_vla_core.evaluation.report import Machine, Percentiles, git_state
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, make_episodes
from flow_vla_core.evaluation.traces import read_trace
from flow_vla_core.simulation.robots import max_steps_of, tasks_of
from flow_vla_ros.bringup import prepare_environment
from flow_vla_ros.evaluate import Graph, checkpoint_folder, running_graph


def measure(
    seconds: Annotated[float, typer.Option(min=1, help='of episodes')] = 60.0,
    checkpoint: Annotated[Path | None, typer.Option(help='folder of the policy; default: the shipped one')] = None,
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'metaworld',
    control_hz: Annotated[float, typer.Option(min=0, help="executor's and arm's; 0: the contract's")] = 0.0,
    priority: Annotated[int, typer.Option(
        min=0, max=99, help='of the executor: SCHED_FIFO; 0: an ordinary process')] = 0,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/control_loop'),
) -> None:
    """Run episodes for a while, and report how punctual the control loop was."""
    prepare_environment()
    console = Console()
    robot = RobotContract.load(find_contract(contract))
    if control_hz:
        robot = robot.model_copy(update={'rates': robot.rates.model_copy(update={'control_hz': control_hz})})
    plan = Plan(str(checkpoint_folder(checkpoint, robot.name)), robot, tuple(tasks_of(robot)), 1, UNSEEN_SEED)
    graph, steps = Graph(plan, out, parameters={'executor': {'priority': priority}}), 0
    with running_graph(graph) as conductor:
        end = time.monotonic() + seconds
        for order in cycle(make_episodes(plan)):
            if (left := end - time.monotonic()) <= 0:
                break
            limit = min(max_steps_of(robot), max(1, round(left / plan.contract.rates.policy_dt)))
            steps += conductor.run(order, limit).steps
    times = graph.times()
    plot_latency(out / 'latency.png', times.delays)
    work = Percentiles.of(read_trace(graph.trace('executor'), ('work_ms',))['work_ms'])
    values = {**asdict(times.timing), 'work_ms': asdict(work), 'contract': robot.name,
              'command_hz': robot.rates.control_hz, 'priority': priority, 'seconds': seconds, 'steps': steps,
              'git_commit': git_state()[0], 'machine': asdict(Machine.here())}
    (out / 'control_loop.json').write_text(json.dumps(values, indent=2) + '\n')
    console.print_json(data=values)


if __name__ == '__main__':
    typer.run(measure)
