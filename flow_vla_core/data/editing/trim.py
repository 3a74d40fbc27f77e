"""Cuts the ends of a bag off."""

from __future__ import annotations

from collections.abc import Iterable
import math
from pathlib import Path

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import Bag, open_bag
from flow_vla_core.data.editing.pieces import Piece, Written, write_pieces
from flow_vla_core.data.inspection.bag_report import choose_contract
from flow_vla_core.data.inspection.content_checks import find_idle
from flow_vla_core.data.inspection.scan import scan
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['trim_bag']

FOREVER = 2 ** 63 - 1  # ns
MARGIN = 250_000_000   # ns of rest that stay on either side of motion


def trim_bag(path: Path, out: Path, start: float = 0.0, end: float | None = None, idle: bool = False,
             contract: RobotContract | None = None, without: Iterable[str] = ()) -> Written:
    """Write the part of a bag between two times of receipt.

    Args:
        path: of the bag.
        out: folder of the new one.
        start: s after its first message.
        end: s after its first message; None for all that follows.
        idle: cut off the time at both ends, within the above, in which neither state nor commands move; a quarter of
            a second of it stays.
        contract: says what state and commands are; by default the one that the bag's marks name.
        without: topics that are left out.

    Raises:
        ConfigError: if the times are not in order, or there is no contract to find idle time by.
        DataError: if nothing is left.
        RecordError: if the new bag can't be written.
    """
    if not 0 <= start < math.inf or (end is not None and not start < end < math.inf):
        raise ConfigError(f'start {start:g}, end {"none" if end is None else f"{end:g}"}: 0 <= start < end')
    bag = open_bag(path)
    first = next(bag.read(), None)
    if first is None:
        raise DataError(f'{path}: no messages')
    begin = first.log_time + round(start * 1e9)
    stop = FOREVER if end is None else first.log_time + round(end * 1e9)
    if idle:
        begin, stop = _without_idle(bag, contract, begin, stop)
    source = f'{bag.path.name}, from second {(begin - first.log_time) / 1e9:.3f}'
    marks = {**bag.marks, 'source': source}
    written = write_pieces(bag, [Piece(out, begin, stop, marks, 'all')], without)
    if not written:
        raise DataError(f'{path}: nothing lies between second {start:g} and {"its end" if end is None else f"{end:g}"}')
    return written[0]


def _without_idle(bag: Bag, contract: RobotContract | None, begin: int, stop: int) -> tuple[int, int]:
    chosen, findings = choose_contract(bag.path, bag.marks, contract)
    if chosen is None:
        raise ConfigError(f'{bag.path}: contract: {findings[0].message}, to find out when nothing moves')
    scanned = scan(bag, chosen, 0)
    begin, stop = max(begin, scanned.start), min(stop, scanned.end)
    step = chosen.rates.policy_dt_ns
    for first, last in find_idle(scanned, chosen):
        if first <= begin + step and last >= stop - step:
            raise DataError(f'{bag.path}: nothing moves at all')
        if first <= begin + step:
            begin = max(begin, last - MARGIN)
        elif last >= stop - step:
            stop = min(stop, first + MARGIN)
    return begin, stop
