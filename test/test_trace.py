"""The table of a node: whole rows, on disk when they are flushed and not before."""

from __future__ import annotations

from pathlib import Path

from flow_vla_ros.trace import Trace


def test_rows_wait_for_the_flush(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'trace.csv'
    trace = Trace(path, ['stamp', 'value'])
    for number in range(5_000):
        trace.write((number, 'a value of some length'))
    assert path.read_text().split() == ['stamp,value']
    trace.flush()
    assert len(path.read_text().splitlines()) == 5_001
    trace.close()
