"""Measures how soon the robot slows down and stands after its policy is killed, and after an emergency stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code, FlowVLAError
from flow_vla_core.evaluation.audit import Audit
from flow_vla_core.evaluation.direct import DirectSettings
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, make_episodes
from flow_vla_core.execution import Command, ExecutionState
from flow_vla_core.simulation.robots import tasks_of
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_ros.bringup import ManagedProcesses, prepare_environment
from flow_vla_ros.evaluate import Graph, checkpoint_folder

if TYPE_CHECKING:
    from rclpy.node import Node

    from flow_vla_ros.conductor import Conductor

EVENTS = ('kill', 'estop')
STAND_SECONDS = 20.0  # within which the robot has to stand
STEPS = 400           # policy steps of an episode that nothing interrupts


@dataclass(frozen=True)
class Stop:
    """Holds what one event led to.

    Args:
        event: ``kill`` of the policy's process, or ``estop``.
        slowing_ms: wall time from the event to the first command that follows no plan.
        standing_ms: wall time from the event to rest.
        violations: of the contract's bounds, from the beginning of motion to rest.
        late: share of ticks that came late, of all.
    """

    event: str
    slowing_ms: float
    standing_ms: float
    violations: dict[str, int]
    late: float


class Trigger:
    """Does something once the robot has been moving for a while, and notes when.

    Args:
        ticks: that the robot moves before.
        act: what is done.
    """

    def __init__(self, ticks: int, act: Callable[[], object]) -> None:
        self._ticks, self._act = ticks, act
        self.when: int | None = None
        self.at_rest = False

    def attach(self, node: Node) -> None:
        """Listen to the executor."""
        from flow_vla.msg import ExecutionStatus
        from flow_vla_ros import qos
        self._following = ExecutionStatus.FOLLOWING
        self._resting = (ExecutionStatus.HOLDING, ExecutionStatus.STOPPED)
        node.create_subscription(ExecutionStatus, 'executor/status', self._hear, qos.STATUS)

    def _hear(self, status: object) -> None:
        if self.when is None:
            if status.state == self._following and status.accepted_chunks and status.ticks > self._ticks:
                self.when = time.time_ns()
                self._act()
        elif status.state in self._resting and time.time_ns() - self.when > 1_500_000_000:
            self.at_rest = True  # a stopped robot says so at once, while it still slows down


def run_once(graph: Graph, event: str, ticks: int) -> Stop:
    """Start a robot, let it move, let the event happen, and read from the executor's trace what came of it."""
    from std_srvs.srv import Trigger as TriggerService

    from flow_vla_ros.conductor import Conductor
    contract = graph.plan.contract
    (episode,) = make_episodes(graph.plan)
    started: dict[str, subprocess.Popen] = {}
    clients: list[object] = []
    trigger = Trigger(ticks, lambda: started['policy'].send_signal(signal.SIGKILL) if event == 'kill'
                      else clients[0].call_async(TriggerService.Request()))

    def attach(node: Node) -> None:
        clients.append(node.create_client(TriggerService, 'executor/estop'))
        trigger.attach(node)

    with ManagedProcesses(logs=graph.logs) as processes:
        for spec in graph.specs():
            started[spec.name] = processes.start(spec)
        with Conductor(contract, processes, graph.logs, attach=[attach]) as conductor:
            conductor.wait_until_ready()
            _run_until(conductor, episode, trigger)
    if trigger.when is None:
        raise FlowVLAError('the robot was done before the event; choose a longer task, or fewer ticks')
    return read_stop(graph.trace('executor'), contract, event, trigger.when)


def _run_until(conductor: Conductor, episode: object, trigger: Trigger) -> None:
    """Run an episode until the robot stands after the event; the end of the policy ends the episode."""
    conductor.stop_when(lambda: trigger.at_rest)
    try:
        conductor.run(episode, STEPS)
    except (FlowVLAError, KeyboardInterrupt):
        if trigger.when is None:
            raise
    end = time.monotonic() + STAND_SECONDS
    while not trigger.at_rest and time.monotonic() < end:
        time.sleep(0.05)


def read_stop(trace: Path, contract: RobotContract, event: str, when: int) -> Stop:
    """Read the executor's trace."""
    table = np.genfromtxt(trace, delimiter=',', names=True, dtype=None, encoding=None)
    names = [f'command{part.name}{name}' for part in contract.actions for name in part.names]
    period = 1 / contract.rates.control_hz
    audit, stamps = Audit(contract, period), table['stamp']
    values = np.stack([table[name] for name in names], 1)
    moving = np.flatnonzero(table['state'] != 'IDLE')
    parts = tuple(part.name for part in contract.actions)
    for row in moving:
        command = Command(values[row].astype(np.float32), parts, ExecutionState[table['state'][row]], Code.OK,
                          velocities=np.zeros(values.shape[1], np.float32))
        audit.check(command, (stamps[row] - stamps[row - 1]) * 1e-9 if row else period)
    after = np.flatnonzero((table['wall_time'] > when) & (table['state'] != 'FOLLOWING'))
    still = [row for row in after if (values[row:] == values[row]).all()]
    if not still:
        raise FlowVLAError(f'{trace}: the robot never stood')
    return Stop(event, (table['wall_time'][after[0]] - when) * 1e-6, (table['wall_time'][still[0]] - when) * 1e-6,
                dict(audit.violations), float(np.mean(table['late'])))


def measure(
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'so101',
    checkpoint: Annotated[Path | None, typer.Option(help='folder of the policy; default: the shipped one')] = None,
    task: Annotated[str | None, typer.Option(help="default: the robot's last")] = None,
    repeats: Annotated[int, typer.Option(min=1, help='of each event')] = 5,
    events: Annotated[str, typer.Option(help='comma-separated: kill, estop')] = ','.join(EVENTS),
    priority: Annotated[int, typer.Option(
        min=0, max=99, help='of the executor: SCHED_FIFO; 0: an ordinary process')] = 0,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/stops'),
) -> None:
    """Kill the policy, and call the emergency stop, in motion, and report how the robot came to rest."""
    prepare_environment()
    robot = RobotContract.load(find_contract(contract))
    task = task or list(tasks_of(robot))[-1]
    folder = checkpoint_folder(checkpoint, robot.name)
    horizon = load_checkpoint(folder).config.horizon * robot.rates.policy_dt
    period = 1 / robot.rates.control_hz
    bounds = {'kill': 1e3 * (horizon + 2 * period), 'estop': 2e3 * period}
    plan, stops = Plan(str(folder), robot, (task,), 1, UNSEEN_SEED, settings=DirectSettings(max_steps=STEPS)), []
    for event in events.split(','):
        for number in range(repeats):
            ticks = round((0.5 + 0.1 * number) / period)
            graph = Graph(plan, out / f'{event}-{number}', parameters={'executor': {'priority': priority}})
            stops.append(run_once(graph, event, ticks))
    show(stops, bounds)
    values = {'contract': robot.label, 'task': task, 'priority': priority, 'bounds_ms': bounds,
              'period_ms': 1e3 * period, 'git_commit': git_state()[0], 'machine': asdict(Machine.here()),
              'stops': [asdict(stop) for stop in stops]}
    (out / 'stops.json').write_text(json.dumps(values, indent=2) + '\n')


def show(stops: list[Stop], bounds: dict[str, float]) -> None:
    """Print the worst of each event."""
    table = Table('event', 'times', 'slows down after, ms: median', 'longest', 'bound', 'stands after, ms: longest',
                  'violations', 'late ticks')
    for event in dict.fromkeys(stop.event for stop in stops):
        own = [stop for stop in stops if stop.event == event]
        slowing = [stop.slowing_ms for stop in own]
        table.add_row(event, str(len(own)), f'{np.median(slowing):.1f}', f'{max(slowing):.1f}', f'{bounds[event]:.0f}',
                      f'{max(stop.standing_ms for stop in own):.0f}',
                      str(sum(sum(stop.violations.values()) for stop in own)),
                      f'{np.mean([stop.late for stop in own]):.1%}')
    Console(width=120).print(table)


if __name__ == '__main__':
    typer.run(measure)
