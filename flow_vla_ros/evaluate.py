"""Evaluates a policy over ROS: simulation, policy and executor as processes of their own, in real time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
import signal
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import CheckpointError
from flow_vla_core.evaluation.console import Progress
from flow_vla_core.evaluation.direct import DirectSettings
from flow_vla_core.evaluation.report import EpisodeResult, Report, summarise
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, evaluate_direct, evaluate_pair, make_episodes
from flow_vla_core.evaluation.traces import Times, read_times
from flow_vla_core.simulation.robots import max_steps_of, tasks_of
from flow_vla_ros.bringup import INTERRUPTIONS, ManagedProcesses, NodeSpec, default_checkpoint, node_spec

if TYPE_CHECKING:
    from rclpy.node import Node

    from flow_vla_ros.conductor import Conductor

__all__ = ['Graph', 'checkpoint_folder', 'evaluate', 'evaluate_over_ros', 'make_report', 'running_graph']


@dataclass(frozen=True)
class Graph:
    """Says what to start for a plan.

    Args:
        plan: what is evaluated.
        out: folder for logs and traces.
        device: where the policy runs.
        parameters: node -> further parameters of it.
    """

    plan: Plan
    out: Path
    device: str = 'auto'
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def logs(self) -> Path:
        """Folder of the nodes' output."""
        return self.out / 'logs'

    def trace(self, node: str) -> Path:
        """Return the file that a node writes its times into."""
        return self.out / 'traces' / f'{node}.csv'

    def times(self) -> Times:
        """Read what the nodes measured."""
        return read_times(*map(self.trace, ('policy', 'executor', 'sim')), 1 / self.plan.contract.rates.control_hz)

    def specs(self) -> list[NodeSpec]:
        """Describe the nodes; clears the traces of an earlier run."""
        for node in ('policy', 'executor'):
            self.trace(node).parent.mkdir(parents=True, exist_ok=True)
            self.trace(node).unlink(missing_ok=True)
        plan, contract = self.plan, str(self.out / 'contract.yaml')
        plan.contract.dump(contract)
        policy = {'checkpoint': plan.checkpoint, 'device': self.device, 'trace_file': str(self.trace('policy')),
                  'steps': plan.steps or 0, 'replan_steps': plan.settings.replan_steps,
                  'blank_images': plan.settings.blank_images, 'allow_empty_instruction': plan.instruction == '',
                  'seed': plan.seed, 'threads': 1}
        own = {'sim': {'task': plan.tasks[0], 'seed': plan.seed}, 'policy': policy,
               'executor': {'trace_file': str(self.trace('executor'))}}
        return [node_spec(name, contract=contract, use_sim_time=True,
                          parameters={'autostart': True, **values, **self.parameters.get(name, {})})
                for name, values in own.items()]


def evaluate(
    checkpoint: Annotated[Path | None, typer.Option(help='folder of the policy; default: the shipped one')] = None,
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'metaworld',
    tasks: Annotated[str, typer.Option(help='comma-separated; all of the robot if empty')] = '',
    episodes: Annotated[int, typer.Option(min=1, help='for each task')] = 20,
    seed: Annotated[int, typer.Option(min=0, help='of the first scene of each task')] = UNSEEN_SEED,
    instruction: Annotated[str | None, typer.Option(help="replaces every task's words; '' blanks them")] = None,
    blank_images: Annotated[bool, typer.Option('--blank-images', help='give the policy black images')] = False,
    out: Annotated[Path, typer.Option(help='folder of the report')] = Path('out/evaluate'),
    direct: Annotated[bool, typer.Option('--direct', help='in this process, without ROS')] = False,
    pair: Annotated[bool, typer.Option('--pair', help="own, other's and empty words in a scene that two tasks share; "
                                       'without ROS')] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="solver steps; by default the policy's own")] = None,
    replan_steps: Annotated[int, typer.Option(min=1, help='policy steps between two inferences')] = 5,
    latency_steps: Annotated[int, typer.Option(min=0, help='--direct: steps after which a plan arrives')] = 1,
    max_steps: Annotated[int | None, typer.Option(min=1, help="after which an episode is given up; by default the "
                                                  "robot's")] = None,
    workers: Annotated[int, typer.Option(min=1, help='--direct: processes')] = 1,
    device: Annotated[str, typer.Option(help='where the policy runs: auto, cpu, cuda')] = 'auto',
) -> None:
    """Measure how often a policy succeeds and how late its commands are; write report.json.

    Runs simulation, policy and executor as processes that talk over ROS in real time, or, with --direct, the same
    policy and executor code in one process.
    """
    robot = RobotContract.load(find_contract(contract))
    settings = DirectSettings(replan_steps, latency_steps, max_steps or max_steps_of(robot), blank_images)
    names = tuple(name for name in tasks.split(',') if name) or tuple(tasks_of(robot))
    plan = Plan(str(checkpoint_folder(checkpoint, robot.name)), robot, names, episodes, seed, instruction, steps,
                settings)
    console = Console()
    if pair:
        found = evaluate_pair(plan, workers=workers, device=device, console=console)
    elif direct:
        found = evaluate_direct(plan, workers=workers, device=device, console=console)
    else:
        found = evaluate_over_ros(Graph(plan, out, device), console)
    path = found.write(out)
    console.print(found.table())
    console.print(f'written: {path}')


def evaluate_over_ros(graph: Graph, console: Console | None = None) -> Report:
    """Run a plan on a graph of processes, in real time."""
    plan, start = graph.plan, time.monotonic()
    orders = make_episodes(plan)
    with running_graph(graph) as conductor, Progress(len(orders), console) as progress:
        for order in orders:
            progress.add(conductor.run(order, plan.settings.max_steps))
    return make_report(graph, progress.results, time.monotonic() - start)


@contextmanager
def running_graph(graph: Graph, *attach: Callable[[Node], None]) -> Iterator[Conductor]:
    """Start simulation, policy and executor, and end them with the block, however it ends.

    Args:
        graph: what to start.
        attach: functions that add subscriptions to the conductor's node.
    """
    from flow_vla_ros.conductor import Conductor
    graph.out.mkdir(parents=True, exist_ok=True)
    contract = graph.plan.contract
    with ManagedProcesses(logs=graph.logs) as processes:
        for spec in graph.specs():
            processes.start(spec)
        with _remembered_signals() as signals, Conductor(
                contract, processes, graph.logs, graph.trace('sim'), attach) as conductor:
            conductor.stop_when(lambda: bool(signals))
            conductor.wait_until_ready()
            yield conductor


@contextmanager
def _remembered_signals() -> Iterator[list[int]]:
    """Note which signals came: Python drops what their handlers raise while a destructor or an import hook runs."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in INTERRUPTIONS}

    def note(number: int, frame: object) -> None:
        came.append(number)
        if callable(before[number]):
            before[number](number, frame)

    for number in INTERRUPTIONS:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_report(graph: Graph, results: list[EpisodeResult], seconds: float) -> Report:
    """Sum up outcomes and the nodes' traces."""
    plan = graph.plan
    return Report(mode='ros', checkpoint=plan.checkpoint, contract=plan.contract.label, seed=plan.seed,
                  max_steps=plan.settings.max_steps, instruction=plan.instruction,
                  blank_images=plan.settings.blank_images, tasks=summarise(results),
                  timing=graph.times().timing, seconds=seconds, episodes=results,
                  settings={'steps': plan.steps, 'device': graph.device, 'replan_steps': plan.settings.replan_steps})


def checkpoint_folder(given: Path | None, robot: str = 'metaworld') -> Path:
    """Return the folder of a policy, by default a robot's shipped one. Raise `CheckpointError` if it isn't there."""
    folder = default_checkpoint(robot) if given is None else given
    if not folder.is_dir():
        raise CheckpointError(f'no checkpoint at {folder}')
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder  # reports travel, machines don't
