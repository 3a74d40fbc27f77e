"""What an evaluation found: outcomes by task, delays, and what they were measured with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
import json
import math
import os
from pathlib import Path
import platform
import statistics
import subprocess

import numpy as np
from rich.table import Table
import torch

from flow_vla_core.errors import DataError

__all__ = ['EpisodeResult', 'Machine', 'Percentiles', 'Report', 'TaskResult', 'Timing', 'git_state', 'summarise',
           'wilson_interval']


@dataclass(frozen=True)
class EpisodeResult:
    """Holds the outcome of one episode.

    Args:
        task: whose scene it was.
        instruction: the words that the policy was given.
        seed: of the scene.
        success: whether the task's own criterion was met in time.
        steps: simulation steps until success, or until the episode was given up.
        limit: steps after which it would have been given up.
        motion: for a pair of tasks that share a scene, the task whose motion was made; empty for none.
    """

    task: str
    instruction: str
    seed: int
    success: bool
    steps: int
    limit: int
    motion: str = ''


@dataclass(frozen=True)
class TaskResult:
    """Sums up the episodes of one task.

    Args:
        instruction: the words that the policy was given.
        episodes: how many were run.
        successes: how many met the criterion.
        success_rate: successes / episodes.
        interval: Wilson's 95 % interval of the success rate.
        median_steps: of the successes; None when there is none.
        seeds: of the scenes, in order.
        failed_seeds: those without success.
    """

    instruction: str
    episodes: int
    successes: int
    success_rate: float
    interval: tuple[float, float]
    median_steps: float | None
    seeds: list[int]
    failed_seeds: list[int]


@dataclass(frozen=True)
class Percentiles:
    """Holds the median and the 99th percentile of a set of delays, ms."""

    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Percentiles | None:
        """Measure delays (N,) in ms, interpolating linearly between ranks; None when there is none."""
        if len(values) == 0:
            return None
        p50, p99 = np.percentile(np.asarray(values, float), [50, 99])
        return cls(round(float(p50), 3), round(float(p99), 3), len(values))


@dataclass(frozen=True)
class Timing:
    """Holds what was measured of time; None for what a mode can't measure.

    Args:
        chunk_ms: from observation to actions.
        camera_to_command_ms: from the observation's stamp to the first command that answers it.
        late_tick_fraction: share of control ticks more than 1.5 periods after the one before.
        control_hz: mean rate of the control ticks.
        ticks: how many control ticks were counted.
    """

    chunk_ms: Percentiles | None = None
    camera_to_command_ms: Percentiles | None = None
    late_tick_fraction: float | None = None
    control_hz: float | None = None
    ticks: int | None = None


@dataclass(frozen=True)
class Machine:
    """Names what an evaluation ran on."""

    cores: int
    processor: str
    python: str
    torch: str

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        return cls(len(os.sched_getaffinity(0)), _processor(), platform.python_version(), torch.__version__)


@dataclass(frozen=True)
class Report:
    """Holds everything that ``report.json`` says.

    Args:
        mode: ``ros`` or ``direct``.
        checkpoint: folder of the policy.
        contract: label of the robot contract, ``name@digest``.
        seed: of the first episode of each task.
        max_steps: after which an episode is given up.
        instruction: the words that replaced each task's own; None when they were not replaced.
        blank_images: whether the policy saw black images.
        tasks: name -> outcome.
        timing: delays.
        seconds: wall time of the whole evaluation.
        episodes: every single outcome.
        settings: what else was chosen, by name.
    """

    mode: str
    checkpoint: str
    contract: str
    seed: int
    max_steps: int
    instruction: str | None
    blank_images: bool
    tasks: dict[str, TaskResult]
    timing: Timing
    seconds: float
    episodes: list[EpisodeResult]
    settings: dict[str, float | int | str | None] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine.here)

    @property
    def mean_success(self) -> float:
        """Mean of the tasks' success rates."""
        return statistics.fmean(task.success_rate for task in self.tasks.values()) if self.tasks else math.nan

    def write(self, folder: Path) -> Path:
        """Write ``report.json`` into a folder and return its path."""
        values = asdict(self)
        timing = values.pop('timing')
        commit, modified = git_state()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / 'report.json'
        path.write_text(json.dumps({**values, **timing, 'mean_success': self.mean_success,
                                    'git_commit': commit, 'git_modified': modified}, indent=2) + '\n')
        return path

    def table(self) -> Table:
        """Lay the outcomes out for a terminal."""
        table = results_table(self.tasks)
        timing = self.timing
        lines = [f'mean success {self.mean_success:.1%}', f'{self.seconds:.0f} s']
        for name, delays in (('chunk', timing.chunk_ms), ('camera to command', timing.camera_to_command_ms)):
            if delays is not None:
                lines.append(f'{name} p50 {delays.p50:.1f} ms, p99 {delays.p99:.1f} ms')
        if timing.late_tick_fraction is not None:
            lines.append(f'{timing.control_hz:.2f} Hz, late ticks {timing.late_tick_fraction:.2%} of {timing.ticks}')
        table.caption = '; '.join(lines)
        return table


def results_table(tasks: dict[str, TaskResult]) -> Table:
    """Lay outcomes by task out for a terminal."""
    table = Table('task', 'instruction', 'success', 'rate', '95 % interval', 'median steps')
    for name, task in tasks.items():
        steps = '-' if task.median_steps is None else f'{task.median_steps:.0f}'
        table.add_row(name, repr(task.instruction), f'{task.successes}/{task.episodes}', f'{task.success_rate:.0%}',
                      '{:.0%} to {:.0%}'.format(*task.interval), steps)
    return table


def summarise(episodes: Iterable[EpisodeResult]) -> dict[str, TaskResult]:
    """Sum episodes up by task, in order of appearance.

    Raises:
        DataError: if the episodes of one task were given different words.
    """
    groups: dict[str, list[EpisodeResult]] = {}
    for episode in episodes:
        groups.setdefault(episode.task, []).append(episode)
    return {task: _summarise_task(group) for task, group in groups.items()}


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Bound a success rate by Wilson's score interval (JASA 22, 1927).

    ``(p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)``

    Args:
        successes: out of the trials.
        trials: n, at least 1.
        z: quantile of the normal distribution; the default bounds 95 %.
    """
    rate, square = successes / trials, z * z / trials
    centre = rate + square / 2
    spread = math.sqrt(rate * (1 - rate) * square + square * square / 4)
    return max(0.0, (centre - spread) / (1 + square)), min(1.0, (centre + spread) / (1 + square))


def git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the source tree and whether files differ from it; None outside of a repository."""
    source = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', source, *arguments], check=True, capture_output=True, text=True).stdout

    try:
        return git('rev-parse', 'HEAD').strip(), bool(git('status', '--porcelain', '--untracked-files=no').strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _summarise_task(episodes: list[EpisodeResult]) -> TaskResult:
    words = {episode.instruction for episode in episodes}
    if len(words) > 1:
        raise DataError(f'{episodes[0].task}: episodes with different instructions {sorted(words)}')
    steps = [episode.steps for episode in episodes if episode.success]
    return TaskResult(
        instruction=episodes[0].instruction, episodes=len(episodes), successes=len(steps),
        success_rate=len(steps) / len(episodes), interval=wilson_interval(len(steps), len(episodes)),
        median_steps=statistics.median(steps) if steps else None, seeds=[episode.seed for episode in episodes],
        failed_seeds=[episode.seed for episode in episodes if not episode.success])


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')),
                platform.processor())
