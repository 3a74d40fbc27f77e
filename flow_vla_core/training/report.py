"""The report of a training: what was trained on what and how, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import platform
import subprocess
from typing import Any

import torch

__all__ = ['Point', 'environment', 'git_commit', 'plot_curves', 'write_report']


@dataclass(frozen=True)
class Point:
    """Holds the figures of one step.

    Args:
        step: number of optimiser steps done.
        values: name -> figure.

    Example:
        >>> Point(50, {'loss': 0.3}).values['loss']
        0.3
    """

    step: int
    values: dict[str, float]


def environment() -> dict[str, Any]:
    """Say what the training runs on."""
    return {'torch': torch.__version__, 'python': platform.python_version(), 'machine': platform.machine(),
            'threads': torch.get_num_threads(), 'git_commit': git_commit()}


def write_report(folder: Path, description: dict[str, Any], points: Sequence[Point], step: int,
                 seconds: float) -> None:
    """Write ``report.json`` and ``curves.png``."""
    newest: dict[str, float] = {}
    for point in points:
        newest |= point.values
    report = {**description, 'steps': step, 'seconds': round(seconds, 1), 'newest': newest,
              'points': [asdict(point) for point in points]}
    temporary = folder / '.report.json'
    temporary.write_text(json.dumps(report, indent=1))
    temporary.replace(folder / 'report.json')
    plot_curves(folder / 'curves.png', points)


def plot_curves(path: Path, points: Sequence[Point]) -> None:
    """Draw losses and the learning rate over the steps; a loss that falls below 0 gets a linear axis."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 6), layout='constrained')
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes, names in ((losses, ('loss', 'validation_loss', 'chunk_error')), (rate, ('learning_rate',))):
        lowest = 1.0
        for name in names:
            found = [(point.step, point.values[name]) for point in points if name in point.values]
            if found:
                axes.plot(*zip(*found), label=name.replace('_', ' '))
                lowest = min(lowest, *(value for _, value in found))
        axes.set_yscale('log' if lowest > 0 else 'linear')
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    rate.set_xlabel('step')
    figure.savefig(path, dpi=110)


def git_commit() -> str | None:
    """Return the commit of the source tree, if there is one."""
    try:
        done = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
