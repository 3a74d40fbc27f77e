"""Cuts a bag into several, one for each episode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
import re

from flow_vla_core.data.bag_reader import Bag, open_bag
from flow_vla_core.data.cuts import Segment, cut_bag
from flow_vla_core.data.editing.pieces import Piece, Written, write_pieces
from flow_vla_core.errors import DataError

__all__ = ['split_bag']

FOREVER = 2 ** 63 - 1  # ns
MOST = 10_000  # parts
SECONDS = re.compile(r'(\d+(?:\.\d+)?)s')


def split_bag(path: Path, out: Path, by: str, without: Iterable[str] = ()) -> list[Written]:
    """Write the episodes of a bag as bags of their own, ``out/<name of the bag>_000`` and so on.

    Args:
        path: of the bag.
        out: folder of the new ones.
        by: ``marks`` of episodes; ``instruction``, where the words change; a duration such as ``30s``; or a topic: of
            a std_msgs/Bool, True begins and False ends an episode; any message of another type begins the next one.
        without: topics that are left out.

    Raises:
        DataError: if there is nothing to cut at, or a new bag exists already.
        RecordError: if a bag can't be written.
    """
    bag = open_bag(path)
    try:
        segments = list(_segments(bag, by))
    except DataError as error:
        raise DataError(f'{path}: {str(error).removeprefix(f"{path}: ")}') from error
    pieces = [Piece(out / f'{bag.path.stem}_{k:03d}', max(segment.begin, 0), segment.end,
                    _marks(bag, segment, k == len(segments) - 1 or by == 'marks'),
                    'inside' if by == 'marks' else 'none')
              for k, segment in enumerate(segments)]
    if not (written := write_pieces(bag, pieces, without)):
        raise DataError(f'{path}: no messages')
    return written


def _segments(bag: Bag, by: str) -> Iterator[Segment]:
    words_topic = next((name for name, kind in bag.types.items()
                        if kind == 'std_msgs/msg/String' and name.endswith('/instruction')), None)
    seconds = SECONDS.fullmatch(by)
    cut = cut_bag(bag, 'whole' if seconds else by, words_topic, bag.marks.get('instruction', '') or ' ')
    if seconds:
        yield from _every(bag, cut[0], float(seconds[1]))
    elif by == 'instruction':
        yield from _by_words(cut[0])
    else:
        yield from cut


def _every(bag: Bag, whole: Segment, seconds: float) -> Iterator[Segment]:
    times = [message.log_time for message in bag.read()]
    if not times:
        raise DataError('no messages')
    step = max(round(seconds * 1e9), 1)
    if (max(times) - min(times)) // step > MOST:
        raise DataError(f'{(max(times) - min(times)) / 1e9:.0f} s make more than {MOST} parts of {seconds:g} s')
    for begin in range(min(times), max(times) + 1, step):
        before = [pair for pair in whole.words if pair[0] <= begin][-1:] or list(whole.words[:1])
        yield Segment(begin, begin + step - 1, tuple(before), whole.task, whole.outcome)


def _by_words(whole: Segment) -> Iterator[Segment]:
    changes = [pair for k, pair in enumerate(whole.words) if k == 0 or whole.words[k - 1][1] != pair[1]]
    if len(changes) < 2:
        raise DataError('the instruction never changes')
    for k, (time, words) in enumerate(changes):
        begin = whole.begin if k == 0 else time
        end = changes[k + 1][0] - 1 if k + 1 < len(changes) else whole.end
        yield Segment(begin, end, ((time, words),), whole.task, whole.outcome)


def _marks(bag: Bag, segment: Segment, judged: bool) -> dict[str, str]:
    """Return the marks of a part; a judgement of the whole is one of its last part, unless marks judge each."""
    return {**bag.marks, 'instruction': segment.first_words.strip(), 'task': segment.task,
            'outcome': segment.outcome if judged else 'unknown', 'source': bag.path.name}
