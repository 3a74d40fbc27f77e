"""Reads the tables that policy and executor wrote, and what they say about delays."""

from __future__ import annotations

from collections.abc import Iterable
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.report import Percentiles, Timing

__all__ = ['EXECUTOR_COLUMNS', 'SIM_COLUMNS', 'Times', 'read_times', 'read_trace']

LATE = 1.5  # periods
EXECUTOR_COLUMNS = ('stamp', 'wall_time', 'chunk_id', 'observation_stamp', 'late')
POLICY_COLUMNS = ('generation_ms',)
SIM_COLUMNS = ('stamp', 'wall_time')


@dataclass(frozen=True)
class Times:
    """Holds what was measured of time.

    The delay from camera to command is wall time from the observation's stamp (the moment at which the simulation
    reached it, before the images were rendered) to the first command of a plan made from it.

    Args:
        chunk_ms: (C,) from observation to actions.
        camera_to_command_ms: (F,) one for each plan that was followed.
        interval_ms: (K,) between control ticks, pauses between episodes left out.
        late: (K,) whether the tick at the end of the interval was late.
        chunk_starts: (F,) stamps of the ticks at which the executor went over to another plan, ns.
    """

    chunk_ms: np.ndarray
    camera_to_command_ms: np.ndarray
    interval_ms: np.ndarray
    late: np.ndarray
    chunk_starts: np.ndarray

    @property
    def delays(self) -> dict[str, np.ndarray]:
        """Name -> delays in ms, for plots."""
        return {'chunk generation': self.chunk_ms, 'camera to command': self.camera_to_command_ms,
                'between control ticks': self.interval_ms}

    @property
    def timing(self) -> Timing:
        """Sum up for a report."""
        ticks = len(self.interval_ms)
        return Timing(chunk_ms=Percentiles.of(self.chunk_ms),
                      camera_to_command_ms=Percentiles.of(self.camera_to_command_ms),
                      late_tick_fraction=float(np.mean(self.late)) if ticks else None,
                      control_hz=round(float(1e3 / np.mean(self.interval_ms)), 3) if ticks else None, ticks=ticks)


def read_times(policy: Path, executor: Path, sim: Path, period: float) -> Times:
    """Read the traces of a run.

    Args:
        policy: CSV of the policy node.
        executor: CSV of the executor node.
        sim: CSV with the wall time at which the simulation reached each stamp.
        period: of control, s.

    Raises:
        DataError: if a trace or one of its columns is missing.
    """
    ticks = read_trace(executor, EXECUTOR_COLUMNS)
    stamps, walls, late = ticks['stamp'].astype(np.int64), ticks['wall_time'].astype(np.int64), ticks['late'] > 0
    intervals = np.diff(walls) * 1e-6
    # The executor counts no tick as late that is the first one after a pause.
    running = ~((intervals > LATE * period * 1e3) & ~late[1:])
    changes = _changes(ticks['chunk_id'].astype(np.int64))
    reached = read_trace(sim, SIM_COLUMNS)
    wall_of = dict(zip(reached['stamp'].tolist(), reached['wall_time'].tolist()))
    delays = [walls[row] - wall_of[observed] for row, observed in
              zip(changes, ticks['observation_stamp'].astype(np.int64)[changes].tolist()) if observed in wall_of]
    return Times(chunk_ms=read_trace(policy, POLICY_COLUMNS)['generation_ms'].astype(float),
                 camera_to_command_ms=np.array(delays, float) * 1e-6, interval_ms=intervals[running],
                 late=late[1:][running], chunk_starts=stamps[changes])


def read_trace(path: Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    """Read some columns of a CSV file: name -> (N,), of integers where all are, of floats otherwise.

    Raises:
        DataError: if the file or a column is missing, or a value is no number.
    """
    try:
        with open(path, newline='') as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f'{path}: no column {missing[0]!r}; it has {reader.fieldnames}')
            rows = [row for row in reader if None not in row.values()]  # the last one may be cut off
        return {name: np.array([_number(row[name]) for row in rows]) for name in columns}
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    except ValueError as error:
        raise DataError(f'{path}: {error}') from error


def _number(text: str) -> int | float:
    return int(text) if text.lstrip('-').isdigit() else float(text)


def _changes(chunk_ids: np.ndarray) -> np.ndarray:
    """Return the rows (F,) at which another plan began to be followed; 0 means none."""
    before = np.concatenate([[0], chunk_ids[:-1]])
    return np.flatnonzero((chunk_ids != before) & (chunk_ids != 0))
