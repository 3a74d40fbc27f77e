"""What a latency study found: one cell for each method, delay and task, and their sums as a table and a CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import csv
from dataclasses import asdict, dataclass, fields
import json
from pathlib import Path
import statistics
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.command_trace import JerkFigures
from flow_vla_core.evaluation.report import EpisodeResult, wilson_interval

__all__ = ['JERKS', 'CellResult', 'Example', 'Row', 'results_rows', 'rows_table', 'write_csv']

HEADINGS = ('method', 'delay', 'success', 'kept', 's', 'plan,\nms', 'meet', 'inside', 'ratio', 'max,\nratio',
            'planned,\nratio', 'refused')
JERKS = ('published_inside', 'published_meeting', 'planned_inside', 'planned_meeting')


@dataclass(frozen=True)
class Example:
    """Holds the commands of one episode, for a picture.

    Args:
        period: of control, s.
        names: of the A values.
        units: of them.
        published: (K, A) after limits.
        planned: (K, A) before limits.
        chunks: (K,) number of the plan in force, 0 for none.
    """

    period: float
    names: Sequence[str]
    units: Sequence[str]
    published: np.ndarray
    planned: np.ndarray
    chunks: np.ndarray


@dataclass(frozen=True)
class CellResult:
    """Holds the episodes of one method with one delay on one task.

    Args:
        method: name.
        delay: policy steps.
        task: name.
        episodes: outcomes.
        policy_dt: policy step, s.
        chunk_ms: median time that a plan took, ms.
        seconds: wall time of all episodes.
        refusals: code -> plans that were refused for it.
        key: settings that it was found with.
        jerks: name of `JERKS` -> (N,) absolute jerk of all episodes.
        example: the first episode.
    """

    method: str
    delay: int
    task: str
    episodes: Sequence[EpisodeResult]
    policy_dt: float
    chunk_ms: float
    seconds: float
    refusals: Mapping[str, int]
    key: Mapping[str, Any]
    jerks: Mapping[str, np.ndarray]
    example: Example

    def save(self, path: Path) -> None:
        """Write ``path``, a JSON file, and its arrays beside it; the JSON file comes last, so it means all is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        example = {name: getattr(self.example, name) for name in ('published', 'planned', 'chunks')}
        np.savez_compressed(path.with_suffix('.npz'), **example,
                            **{name: np.asarray(values, np.float32) for name, values in self.jerks.items()})
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != 'jerks'}
        values['episodes'] = [asdict(episode) for episode in self.episodes]
        values['example'] = {name: getattr(self.example, name) for name in ('period', 'names', 'units')}
        temporary = path.with_name(f'.{path.name}')
        temporary.write_text(json.dumps(values, indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> CellResult:
        """Read what `save` wrote. Raise `DataError` if it is something else."""
        try:
            values = json.loads(path.read_text())
            with np.load(path.with_suffix('.npz'), allow_pickle=False) as arrays:
                jerks = {name: arrays[name] for name in JERKS}
                example = {name: arrays[name] for name in ('published', 'planned', 'chunks')}
            values['episodes'] = [EpisodeResult(**episode) for episode in values['episodes']]
            values['example'] = Example(**values['example'], **example)
            return cls(**values, jerks=jerks)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f'{path}: not a cell of a latency study: {error!r}') from error


@dataclass(frozen=True)
class Row:
    """Sums up one method with one delay over all tasks.

    Args:
        method: name.
        delay: policy steps.
        episodes: how many were run.
        successes: how many met their task's criterion.
        interval: Wilson's 95 % interval of the success rate.
        kept: success rate as a share of the same method's at the smallest delay; None if that is 0.
        length: mean length of the successful episodes, s; None without any.
        chunk_ms: median time that a plan took, ms.
        seconds: wall time of an episode.
        refused: plans that were refused.
        jerks: name of `JERKS` -> figures, unit/s^3.
    """

    method: str
    delay: int
    episodes: int
    successes: int
    interval: tuple[float, float]
    kept: float | None
    length: float | None
    chunk_ms: float
    seconds: float
    refused: int
    jerks: Mapping[str, JerkFigures | None]

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.episodes

    def ratio(self, which: str, figure: str = 'p99') -> float | None:
        """Return jerk where plans meet over jerk inside them, of ``published`` or ``planned`` commands."""
        inside, meeting = self.jerks[f'{which}_inside'], self.jerks[f'{which}_meeting']
        if inside is None or meeting is None or not getattr(inside, figure):
            return None
        return getattr(meeting, figure) / getattr(inside, figure)

    def values(self) -> dict[str, Any]:
        """Return all figures by name, for a line of a CSV file."""
        low, high = self.interval
        plain = {'method': self.method, 'delay': self.delay, 'episodes': self.episodes, 'successes': self.successes,
                 'success': self.rate, 'low': low, 'high': high, 'kept': self.kept, 'length_s': self.length,
                 'chunk_ms': self.chunk_ms, 'seconds_per_episode': self.seconds, 'refused_plans': self.refused}
        jerks = {f'{name}_{key}': None if figures is None else getattr(figures, key)
                 for name, figures in self.jerks.items() for key in ('maximum', 'p99', 'mean')}
        ratios = {f'{which}_ratio_{figure}': self.ratio(which, figure)
                  for which in ('published', 'planned') for figure in ('maximum', 'p99', 'mean')}
        return {**plain, **jerks, **ratios}


def results_rows(cells: Iterable[CellResult]) -> list[Row]:
    """Sum cells up over tasks; methods in order of appearance, then delays upwards."""
    groups: dict[str, dict[int, list[CellResult]]] = {}
    for cell in cells:
        groups.setdefault(cell.method, {}).setdefault(cell.delay, []).append(cell)
    rows = []
    for delays in groups.values():
        least = _rate(delays[min(delays)])
        rows.extend(_sum_up(delays[delay], least) for delay in sorted(delays))
    return rows


def rows_table(rows: Sequence[Row]) -> Table:
    """Lay rows out for a terminal."""
    table = Table(*HEADINGS, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0),
                  caption='kept: success over that at the smallest delay; s: mean length of successes; meet, inside: '
                          '99th percentile of published jerk where plans meet and inside of them, unit/s^3')
    for column in table.columns:
        column.no_wrap, column.justify = True, 'right' if column.header != 'method' else 'left'
    for row, following in zip(rows, [*rows[1:], None]):
        table.add_row(*_cells(row), end_section=following is None or following.method != row.method)
    return table


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line for each row."""
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0].values()))
        writer.writeheader()
        writer.writerows(row.values() for row in rows)


def _rate(cells: Sequence[CellResult]) -> float:
    episodes = [episode for cell in cells for episode in cell.episodes]
    return sum(episode.success for episode in episodes) / len(episodes)


def _sum_up(cells: Sequence[CellResult], least: float) -> Row:
    episodes = [episode for cell in cells for episode in cell.episodes]
    lengths = [episode.steps * cell.policy_dt for cell in cells for episode in cell.episodes if episode.success]
    count, rate = len(episodes), _rate(cells)
    return Row(method=cells[0].method, delay=cells[0].delay, episodes=count, successes=len(lengths),
               interval=wilson_interval(len(lengths), count), kept=rate / least if least else None,
               length=statistics.fmean(lengths) if lengths else None,
               chunk_ms=statistics.median(cell.chunk_ms for cell in cells),
               seconds=sum(cell.seconds for cell in cells) / count,
               refused=sum(sum(cell.refusals.values()) for cell in cells),
               jerks={name: JerkFigures.of(np.concatenate([cell.jerks[name] for cell in cells])) for name in JERKS})


def _cells(row: Row) -> list[str]:
    low, high = row.interval
    meeting, inside = row.jerks['published_meeting'], row.jerks['published_inside']
    return [row.method, str(row.delay), f'{row.successes}/{row.episodes} ({low:.0%} to {high:.0%})',
            _show(row.kept, '.0%'), _show(row.length, '.1f'), f'{row.chunk_ms:.0f}',
            _show(meeting and meeting.p99, '.3g'), _show(inside and inside.p99, '.3g'),
            _show(row.ratio('published'), '.2f'), _show(row.ratio('published', 'maximum'), '.2f'),
            _show(row.ratio('planned'), '.2f'), str(row.refused)]


def _show(value: float | None, form: str) -> str:
    return '-' if value is None else format(value, form)
