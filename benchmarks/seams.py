"""Draws what the executor heard and what it sent over ROS, with lines where chunks meet and chunks that come late."""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from rich.console import Console
import typer

from flow_vla_core.contract import ActionPart, RobotContract, find_contract
from flow_vla_core.errors import ChunkError
from flow_vla_core.evaluation.direct import DirectSettings
from flow_vla_core.evaluation.figures import new_figure, save_figure
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.evaluation.sweep import UNSEEN_SEED, Plan, make_episodes
from flow_vla_core.evaluation.traces import read_trace
from flow_vla_core.execution.limits import RATES
from flow_vla_core.simulation.robots import tasks_of
from flow_vla_core.types import ActionChunk
from flow_vla_ros.bringup import prepare_environment
from flow_vla_ros.evaluate import Graph, checkpoint_folder, running_graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rclpy.node import Node

WINDOW = 4.0  # s that are drawn


@dataclass(frozen=True)
class Recording:
    """Holds what went into an executor and what came out of it in one episode.

    Args:
        realtime: how the policy continued its chunks.
        part: of the action vector that is looked at.
        place: of its values in the action vector.
        period: of control, s.
        stamps: (K,) of the control ticks, ns.
        followed: (K,) number of the chunk in force, 0 for none.
        sent: (K, n) commands.
        heard: chunks.
        success: whether the task was done.
    """

    realtime: str
    part: ActionPart
    place: slice
    period: float
    stamps: np.ndarray
    followed: np.ndarray
    sent: np.ndarray
    heard: list[ActionChunk]
    success: bool

    @property
    def meetings(self) -> np.ndarray:
        """(C,) ticks at which the executor went over from one chunk to the next."""
        return 1 + np.flatnonzero((np.diff(self.followed) != 0) & (self.followed[:-1] > 0) & (self.followed[1:] > 0))

    def derivative(self, order: int) -> np.ndarray:
        """Differentiate the commands: (K - order, n)."""
        return np.diff(self.sent, order, axis=0) / self.period ** order

    def figures(self) -> dict[str, float]:
        """Return the largest changes of the command from tick to tick, and of its rate, where chunks meet and inside.

        A position's change is a velocity, its rate's an acceleration; a velocity's change is an acceleration already.
        """
        names = ('acceleration', 'jerk') if self.part.kind in RATES else ('velocity', 'acceleration', 'jerk')
        following = self.followed > 0
        found: dict[str, float] = {}
        for order, name in enumerate(names, 1):
            sizes = np.abs(self.derivative(order)).max(1)
            meets = np.isin(np.arange(len(sizes))[:, None] + np.arange(1, order + 1), self.meetings).any(1)
            inside = ~meets & np.lib.stride_tricks.sliding_window_view(following, order + 1).all(1)
            found |= {f'{name}_where_they_meet': float(sizes[meets].max(initial=0)),
                      f'{name}_inside': float(sizes[inside].max(initial=0))}
        return found


def record(graph: Graph, realtime: str) -> Recording:
    """Run one episode and read what the executor heard and sent."""
    from flow_vla.msg import ActionChunk as Message
    from flow_vla_ros import codecs, qos
    contract, heard = graph.plan.contract, []

    def hear(message: Message) -> None:
        try:
            heard.append(codecs.message_to_chunk(message, contract))
        except ChunkError as error:
            Console().print(f'not drawn: {error}')

    def listen(node: Node) -> None:
        node.create_subscription(Message, 'action_chunk', hear, qos.CHUNK)

    (episode,) = make_episodes(graph.plan)
    with running_graph(graph, listen) as conductor:
        result = conductor.run(episode, graph.plan.settings.max_steps)
        start, end = conductor.span
    part = contract.actions[0]
    names = [f'command.{part.name}.{name}' for name in part.names]
    rows = read_trace(graph.trace('executor'), ('stamp', 'chunk_id', *names))
    stamps = rows['stamp'].astype(np.int64)
    kept = (stamps >= start) & (stamps <= end)
    sent = np.stack([rows[name].astype(float) for name in names], 1)
    return Recording(realtime, part, contract.action_slices[part.name], 1 / contract.rates.control_hz, stamps[kept],
                     rows['chunk_id'].astype(int)[kept], sent[kept],
                     [chunk for chunk in heard if start <= chunk.stamp <= end], result.success)


def draw(path: Path, recordings: list[Recording], title: str) -> None:
    """Draw the liveliest value of each recording: chunks and commands, and below them how fast the commands change."""
    figure = new_figure((11, 3.4 * len(recordings)))
    grid = figure.subplots(2 * len(recordings), 1, height_ratios=[2, 1] * len(recordings), squeeze=False)
    for index, recording in enumerate(recordings):
        _draw_one(grid[2 * index, 0], grid[2 * index + 1, 0], recording)
    grid[0, 0].legend(loc='lower right', bbox_to_anchor=(1, 1), fontsize=8, ncols=4, frameon=False)
    grid[-1, 0].set_xlabel(f'time, s ({title})')
    save_figure(figure, path, dpi=90)


def _draw_one(above: Axes, below: Axes, recording: Recording) -> None:
    axis = int(np.abs(recording.derivative(1)).sum(0).argmax())
    begin = recording.stamps[int(np.argmax(recording.followed > 0))]
    times, meetings = (recording.stamps - begin) * 1e-9, recording.meetings
    for axes in (above, below):
        for number, meeting in enumerate(meetings[times[meetings] < WINDOW]):
            axes.axvline(times[meeting], color='0.8', linewidth=0.8, label='' if number else 'chunks meet')
    for number, chunk in enumerate(recording.heard):
        steps = (chunk.stamp - begin + chunk.dt * np.arange(chunk.horizon)) * 1e-9
        above.plot(steps, chunk.actions[:, recording.place][:, axis], '.-', markersize=3, linewidth=0.7,
                   color=('tab:orange', 'tab:green')[number % 2], label='' if number > 1 else 'heard: chunks in turns')
    above.plot(times, recording.sent[:, axis], color='tab:blue', linewidth=1.6, label='sent: commands')
    below.plot(times[1:], recording.derivative(1)[:, axis], color='tab:blue', linewidth=1)
    unit = recording.part.unit
    above.set_title(f'realtime: {recording.realtime}', fontsize=9, loc='left')
    above.set(ylabel=f'{recording.part.names[axis]}, {unit}', xlim=(0, min(WINDOW, times[-1])))
    below.set_ylabel(f'change, {unit}/s', fontsize=8)
    below.set_xlim(above.get_xlim())
    above.set_xticklabels([])


def measure(
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'so101',
    checkpoint: Annotated[Path | None, typer.Option(help='folder of the policy; default: the shipped one')] = None,
    realtime: Annotated[str, typer.Option(help='comma-separated: none, guided, prefix')] = 'none,guided,prefix',
    latency: Annotated[float, typer.Option(min=0, help='by which every chunk is held back, s')] = 0.15,
    interpolation: Annotated[str, typer.Option(help='auto, linear, cubic or hold')] = 'auto',
    task: Annotated[str | None, typer.Option(help="default: the robot's first")] = None,
    seed: Annotated[int, typer.Option(min=0, help='of scene and noise')] = UNSEEN_SEED,
    steps: Annotated[int, typer.Option(min=1, help='policy steps after which it is over')] = 120,
    out: Annotated[Path, typer.Option(help='folder of the results')] = Path('out/benchmarks/seams'),
) -> None:
    """Run one episode for each way to go on from a late chunk, and draw and measure how the chunks meet."""
    prepare_environment()
    robot = RobotContract.load(find_contract(contract))
    task = task or next(iter(tasks_of(robot)))
    plan = Plan(str(checkpoint_folder(checkpoint, robot.name)), robot, (task,), 1, seed,
                settings=DirectSettings(max_steps=steps))
    recordings = []
    for mode in realtime.split(','):
        parameters = {'policy': {'realtime': mode, 'latency': latency}, 'executor': {'interpolation': interpolation}}
        recordings.append(record(Graph(plan, out / mode, parameters=parameters), mode))
    draw(out / 'seams.png', recordings, f'{task}, chunks {1e3 * latency:.0f} ms late')
    values = {'contract': robot.label, 'task': task, 'latency': latency, 'interpolation': interpolation,
              'checkpoint': plan.checkpoint, 'git_commit': git_state()[0], 'machine': asdict(Machine.here()),
              'episodes': [{'realtime': item.realtime, 'success': item.success, 'chunks': len(item.heard),
                            'meetings': len(item.meetings), **item.figures()} for item in recordings]}
    (out / 'seams.json').write_text(json.dumps(values, indent=2) + '\n')
    Console().print_json(data=values)


if __name__ == '__main__':
    typer.run(measure)
