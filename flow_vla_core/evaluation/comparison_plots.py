"""Pictures of a comparison of families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from pathlib import Path

import numpy as np

from flow_vla_core.evaluation.figures import EXPERT, MADE, new_figure, quiet, save_figure, style

__all__ = ['plot_chunks', 'plot_comparison', 'plot_losses', 'plot_straightness', 'plot_success']

Curve = Sequence[tuple[float, float]]


def plot_comparison(path: Path, curves: Mapping[str, Curve], floor: float | None = None) -> None:
    """Draw how far from the expert each family is, against the evaluations that a chunk takes.

    Args:
        path: of the picture.
        curves: name -> (evaluations, distance).
        floor: distance between two draws of the expert.
    """
    figure = new_figure((9, 5))
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        axes.plot(*zip(*curve), label=name.replace('_', ' '), markersize=6, **style(index))
    if floor is not None:
        axes.axhline(floor, color='black', linewidth=1, label='expert against expert')
    axes.set(xscale='log', yscale='log', xlabel='evaluations of the network for a chunk',
             ylabel='W2 distance to the expert')
    ticks = sorted({x for curve in curves.values() for x, _ in curve})
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter('{x:.2g}')
    axes.yaxis.set_minor_formatter('{x:.2g}')
    axes.grid(alpha=0.3, which='both')
    figure.legend(loc='outside right upper', fontsize=9, frameon=False)
    save_figure(figure, path)


def plot_losses(path: Path, losses: Mapping[str, Curve]) -> None:
    """Draw the training loss of each family over the steps, each on a scale of its own, as losses differ in kind.

    Args:
        path: of the picture.
        losses: name -> (step, loss).
    """
    names = [name for name, curve in losses.items() if curve]
    columns = min(4, max(1, len(names)))
    rows = math.ceil(max(1, len(names)) / columns)
    figure = new_figure((3.2 * columns, 2.1 * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for axes, name in zip(grid, names):
        steps, values = np.array(losses[name], float).T
        axes.plot(steps, values, color='tab:blue', linewidth=1)
        axes.set_title(name.replace('_', ' '), fontsize=9)
        axes.set_yscale('log' if (values > 0).all() else 'linear')
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7, which='both')
    for axes in list(grid)[len(names):]:
        axes.set_visible(False)
    figure.supxlabel('step', fontsize=9)
    figure.supylabel('loss', fontsize=9)
    save_figure(figure, path)


def plot_chunks(path: Path, expert: np.ndarray, made: Mapping[str, np.ndarray],
                notes: Mapping[str, str] | None = None) -> None:
    """Draw the chunks that each family makes for one observation as ways in the plane, before those of the expert.

    Args:
        path: of the picture.
        expert: (N, H, 2).
        made: name -> (N, H, 2).
        notes: name -> a few words below the name.
    """
    columns = min(5, len(made))
    rows = math.ceil(len(made) / columns)
    figure = new_figure((2.5 * columns, 2.2 * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    edge = 1.25 * np.abs(expert[..., 1]).max()
    for axes, (name, chunks) in zip(grid, made.items()):
        axes.plot(expert[..., 0].T, expert[..., 1].T, color='0.8', linewidth=0.5)
        axes.plot(chunks[..., 0].T, chunks[..., 1].T, color=MADE, linewidth=0.6, alpha=0.35)
        axes.plot(0, 0, 'o', color='tab:red', markersize=8)
        note = (notes or {}).get(name)
        axes.set_title(name.replace('_', ' ') + (f'\n{note}' if note else ''), fontsize=8)
        axes.set(xlim=(-1.2, 1.2), ylim=(-edge, edge))
    for axes in figure.axes:
        quiet(axes)
    for axes in figure.axes[len(made):]:
        axes.set_visible(False)
    save_figure(figure, path)


def plot_success(path: Path, rates: Mapping[str, tuple[float, tuple[float, float]]]) -> None:
    """Draw the share of successes of each family with its interval.

    Args:
        path: of the picture.
        rates: name -> (rate, (low, high)).
    """
    figure = new_figure((8, 0.8 + 0.35 * len(rates)))
    axes = figure.subplots()
    for place, (rate, (low, high)) in enumerate(rates.values()):
        axes.barh(place, 100 * rate, color=MADE, height=0.65)
        axes.plot([100 * low, 100 * high], [place, place], color='black', linewidth=1.2)
        axes.text(101, place, f'{rate:.0%}', va='center', fontsize=9)
    axes.set_yticks(range(len(rates)), [name.replace('_', ' ') for name in rates])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel='success, %, with its 95 % interval')
    axes.spines[['top', 'right']].set_visible(False)
    save_figure(figure, path)


def plot_straightness(path: Path, distances: Mapping[str, Curve], straightness: Mapping[str, float],
                      floor: float | None = None) -> None:
    """Draw the distance to the data against Euler steps, and beside it how straight the paths are.

    Args:
        path: of the picture.
        distances: name -> (steps, distance).
        straightness: name -> mean of ``||(x1 - x0) - v||^2`` along the paths; 0 for straight lines.
        floor: distance between two draws of the data.
    """
    figure = new_figure((10, 4))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for index, (name, curve) in enumerate(distances.items()):
        left.plot(*zip(*sorted(curve)), label=name, **style(index))
    if floor is not None:
        left.axhline(floor, color=EXPERT, linewidth=1.2, label='data against data')
    ticks = sorted({steps for curve in distances.values() for steps, _ in curve})
    left.set(xscale='log', xlabel='Euler steps', ylabel='W2 distance to the data')
    left.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    left.xaxis.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    for index, value in enumerate(straightness.values()):
        right.barh(index, value, color=style(index)['color'], height=0.6)
        right.text(value * 1.1, index, f'{value:.3g}', va='center', fontsize=8)
    right.set_yticks(range(len(straightness)), list(straightness), fontsize=8)
    right.invert_yaxis()
    right.set(xscale='log', xlabel='deviation from a straight line, squared')
    right.set_xlim(min(straightness.values()) / 3, max(straightness.values()) * 6)
    right.spines[['top', 'right']].set_visible(False)
    save_figure(figure, path)
