"""Plots of motion and of delays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ['Motion', 'plot_latency', 'plot_motion']


@dataclass(frozen=True)
class Motion:
    """Holds what was commanded and what was measured during one episode.

    Args:
        title: says which episode it was.
        names: of the N values.
        unit: of the values.
        command_times: (K,) s.
        commands: (K, N).
        measured_times: (M,) s, on the same clock.
        measured: (M, N) what the commands brought about.
        chunk_times: (C,) times at which the executor went over to another chunk, s.
    """

    title: str
    names: Sequence[str]
    unit: str
    command_times: np.ndarray
    commands: np.ndarray
    measured_times: np.ndarray
    measured: np.ndarray
    chunk_times: np.ndarray


def plot_motion(path: Path, motion: Motion) -> None:
    """Draw each commanded value and what was measured, and a line where the executor went over to another chunk."""
    figure, axes = _subplots(len(motion.names), 1, (10, 2.2 * len(motion.names)), sharex=True)
    for index, (axis, name) in enumerate(zip(axes, motion.names)):
        for number, border in enumerate(motion.chunk_times):
            axis.axvline(border, color='0.85', linewidth=0.8, label='' if number else 'next chunk')
        axis.step(motion.command_times, motion.commands[:, index], where='post', label='commanded', linewidth=1.4)
        axis.plot(motion.measured_times, motion.measured[:, index], label='measured', linewidth=1.4)
        axis.set_ylabel(f'{name}, {motion.unit}')
    axes[0].set_title(motion.title, fontsize=10, loc='left')
    axes[0].legend(loc='lower right', bbox_to_anchor=(1, 1), fontsize=8, ncols=3, frameon=False)
    axes[-1].set_xlabel('time, s')
    _save(figure, path)


def plot_latency(path: Path, delays: Mapping[str, np.ndarray]) -> None:
    """Draw one histogram for each set of delays, with its median, its 99th percentile and its longest value.

    The axis ends somewhat above the 99th percentile: a single long delay would press all others into one bar.

    Args:
        path: of the picture.
        delays: name -> (N,) in ms; a name without values is left out.
    """
    delays = {name: np.asarray(values, float) for name, values in delays.items() if len(values)}
    figure, axes = _subplots(max(1, len(delays)), 1, (8, 2.4 * max(1, len(delays))))
    for axis, (name, values) in zip(axes, delays.items()):
        p50, p99 = np.percentile(values, [50, 99])
        high = p99 + 0.25 * (p99 - values.min())
        axis.hist(values, bins=60, range=(values.min(), high) if high > values.min() else None, color='0.6')
        axis.axvline(p50, color='tab:blue', label=f'p50 {p50:.1f} ms')
        axis.axvline(p99, color='tab:red', label=f'p99 {p99:.1f} ms')
        axis.set_xlabel(f'{name}, ms ({len(values)} values, {np.count_nonzero(values > high)} beyond this axis, '
                        f'longest {values.max():.1f})')
        axis.set_ylabel('count')
        axis.legend(fontsize=8)
    _save(figure, path)


def _subplots(rows: int, columns: int, size: tuple[float, float], **options: bool) -> tuple:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)[:, 0]


def _save(figure: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
