"""Plays bags, trains on them, lets a policy take the checkpoints over while it acts, and evaluates the last one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, zip_longest
import os
from pathlib import Path
import shutil
import time
from typing import Annotated

from rich.console import Console
from rigs.online import Course, Follower, ros_domain
from rigs.results import finish
from rigs.swaps import describe_swaps, read_chunks
import typer
import yaml

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bags import find_bags, read_information
from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.direct import DirectSettings, Episode
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, evaluate_direct
from flow_vla_core.simulation.robots import max_steps_of, tasks_of
from flow_vla_ros.bringup import ManagedProcesses, node_spec, prepare_environment
from flow_vla_ros.evaluate import Graph, running_graph

ACTED_SEED = UNSEEN_SEED + 100_000  # of the scenes in which the policy acts while it is trained
FIRST_SECONDS = 600.0               # until the first checkpoint
SMALL = {                           # settings of the training
    'batch_size': 32, 'learning_rate': 1e-3, 'schedule': 'constant', 'warm_up': 50, 'average': 0.995, 'log_every': 25,
    'policy': {'condition_width': 128, 'image': {'widths': [16, 16, 32], 'points': 16, 'features': 64},
               'network': {'kind': 'unet', 'width': 32, 'depth': 2},
               'generator': {'family': 'flow_matching', 'steps': 4, 'draws': 4}}}


@dataclass(frozen=True)
class Acted:
    """Tells of an episode of the policy that was being trained; ``checkpoint`` is the one in force at its end."""

    task: str
    success: bool
    steps: int
    checkpoint: str


def measure(
    bags: Annotated[Path, typer.Option(help='folder of demonstrations')],
    tasks: Annotated[str, typer.Option(help='comma-separated')] = 'drawer-open,button-press-topdown',
    minutes: Annotated[float, typer.Option(min=0.1, help='from the first checkpoint to the last')] = 10.0,
    demonstrations: Annotated[int, typer.Option(min=0, help='of each task that are played; 0: all')] = 0,
    rate: Annotated[float, typer.Option(min=0.1, help='recorded seconds per second')] = 4.0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help='steps of the optimiser')] = 200,
    config: Annotated[Path | None, typer.Option(help='settings of the training; by default a small policy')] = None,
    episodes: Annotated[int, typer.Option(min=1, help='of each task, to evaluate the last checkpoint on')] = 10,
    contract: Annotated[str, typer.Option(help='robot contract')] = 'metaworld',
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/online'),
) -> None:
    """Run the whole loop with real nodes and bags; report loss, swaps, gaps between chunks, and success.

    Player and trainer live in a ROS domain of their own, since a policy could not tell the recorded robot from the
    simulated one; checkpoints are told to the policy from here. Success of the last checkpoint is measured in one
    process, as by ``flow-vla evaluate --direct``, on scenes that neither the bags nor the acting policy saw.
    """
    prepare_environment()
    robot = RobotContract.load(find_contract(contract))
    names = tuple(tasks.split(','))
    plan = Plan('', robot, names, episodes, UNSEEN_SEED, settings=DirectSettings(max_steps=max_steps_of(robot)))
    played = choose(bags, names, demonstrations)
    out.mkdir(parents=True, exist_ok=True)
    for name in ('run', 'logs'):
        shutil.rmtree(out / name, ignore_errors=True)
    with training(plan, out, played, rate, checkpoint_every, config or write_settings(out)) as course:
        acted, follower, spans = act(plan, out, course, 60 * minutes)
        last = Path(follower.checkpoint)
    chunks = read_chunks(out / 'traces' / 'policy.csv', spans)
    report = evaluate_direct(replace(plan, checkpoint=str(last)), device='cpu', console=Console())
    report.write(out / 'last')
    finish({'tasks': names, 'bags': len(played), 'rate': rate, 'minutes': minutes, 'steps': course.status.step,
            'received': course.status.received, 'refused': course.status.refused, 'loss': course.curve(),
            'checkpoints': len(course.announced), **describe_swaps(chunks, follower.swaps),
            'acted': [asdict(each) for each in acted], 'last': last.name,
            'success': {name: f'{outcome.successes}/{outcome.episodes}' for name, outcome in report.tasks.items()}},
           out / 'online.json')


def choose(folder: Path, tasks: Sequence[str], most: int) -> list[Path]:
    """Return the first bags of each task, one of each in turns. Raise `DataError` for a task without any."""
    found: dict[str, list[Path]] = defaultdict(list)
    for bag in find_bags(folder):
        task = (read_information(bag).get('custom_data') or {}).get('task', '')
        found[task.partition('#')[0]].append(bag)
    for task in tasks:
        if task not in found:
            raise DataError(f'{folder}: no bag of {task!r}; there are {", ".join(sorted(found)) or "none"}')
    turns = zip_longest(*(found[task][:most or None] for task in tasks))
    return [bag for bag in chain.from_iterable(turns) if bag is not None]


def write_settings(out: Path) -> Path:
    """Write the settings of a small policy."""
    path = out / 'settings.yaml'
    path.write_text(yaml.safe_dump(SMALL))
    return path


@contextmanager
def training(plan: Plan, out: Path, bags: Sequence[Path], rate: float, checkpoint_every: int,
             config: Path) -> Iterator[Course]:
    """Start player and trainer in another domain, and end them with the block."""
    words = tasks_of(plan.contract)
    contract = out / 'contract.yaml'
    plan.contract.dump(contract)
    common = {'contract': str(contract), 'autostart': True}
    trainer = {**common, 'out': str(out / 'run'), 'config': str(config), 'checkpoint_every': checkpoint_every,
               'steps': 10 ** 7, 'device': 'cpu', 'keep_checkpoints': 10, 'words': [words[task] for task in plan.tasks]}
    player = {**common, 'bags': [str(bag.resolve()) for bag in bags], 'rate': rate, 'wait_for_subscribers': True}
    domain = 1 + int(os.environ['ROS_DOMAIN_ID']) % 101
    with ManagedProcesses(logs=out / 'logs') as processes:
        with ros_domain(domain):
            processes.start(node_spec('replay_trainer', use_sim_time=True, parameters=trainer))
            processes.start(node_spec('player', parameters=player))
        with Course(domain, processes) as course:
            yield course


def act(plan: Plan, out: Path, course: Course,
        seconds: float) -> tuple[list[Acted], Follower, list[tuple[int, int]]]:
    """Let a policy act from the first checkpoint on, for some time; then end the training.

    Returns what it did, what was swapped, and the first and last stamps of its episodes, ns.
    """
    course.wait_until(lambda: course.announced, FIRST_SECONDS, 'the first checkpoint')
    first = course.announced[0]
    follower, acted, spans = Follower(first), [], []
    course.pass_on(follower.ask)
    words = tasks_of(plan.contract)
    orders = (Episode(task, seed, words[task]) for seed in count(ACTED_SEED) for task in plan.tasks)
    graph = Graph(replace(plan, checkpoint=first), out, 'cpu', {'policy': {'follow_checkpoints': True}})
    with running_graph(graph, follower.attach) as conductor:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            result = conductor.run(next(orders), plan.settings.max_steps)
            spans.append(conductor.span)
            acted.append(Acted(result.task, result.success, result.steps, Path(follower.checkpoint).name))
        last = course.end()
        course.wait_until(lambda: follower.checkpoint == last, FIRST_SECONDS, f'{last} in force')
    return acted, follower, spans


if __name__ == '__main__':
    typer.run(measure)
