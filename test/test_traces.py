"""Traces of the nodes: delays and late ticks, from tables made by hand."""

from __future__ import annotations

from collections.abc import Sequence
import csv
from pathlib import Path

import numpy as np
import pytest

from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.traces import EXECUTOR_COLUMNS, SIM_COLUMNS, read_times, read_trace

PERIOD = 0.05
STEP = 50_000_000
WALL = 10 ** 18


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence]):
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.fixture
def policy(tmp_path: Path):
    return write(tmp_path / 'policy.csv', ['stamp', 'generation_ms', 'instruction'],
                 [[0, 10.0, 'go'], [STEP, 30.5, 'go']])


@pytest.fixture
def sim(tmp_path: Path):
    """The simulation reaches each stamp 3 ms before its tick."""
    rows = [[tick * STEP, WALL + tick * STEP - 3_000_000] for tick in range(10)]
    return write(tmp_path / 'sim.csv', SIM_COLUMNS, rows)


def executor(tmp_path: Path, rows: Sequence[Sequence]):
    """Write rows of (tick, extra wall time in ms, chunk, tick of its observation, late)."""
    return write(tmp_path / 'executor.csv', EXECUTOR_COLUMNS, [
        [tick * STEP, WALL + tick * STEP + round(extra * 1e6), chunk, observed * STEP, late]
        for tick, extra, chunk, observed, late in rows])


def test_a_delay_runs_from_the_stamp_to_the_first_command(tmp_path: Path, policy: Path, sim: Path):
    path = executor(tmp_path, [(1, 0, 0, 0, 0), (2, 0, 0, 0, 0), (3, 4, 1, 2, 0), (4, 0, 1, 2, 0), (5, 0, 2, 3, 0)])
    times = read_times(policy, path, sim, PERIOD)
    np.testing.assert_allclose(times.camera_to_command_ms, [57, 103], atol=1e-3)
    np.testing.assert_array_equal(times.chunk_starts, [3 * STEP, 5 * STEP])
    np.testing.assert_allclose(times.chunk_ms, [10, 30.5])
    assert times.timing.camera_to_command_ms.count == 2


def test_an_observation_that_nobody_saw_has_no_delay(tmp_path: Path, policy: Path, sim: Path):
    path = executor(tmp_path, [(5, 0, 1, 99, 0), (6, 0, 2, 5, 0)])
    np.testing.assert_allclose(read_times(policy, path, sim, PERIOD).camera_to_command_ms, [53], atol=1e-3)


def test_late_ticks_count_and_pauses_do_not(tmp_path: Path, policy: Path, sim: Path):
    rows = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (2, 30, 0, 0, 1), (3, 0, 0, 0, 0), (100, 0, 0, 0, 0), (101, 0, 0, 0, 0)]
    timing = read_times(policy, executor(tmp_path, rows), sim, PERIOD).timing
    assert timing.ticks == 4
    assert timing.late_tick_fraction == pytest.approx(1 / 4)
    assert timing.control_hz == pytest.approx(20, abs=0.01)


def test_a_run_without_ticks_has_no_rates(tmp_path: Path, policy: Path, sim: Path):
    timing = read_times(policy, executor(tmp_path, []), sim, PERIOD).timing
    assert timing.late_tick_fraction is None and timing.control_hz is None and timing.camera_to_command_ms is None


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path, policy: Path):
    policy.write_text(policy.read_text() + '100000000')
    assert len(read_trace(policy, ['generation_ms'])['generation_ms']) == 2


def test_what_is_missing_is_named(tmp_path: Path, policy: Path):
    with pytest.raises(DataError, match="policy.csv: no column 'wall_time'"):
        read_trace(policy, ['stamp', 'wall_time'])
    with pytest.raises(DataError, match='nowhere.csv: No such file'):
        read_trace(tmp_path / 'nowhere.csv', ['stamp'])
    policy.write_text('stamp\nnever\n')
    with pytest.raises(DataError, match='never'):
        read_trace(policy, ['stamp'])
