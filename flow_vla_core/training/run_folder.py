"""What a training leaves in its folder beside the weights: settings, environment, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
from dataclasses import asdict
from datetime import datetime, timezone
import io
import json
import os
from pathlib import Path
import shlex
import sys
from typing import Any

import torch
import yaml

from flow_vla_core.errors import ConfigError
from flow_vla_core.training.checkpoint import recover_folder
from flow_vla_core.training.report import Point, environment, plot_curves

__all__ = ['RunFolder', 'check_folder']

CHECKPOINT, RESUME, EVENTS, SAMPLES = 'checkpoint', 'resume', 'events', 'samples.png'
ENVIRONMENT = 'environment.json'
README = """\
A training of flow_vla.

checkpoint/         the policy, for use: weights, settings, statistics, contract. With patience: of the best validation
resume/             all that the training needs to go on exactly where it was (--resume)
config.yaml         all settings; can be given to --config
environment.json    an entry for each start: command line, commit, versions, machine
report.json         what was trained on what, and all points of the curves
metrics.csv         the points of the curves as a table
curves.png          losses, errors and learning rate over the steps
samples.png         chunks that the policy makes for held-out moments, beside what was done
events/             the curves for TensorBoard
"""
WRITTEN = ('README.txt', 'config.yaml', 'report.json', 'metrics.csv', 'curves.png', SAMPLES, CHECKPOINT, EVENTS)


class RunFolder:
    """Writes the folder of a training; a training without a folder writes nothing.

    Args:
        path: of the folder, or None.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     RunFolder(Path(folder)).write({'words': ['go']}, [Point(3, {'loss': 0.5})], 3, 1.5)
        ...     print((Path(folder) / 'metrics.csv').read_text(), end='')
        step,loss
        3,0.5
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __bool__(self) -> bool:
        return self.path is not None

    def begin(self, config: Mapping[str, Any], device: torch.device, processes: int) -> None:
        """Write the settings, and add this start to the environment."""
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / 'README.txt').write_text(README)
        _replace(self.path / 'config.yaml', yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False))
        file = self.path / ENVIRONMENT
        starts = json.loads(file.read_text()) if file.is_file() else []
        starts.append({'started': datetime.now(timezone.utc).isoformat(timespec='seconds'),
                       'command': shlex.join(sys.argv), 'processes': processes, **environment(device)})
        _replace(file, json.dumps(starts, indent=1))

    def write(self, description: Mapping[str, Any], points: Sequence[Point], step: int, seconds: float) -> None:
        """Write the report, the curves as a table and their picture."""
        if self.path is None:
            return
        newest: dict[str, float] = {}
        for point in points:
            newest |= point.values
        report = {**description, 'steps': step, 'seconds': round(seconds, 1), 'newest': newest,
                  'points': [asdict(point) for point in points]}
        _replace(self.path / 'report.json', json.dumps(report, indent=1))
        _write_table(self.path / 'metrics.csv', points)
        plot_curves(self.path / 'curves.png', points)


def check_folder(folder: Path, resume: bool) -> bool:
    """Tell whether a folder holds a run.

    Raises:
        ConfigError: if it does and the training is not to go on with it, if it holds something else that a run would
            overwrite, or if the folder can't be written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f'{folder}: {existing} {"can not be written" if existing.is_dir() else "is no folder"}')
    recover_folder(folder / RESUME)
    there = (folder / RESUME).exists()
    if there and not resume:
        raise ConfigError(f'{folder} holds a run already; go on with --resume (of a node: resume:=true), or choose '
                          'another folder')
    foreign = [name for name in WRITTEN if (folder / name).exists()]
    if foreign and not there and not (folder / ENVIRONMENT).exists():
        raise ConfigError(f'{folder} holds no run, but {foreign[0]}, which a run would overwrite; choose another '
                          'folder')
    return there


def _write_table(path: Path, points: Sequence[Point]) -> None:
    names = list(dict.fromkeys(name for point in points for name in point.values))
    text = io.StringIO(newline='')
    table = csv.DictWriter(text, ['step', *names], lineterminator='\n')
    table.writeheader()
    table.writerows({'step': point.step, **point.values} for point in points)
    _replace(path, text.getvalue())


def _replace(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the older one whole."""
    temporary = path.with_name('.' + path.name)
    temporary.write_text(text)
    temporary.replace(path)
