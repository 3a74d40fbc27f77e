"""Reports: percentiles, intervals, sums by task, and the file that they end in."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from rich.console import Console

from flow_vla_core.errors import DataError
from flow_vla_core.evaluation.report import (
    EpisodeResult,
    Percentiles,
    Report,
    Timing,
    git_state,
    summarise,
    wilson_interval,
)


def result(task: str = 'reach', success: bool = True, seed: int = 0, steps: int = 60, instruction: str = 'go'):
    return EpisodeResult(task, instruction, seed, success, steps, 500)


def report(episodes: list[EpisodeResult], timing: Timing = Timing()):
    return Report(mode='direct', checkpoint='c', contract='metaworld@0', seed=3, max_steps=500, instruction=None,
                  blank_images=False, tasks=summarise(episodes), timing=timing, seconds=1.5, episodes=episodes)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=200))
def test_percentiles_are_the_ranks_interpolated_linearly(values: list[float]):
    found = Percentiles.of(values)

    def by_hand(q: float):
        place = q * (len(values) - 1)
        low, high = math.floor(place), math.ceil(place)
        ranked = sorted(values)
        return ranked[low] + (place - low) * (ranked[high] - ranked[low])

    assert found.p50 == pytest.approx(by_hand(0.5), abs=1e-3)
    assert found.p99 == pytest.approx(by_hand(0.99), abs=1e-3)
    assert found.p50 == pytest.approx(np.percentile(values, 50), abs=1e-3)
    assert found.count == len(values)


def test_no_delays_have_no_percentiles():
    assert Percentiles.of([]) is None


@pytest.mark.parametrize('successes, trials', [(0, 20), (7, 20), (20, 20), (1, 1), (160, 200)])
def test_wilson_interval_solves_its_equation(successes: int, trials: int):
    low, high = wilson_interval(successes, trials)
    rate, z = successes / trials, 1.959964
    for bound in (low, high):
        if 0 < bound < 1:
            assert (rate - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / trials)
    assert 0 <= low <= rate <= high <= 1


def test_a_task_is_summed_up():
    episodes = [result(seed=1, steps=50), result(seed=2, success=False, steps=500), result(seed=3, steps=71),
                result('push', seed=1, success=False)]
    tasks = summarise(episodes)
    assert list(tasks) == ['reach', 'push']
    assert (tasks['reach'].episodes, tasks['reach'].successes) == (3, 2)
    assert tasks['reach'].median_steps == 60.5
    assert tasks['reach'].seeds == [1, 2, 3] and tasks['reach'].failed_seeds == [2]
    assert tasks['push'].median_steps is None and tasks['push'].success_rate == 0


def test_one_task_with_two_instructions_is_refused():
    with pytest.raises(DataError, match='reach.*come.*go'):
        summarise([result(), result(instruction='come')])


def test_the_file_has_what_readers_rely_on(tmp_path: Path):
    timing = Timing(Percentiles.of([10.0, 20.0]), Percentiles.of([60.0]), 0.002, 19.99, 4000)
    values = json.loads(report([result(), result(seed=1, success=False)], timing).write(tmp_path / 'new').read_text())
    task = values['tasks']['reach']
    assert (task['instruction'], task['episodes'], task['successes'], task['success_rate']) == ('go', 2, 1, 0.5)
    assert values['chunk_ms'] == {'p50': 15.0, 'p99': 19.9, 'count': 2}
    assert values['camera_to_command_ms']['p99'] == 60.0
    assert values['late_tick_fraction'] == 0.002 and values['control_hz'] == 19.99
    assert values['seconds'] == 1.5 and values['mode'] == 'direct' and values['blank_images'] is False
    assert values['git_commit'] == git_state()[0]
    assert values['machine']['cores'] >= 1 and values['machine']['torch']
    assert [episode['seed'] for episode in values['episodes']] == [0, 1]


def test_what_was_not_measured_is_null(tmp_path: Path):
    values = json.loads(report([result()]).write(tmp_path).read_text())
    for key in ('chunk_ms', 'camera_to_command_ms', 'late_tick_fraction', 'control_hz'):
        assert values[key] is None


def test_the_table_shows_rates_and_delays():
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(report([result(), result(seed=1, success=False)],
                         Timing(Percentiles.of([12.0]), None, 0.0025, 20.0, 400)).table())
    text = console.export_text()
    for part in ('reach', "'go'", '1/2', '50%', 'chunk p50 12.0 ms', '0.25%'):
        assert part in text
