"""Pictures of a latency study: success and jerk against delay, and the commands of one axis with every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flow_vla_core.evaluation.figures import new_figure, save_figure, style
from flow_vla_core.evaluation.latency_results import CellResult, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['plot_jerk', 'plot_success', 'plot_traces']

WINDOW = 4.0  # s of an episode that are drawn


def plot_success(path: Path, rows: Sequence[Row]) -> None:
    """Draw each method's share of successes against the delay, with its 95 % interval."""
    figure = new_figure((7, 4))
    axes = figure.subplots()
    methods = _by_method(rows)
    for index, (method, own) in enumerate(methods.items()):
        rates = np.array([row.rate for row in own])
        low, high = np.array([row.interval for row in own]).T
        aside = 0.06 * (index - (len(methods) - 1) / 2)  # intervals of methods would lie on one another
        axes.errorbar([row.delay + aside for row in own], 100 * rates, 100 * np.abs([rates - low, high - rates]),
                      capsize=2, elinewidth=0.8, label=method, **style(index))
    axes.set(xlabel='injected delay, policy steps', ylabel='success, %', ylim=(-3, 103))
    axes.set_xticks(sorted({row.delay for row in rows}))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_jerk(path: Path, rows: Sequence[Row], figure_of_merit: str = 'p99') -> None:
    """Draw the jerk where plans meet over that inside of them against the delay, before and after limits.

    Args:
        path: of the picture.
        rows: of all methods.
        figure_of_merit: ``p99``, ``maximum`` or ``mean``.
    """
    figure = new_figure((10, 6.5))
    grid = figure.subplots(2, 2, sharex=True)
    for column, which in enumerate(('planned', 'published')):
        for index, (method, own) in enumerate(_by_method(rows).items()):
            delays = [row.delay for row in own]
            meeting = [_figure(row, f'{which}_meeting', figure_of_merit) for row in own]
            inside = [_figure(row, f'{which}_inside', figure_of_merit) for row in own]
            look = style(index)
            grid[0, column].plot(delays, meeting, label=method, **look)
            grid[0, column].plot(delays, inside, color=look['color'], linestyle=':', linewidth=1)
            grid[1, column].plot(delays, [row.ratio(which, figure_of_merit) or np.nan for row in own], **look)
        grid[0, column].set_title(f'{which}, {figure_of_merit}', fontsize=10)
        grid[1, column].axhline(1, color='0.6', linewidth=0.8)
        grid[1, column].set(xlabel='injected delay, policy steps')
        grid[1, column].set_xticks(sorted({row.delay for row in rows}))
    grid[0, 0].set_ylabel('jerk: where plans meet (solid),\ninside of them (dotted)')
    grid[1, 0].set_ylabel('where they meet / inside')
    for axes in grid.flat:
        axes.set_yscale('log')
        axes.grid(alpha=0.3)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=len(labels), fontsize=8, frameon=False)
    save_figure(figure, path)


def plot_traces(path: Path, cells: Sequence[CellResult], axis: int | None = None) -> None:
    """Draw one axis of the first episode of each cell: the plan, the command, and a line where plans meet.

    Args:
        path: of the picture.
        cells: of one task and one delay, one for each method.
        axis: place in the action vector; the one that moves most if None.
    """
    axis = _liveliest(cells[0]) if axis is None else axis
    figure = new_figure((10, 1.9 * len(cells)))
    for axes, cell in zip(figure.subplots(len(cells), 1, sharex=True, sharey=True, squeeze=False)[:, 0], cells):
        _draw_trace(axes, cell, axis)
    first = cells[0]
    figure.axes[0].legend(fontsize=8, ncols=3, loc='lower right', bbox_to_anchor=(1, 1), frameon=False)
    figure.supxlabel(f'time, s ({first.task}, delay {first.delay} steps)', fontsize=9)
    figure.supylabel(f'{first.example.names[axis]}, {first.example.units[axis]}', fontsize=9)
    save_figure(figure, path)


def _draw_trace(axes: Axes, cell: CellResult, axis: int) -> None:
    example = cell.example
    count = min(len(example.chunks), round(WINDOW / example.period))
    times = np.arange(count) * example.period
    for number, change in enumerate(np.flatnonzero(np.diff(example.chunks[:count])) + 1):
        axes.axvline(times[change], color='0.8', linewidth=0.8, label='' if number else 'plans meet')
    axes.plot(times, example.published[:count, axis], color='tab:blue', linewidth=2, label='published')
    axes.plot(times, example.planned[:count, axis], color='tab:orange', linewidth=0.9, label='planned')
    axes.set_title(cell.method, fontsize=9, loc='left')
    axes.tick_params(labelsize=8)


def _liveliest(cell: CellResult) -> int:
    """Choose, among the axes that change at nearly all ticks, which a gripper does not, the one that goes farthest."""
    steps = np.abs(np.diff(cell.example.published, axis=0))
    changes = np.count_nonzero(steps > 1e-6, axis=0)
    return int(np.argmax(np.where(changes >= 0.9 * changes.max(), steps.sum(0), -1)))


def _figure(row: Row, name: str, figure_of_merit: str) -> float:
    figures = row.jerks[name]
    return np.nan if figures is None else getattr(figures, figure_of_merit) or np.nan


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    return methods
