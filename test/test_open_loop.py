"""Chunks against commands, without ROS: which command counts, when enough is known, and what is summed up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from core_samples import make_episode, small_contract
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.open_loop import Comparison, OpenLoop, compare, compare_episode, value_names
from flow_vla_core.evaluation.open_loop_report import OpenLoopSummary
from flow_vla_core.types import ActionChunk, Generated, Observation

CONTRACT = small_contract(history=2)
DT = CONTRACT.rates.policy_dt_ns
ONES = np.ones(4)


def chunk(stamp: int, level: float = 0.0, horizon: int = 3, number: int = 1) -> ActionChunk:
    return ActionChunk(stamp, DT, np.full((horizon, 4), level, np.float32), number, 'go')


def say(open_loop: OpenLoop, stamp: int, level: float) -> None:
    """Send a command of every part."""
    for part in CONTRACT.actions:
        open_loop.log.push(part.name, stamp, np.full(part.dim, level))


def test_a_chunk_waits_until_the_commands_of_all_its_steps_are_known() -> None:
    open_loop = OpenLoop(CONTRACT)
    open_loop.add(chunk(0), ONES)
    for step in range(2):
        say(open_loop, step * DT, step)
    assert open_loop.take() == []
    open_loop.log.push('ee', 2 * DT, np.full(3, 2.0))
    assert open_loop.take() == [], 'the other part may still come'
    open_loop.log.push('gripper', 2 * DT, np.full(1, 2.0))
    found, = open_loop.take()
    np.testing.assert_array_equal(found.errors, [[0] * 4, [1] * 4, [2] * 4])
    assert open_loop.take() == []


@given(times=st.lists(st.integers(0, 10 * DT), min_size=2, max_size=20, unique=True), start=st.integers(0, 3 * DT))
def test_the_command_in_force_is_the_newest_at_or_before(times: list[int], start: int) -> None:
    open_loop = OpenLoop(CONTRACT)
    for time in [0, *times]:
        say(open_loop, time, time / DT)
    open_loop.add(chunk(start), ONES)
    expected = []
    for moment in (start + index * DT for index in range(3)):
        if moment <= max(times):
            expected.append(max(time for time in [0, *times] if time <= moment) / DT)
    found = [row[0] for comparison in open_loop.finish() for row in comparison.errors]
    assert found == pytest.approx(expected)


def test_at_the_end_what_is_known_is_compared_and_then_forgotten() -> None:
    open_loop = OpenLoop(CONTRACT)
    say(open_loop, 0, 1.0)
    say(open_loop, DT, 1.0)
    for stamp in (0, DT, 2 * DT):
        open_loop.add(chunk(stamp), ONES)
    assert [len(found.errors) for found in open_loop.finish()] == [2, 1]
    assert open_loop.log.known_until is None and open_loop.finish() == []


def test_a_chunk_from_before_the_first_command_is_left_out() -> None:
    open_loop = OpenLoop(CONTRACT)
    say(open_loop, DT, 1.0)
    say(open_loop, 9 * DT, 1.0)
    open_loop.add(chunk(0), ONES)
    assert open_loop.take() == []


def test_chunks_do_not_pile_up_without_commands() -> None:
    open_loop = OpenLoop(CONTRACT)
    for number in range(1000):
        open_loop.add(chunk(number * DT), ONES)
        open_loop.take()
    assert len(open_loop._waiting) <= 256


def test_the_mean_is_over_values_divided_by_their_scale() -> None:
    commands = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    found = compare(chunk(0), commands, np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.mean == pytest.approx(0.5)


class Echo:
    """Answers with what it was shown: the newest state of the first value, as a constant chunk."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> Generated:
        self.seen.append(observation)
        return Generated(np.full((3, 4), observation.state[-1, 0], np.float32))


def test_an_episode_is_answered_at_the_stamps_that_are_asked_for() -> None:
    episode = make_episode(CONTRACT, 6, 'go', 1)
    engine = Echo()
    stamps = [0, DT, 4 * DT, 4 * DT + 1]
    found = list(compare_episode(engine, episode, CONTRACT, stamps, ONES))
    assert [observation.stamp for observation in engine.seen] == [DT, 4 * DT], 'the first has too little history'
    np.testing.assert_array_equal(engine.seen[1].state, episode.state[3:5])
    np.testing.assert_allclose(found[1].errors, np.abs(episode.state[4, 0] - episode.actions[4:6]), rtol=1e-6)


def test_a_summary_holds_means_of_all_kinds(tmp_path: Path) -> None:
    summary = OpenLoopSummary(value_names(CONTRACT), tmp_path / 'deep' / 'report.json')
    for number, (words, checkpoint, error) in enumerate([('go', 'a', 1.0), ('stay', 'a', 2.0), ('go', 'b', 6.0)]):
        made = ActionChunk(0, DT, np.zeros((2, 4), np.float32), number, words)
        errors = np.array([[error] * 4, [2 * error] * 4])[:2 - (number == 2)]
        summary.add(Comparison(made, errors, error, checkpoint))
    summary.write()
    values = json.loads((tmp_path / 'deep' / 'report.json').read_text())
    assert (values['chunks'], values['mean']) == (3, 3.0)
    assert values['errors']['ee.x'] == pytest.approx((1.5 + 3 + 6) / 3)
    assert {words: part['mean'] for words, part in values['by_instruction'].items()} == {'go': 3.5, 'stay': 2.0}
    assert {name: part['chunks'] for name, part in values['by_checkpoint'].items()} == {'a': 2, 'b': 1}
    assert [part['chunks'] for part in values['by_step']] == [3, 2]
    assert values['by_step'][1]['errors']['ee.x'] == pytest.approx(3.0)
    summary.close()
    rows = list(csv.DictReader((tmp_path / 'deep' / 'report.csv').open()))
    assert [row['mean'] for row in rows] == ['1', '2', '6']


def test_a_summary_that_cannot_be_written_is_a_mistake_of_the_users(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='report_file'):
        OpenLoopSummary(['x'], tmp_path / 'file' / 'report.json')
