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

from flow_vla_core.config import to_values
from flow_vla_core.data.windows import Windows
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.config import TrainConfig

__all__ = ['Point', 'describe', 'plot_curves', 'write_report']


@dataclass(frozen=True)
class Point:
    """Holds the figures of one step.

    Args:
        step: number of optimiser steps done.
        values: name -> figure.
    """

    step: int
    values: dict[str, float]


def describe(policy: FlowVLA, config: TrainConfig, train: Windows, validation: Windows | None) -> dict[str, Any]:
    """Say what is trained on what, with what."""
    return {
        'contract': policy.contract.label,
        'parameters': sum(parameter.numel() for parameter in policy.parameters()),
        'config': to_values(config),
        'train': _count(train),
        'validation': _count(validation) if validation else None,
        'words': list(policy.vocabulary.words),
        'environment': {'torch': torch.__version__, 'python': platform.python_version(),
                        'machine': platform.machine(), 'threads': torch.get_num_threads(),
                        'git_commit': git_commit()},
    }


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
    """Draw losses and the learning rate over the steps."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 6), layout='constrained')
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for axes, names in ((losses, ('loss', 'validation_loss', 'chunk_error')), (rate, ('learning_rate',))):
        for name in names:
            found = [(point.step, point.values[name]) for point in points if name in point.values]
            if found:
                axes.plot(*zip(*found), label=name.replace('_', ' '))
        axes.set_yscale('log')
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


def _count(windows: Windows) -> dict[str, Any]:
    episodes = windows.episodes
    names = sorted({episode.instruction for episode in episodes})
    return {'episodes': len(episodes), 'frames': sum(map(len, episodes)), 'windows': len(windows),
            'episodes_of': {name: sum(e.instruction == name for e in episodes) for name in names}}
