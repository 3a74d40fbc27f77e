"""Pictures of how a generator makes chunks, and of what it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.cost import make_chunks, watch
from flow_vla_core.evaluation.figures import EXPERT, MADE, new_figure, save_figure
from flow_vla_core.generators import Generator
from flow_vla_core.types import Condition

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ['Evolution', 'plot_actions', 'plot_evolution', 'record_evolution']

LINES = 320  # in a panel over flow time
PAIRED = 4  # dimensions that are drawn against one another, at most


@dataclass(frozen=True)
class Evolution:
    """Holds what chunks looked like on their way from noise.

    Args:
        times: (K,) flow time, rising; the last is 1.
        states: (K, N, H, A) at these times.

    Example:
        >>> Evolution(np.array([0.0, 1.0]), np.zeros((2, 5, 4, 3))).end.shape
        (5, 4, 3)
    """

    times: np.ndarray
    states: np.ndarray

    @property
    def end(self) -> np.ndarray:
        """The chunks that were made, (N, H, A)."""
        return self.states[-1]


def record_evolution(generator: Generator, condition: Condition, steps: int | None = None,
                     random: torch.Generator | None = None) -> Evolution:
    """Make chunks, and keep what the network was given at each evaluation.

    Args:
        generator: of a family whose network sees the chunk on its way.
        condition: of N elements.
        steps: effort; None takes the generator's own.
        random: source of randomness.

    Raises:
        ConfigError: for a family that has no network, or whose network sees something else.

    Example:
        >>> from flow_vla_core.generators import FlowMatchingConfig
        >>> from flow_vla_core.networks import NetworkConfig, Sizes
        >>> generator = FlowMatchingConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> record_evolution(generator, Condition(torch.zeros(7, 3)), steps=2).times.tolist()
        [0.0, 0.5, 1.0]
    """
    shape = (len(condition), generator.sizes.horizon, generator.sizes.action_dim)
    seen: list[tuple[float, Tensor]] = []

    def hear(x: Tensor, t: Tensor) -> None:
        if x[:shape[0]].shape == shape:  # guidance gives both halves at once
            seen.append((t.double().mean().item(), x[:shape[0]].clone()))

    with watch(generator, hear):
        made = make_chunks(generator, condition, steps, random, size=len(condition))
    seen = [*((t, x) for t, x in seen if t < 1), (1.0, made)]
    if len(seen) < 2:
        raise ConfigError(f'{type(generator).__name__} shows no chunk on its way; allowed: families with a network '
                          'that is given the chunk and a flow time below 1')
    seen.sort(key=lambda pair: pair[0])
    return Evolution(np.array([t for t, _ in seen]), torch.stack([x for _, x in seen]).cpu().numpy())


def plot_evolution(path: Path, evolution: Evolution, names: Sequence[str] | None = None,
                   expert: np.ndarray | None = None, title: str = '') -> None:
    """Draw every number of the chunks over flow time, the chunks that come out, and their dimensions in pairs.

    The chunks that come out are blue.

    Args:
        path: of the picture.
        evolution: of N chunks.
        names: of the A dimensions.
        expert: (M, H, A) for the same condition, drawn in grey; in black if it is one chunk.
        title: of the picture.
    """
    _, _, horizon, dim = evolution.states.shape
    names = names or [f'action {index}' for index in range(dim)]
    expert = None if expert is None else np.unique(expert, axis=0)
    figure = new_figure((13, 2.1 + 1.6 * dim))
    figure.suptitle(title, fontsize=11)
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    grid = left.subplots(dim, 2, squeeze=False, width_ratios=(3, 2))
    for index, (over_time, chunk) in enumerate(grid):
        _draw_over_time(over_time, evolution, index)
        _draw_chunks(chunk, evolution.end[..., index], None if expert is None else expert[..., index])
        over_time.set_ylabel(names[index])
    grid[0, 0].set_title(f'all {horizon} actions on their way; dark: first, bright: last', fontsize=9)
    grid[0, 1].set_title('the chunks that come out', fontsize=9)
    grid[-1, 0].set_xlabel('flow time')
    grid[-1, 1].set_xlabel('action of the chunk')
    _draw_pairs(right, evolution.end[:, horizon // 2], None if expert is None else expert[:, horizon // 2], names)
    right.suptitle(f'action {horizon // 2} of the chunk', fontsize=9)
    save_figure(figure, path)


def plot_actions(path: Path, expert: np.ndarray, made: np.ndarray, names: Sequence[str] | None = None,
                 title: str = '') -> None:
    """Draw how the actions of the expert and those that are made are distributed, by dimension and place in the chunk.

    Each panel has the Wasserstein distance (W1) of the two, in the units of the actions.

    Args:
        path: of the picture.
        expert: (N, H, A).
        made: (M, H, A).
        names: of the A dimensions.
        title: of the picture.
    """
    from scipy.stats import wasserstein_distance
    horizon, dim = expert.shape[1:]
    names = names or [f'action {index}' for index in range(dim)]
    places = sorted({0, horizon // 2, horizon - 1})
    figure = new_figure((3.4 * len(places), 0.8 + 1.6 * dim))
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(dim, len(places), squeeze=False, sharex='row')
    for row, name, index in zip(grid, names, range(dim)):
        both = np.concatenate([expert[..., index].ravel(), made[..., index].ravel()])
        bins = np.linspace(*np.quantile(both, [0.001, 0.999]), 50) if np.ptp(both) else 10
        for axes, place in zip(row, places):
            theirs, mine = expert[:, place, index], made[:, place, index]
            axes.hist(theirs, bins, density=True, color=EXPERT, label='expert')
            axes.hist(mine, bins, density=True, histtype='step', color=MADE, linewidth=1.4, label='made')
            axes.set_title(f'W1 {wasserstein_distance(theirs, mine):.3f}', fontsize=8, loc='right', color='0.3', y=0.92)
            axes.set_yticks([])
            axes.spines[['top', 'right']].set_visible(False)
        row[0].set_ylabel(name)
    for axes, place in zip(grid[0], places):
        axes.set_title(f'action {place} of the chunk', fontsize=9, loc='left', y=1.08)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=2, fontsize=9, frameon=False)
    save_figure(figure, path)


def _draw_over_time(axes: Axes, evolution: Evolution, index: int) -> None:
    from matplotlib import colormaps
    states = evolution.states[..., index]
    horizon = states.shape[2]
    shown = states[:, :max(8, LINES // horizon)]
    for place in range(horizon):
        colour = colormaps['viridis'](0.9 * place / max(1, horizon - 1))
        axes.plot(evolution.times, shown[:, :, place], color=colour, linewidth=0.6, alpha=0.5)
    axes.set_xlim(0, 1)


def _draw_chunks(axes: Axes, made: np.ndarray, expert: np.ndarray | None) -> None:
    axes.plot(made[:100].T, color=MADE, linewidth=0.5, alpha=0.4)
    if expert is not None and len(expert) > 1:
        axes.plot(expert[:100].T, color='0.8', linewidth=0.5, zorder=1)
    elif expert is not None:
        axes.plot(expert[0], color='black', linewidth=1.2)


def _draw_pairs(figure: SubFigure, made: np.ndarray, expert: np.ndarray | None, names: Sequence[str]) -> None:
    """Draw histograms on the diagonal and pairs of dimensions below it."""
    count = min(PAIRED, made.shape[1])
    grid = figure.subplots(count, count, squeeze=False)
    for row in range(count):
        for column in range(count):
            axes = grid[row, column]
            if column > row:
                axes.set_visible(False)
                continue
            axes.tick_params(labelsize=7)
            _draw_pair(axes, made, expert, row, column)
            if row == count - 1:
                axes.set_xlabel(names[column], fontsize=8)
            if column == 0 and row > 0:
                axes.set_ylabel(names[row], fontsize=8)


def _draw_pair(axes: Axes, made: np.ndarray, expert: np.ndarray | None, row: int, column: int) -> None:
    both = made if expert is None else np.concatenate([made, expert])
    bins = np.histogram_bin_edges(both[:, row], 40)
    many = expert is not None and len(expert) > 1
    if row == column:
        if many:
            axes.hist(expert[:, row], bins, density=True, color=EXPERT)
        axes.hist(made[:, row], bins, density=True, color=MADE, histtype='step')
        axes.set_yticks([])
    else:
        if many:
            axes.plot(expert[:, column], expert[:, row], '.', color=EXPERT, markersize=2, alpha=0.5)
        axes.plot(made[:, column], made[:, row], '.', color=MADE, markersize=2, alpha=0.5)
    if expert is not None and not many:
        _mark(axes, expert[0], row, column)


def _mark(axes: Axes, expert: np.ndarray, row: int, column: int) -> None:
    if row == column:
        axes.axvline(expert[row], color='black', linewidth=1.2)
    else:
        axes.plot(expert[column], expert[row], '+', color='black', markersize=9, markeredgewidth=1.5)
