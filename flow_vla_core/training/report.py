"""The curves of a training, and what it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
import os
from pathlib import Path
import platform
from typing import Any

import torch

from flow_vla_core.evaluation.report import git_state

PACKAGES = ('numpy', 'safetensors')

__all__ = ['Point', 'environment', 'plot_curves']


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


def environment(device: torch.device | str = 'cpu') -> dict[str, Any]:
    """Say what the training runs on."""
    device = torch.device(device)
    commit, modified = git_state()
    return {'git_commit': commit, 'git_modified': modified, 'python': platform.python_version(),
            'machine': platform.machine(), 'system': platform.platform(), 'cores': len(os.sched_getaffinity(0)),
            'threads': torch.get_num_threads(),
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
            'torch': torch.__version__, **{name: version(name) for name in PACKAGES}}


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
