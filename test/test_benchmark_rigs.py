"""What the benchmarks of nodes compute from traces and choose from bags."""

from __future__ import annotations

from pathlib import Path

from bag_tools import MARKS, record, steps
import numpy as np
import pytest

from flow_vla_core.errors import DataError


@pytest.fixture(autouse=True)
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the benchmarks be imported."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    monkeypatch.syspath_prepend(str(root / 'benchmarks'))


def test_gaps_are_sorted_by_what_happened_meanwhile() -> None:
    from rigs.swaps import Swap, describe_swaps, gaps_by_swap
    seconds = np.array([0.0, 1.0, 2.0, 4.0, 5.0, 6.0])
    published = (seconds * 1e9).astype(np.int64)
    chunks = np.stack([published[:-1], published[1:]], 1)
    swap = Swap('one', 1_500_000_000, 4_500_000_000)
    gaps = gaps_by_swap(chunks, [swap])
    assert gaps['while_swapping'].tolist() == [1.0, 2.0, 1.0]
    assert gaps['otherwise'].tolist() == [1.0, 1.0]
    found = describe_swaps(chunks, [swap])
    assert (found['swaps'], found['seconds_to_swap']['max'], found['gaps']['while_swapping']['max']) == (1, 3.0, 2.0)
    nothing = describe_swaps(chunks, [])['gaps']['while_swapping']
    assert nothing == {'count': 0, 'median': None, 'p99': None, 'max': None}


def test_only_chunks_of_one_stretch_follow_each_other(tmp_path: Path) -> None:
    from rigs.swaps import read_chunks
    trace = tmp_path / 'policy.csv'
    rows = ((10, 100), (20, 200), (30, 300), (50, 900), (60, 950))
    trace.write_text('observation_stamp,published\n' + ''.join(f'{stamp},{at}\n' for stamp, at in rows))
    assert read_chunks(trace, [(10, 30), (45, 60)]).tolist() == [[100, 200], [200, 300], [900, 950]]
    assert read_chunks(trace).tolist() == [[100, 200], [200, 300], [300, 900], [900, 950]]
    assert read_chunks(trace, []).shape == (0, 2)


def test_a_long_curve_is_put_together_from_means() -> None:
    from rigs.online import thin
    points = [{'step': number, 'loss': float(number)} for number in range(1, 6)]
    assert thin(points, 3) == [{'step': 2, 'loss': 1.5}, {'step': 4, 'loss': 3.5}, {'step': 5, 'loss': 5.0}]
    assert thin(points, 5) == points
    assert thin([], 3) == []


def test_bags_of_the_wanted_tasks_are_played_in_turns(tmp_path: Path) -> None:
    from online import choose
    for number, task in enumerate(('open#1', 'open#2', 'close#1', 'other#1', 'open#3'), 1):
        record(tmp_path / f'episode_{number:06d}', steps(3), {**MARKS, 'task': task})
    assert [bag.name[-1] for bag in choose(tmp_path, ('close', 'open'), 0)] == ['3', '1', '2', '5']
    assert [bag.name[-1] for bag in choose(tmp_path, ('close', 'open'), 1)] == ['3', '1']
    with pytest.raises(DataError, match="no bag of 'shut'; there are close, open, other"):
        choose(tmp_path, ('shut',), 0)
