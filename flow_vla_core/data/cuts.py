"""Says where the episodes of a bag begin and end, and what is said about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flow_vla_core.data.bag_reader import Bag
from flow_vla_core.data.storage import LATEST
from flow_vla_core.data.typestore import full_name
from flow_vla_core.errors import DataError

__all__ = ['Segment', 'cut_bag']

EPISODE = full_name('flow_vla/Episode')
BOOL = full_name('std_msgs/Bool')
STARTED, ENDED, INSTRUCTED, MARKED, DISCARDED = range(5)  # events, as in Episode.msg
JUDGED = ('unknown', 'success', 'failure')


@dataclass(frozen=True)
class Segment:
    """Describes a part of a bag that is one episode.

    Args:
        begin: log time of its first message, ns.
        end: log time of its last message, ns.
        words: pairs of time (ns) and the instruction in force from then on.
        task: free label.
        outcome: ``success``, ``failure`` or ``unknown``.
    """

    begin: int = -1
    end: int = LATEST
    words: tuple[tuple[int, str], ...] = ()
    task: str = ''
    outcome: str = 'unknown'

    @property
    def first_words(self) -> str:
        """The words that hold before any others do."""
        return self.words[0][1] if self.words else ''


def cut_bag(bag: Bag, cut: str, words_topic: str | None, instruction: str = '') -> list[Segment]:
    """Return the parts of a bag that are episodes, in order.

    Args:
        bag: is read for its marks only.
        cut: as in `ReadOptions`.
        words_topic: recorded name of the instruction topic, if it was recorded.
        instruction: the words of a bag in which there are none.

    Raises:
        DataError: if there is nothing to cut at, no episode, or no words.
    """
    marked = cut == 'marks' and not bag.marks.get('instruction')
    if marked and (found := _by_marks(bag)):
        return found
    words = _words(bag, words_topic, cut) or ([(-1, instruction)] if instruction else [])
    if not words:
        raise DataError('no instruction in the bag; give one with --instruction')
    whole = Segment(-1, LATEST, tuple(words), bag.marks.get('task', ''), bag.marks.get('outcome', 'unknown'))
    if cut in ('marks', 'instruction', 'whole'):
        return [whole]
    borders = list(_borders(bag, cut))
    if not borders:
        raise DataError(f'{cut}: no message begins an episode')
    return [Segment(begin, end, tuple(words), whole.task, whole.outcome) for begin, end in borders]


def _words(bag: Bag, topic: str | None, cut: str) -> list[tuple[int, str]]:
    """Return pairs of time and words: of the marks with what the events say later, or else of the topic."""
    own = bag.marks.get('instruction', '').strip()
    if own and cut != 'instruction':
        changes = [(time, mark.instruction.strip()) for time, mark in _marks(bag) if mark.event == INSTRUCTED]
        return [(-1, own), *((time, words) for time, words in changes if words)]
    spoken = [] if topic is None else [(message.log_time, str(bag.decode(topic, message.data).data).strip())
                                       for message in bag.read({topic})]
    if spoken and not any(words for _, words in spoken):
        raise DataError(f'{topic}: the instruction is empty')
    return [pair for pair in spoken if pair[1]] or ([(-1, own)] if own else [])


def _marks(bag: Bag) -> Iterator[tuple[int, Any]]:
    """Yield log time and message of our Episode messages."""
    topics = {topic for topic, kind in bag.types.items() if kind == EPISODE}
    if topics:
        yield from ((message.log_time, bag.decode(message.topic, message.data)) for message in bag.read(topics))


def _by_marks(bag: Bag) -> list[Segment]:
    """Return the episodes that Episode messages begin and end; nothing if none does."""
    found: list[_Open] = []
    for time, mark in _marks(bag):
        running = found[-1] if found and found[-1].end is None else None
        if mark.event == STARTED:
            if running is not None:
                running.end = time - 1
            found.append(_Open(mark.id, time, [(time, mark.instruction.strip())], mark.task))
        else:
            for episode in reversed(found):
                if episode.id == mark.id:
                    episode.hear(time, mark)
                    break
    return [episode.close() for episode in found if not episode.discarded]


@dataclass
class _Open:
    """Collects what is said about an episode."""

    id: str
    begin: int
    words: list[tuple[int, str]]
    task: str
    outcome: int = 0
    end: int | None = None
    discarded: bool = False

    def hear(self, time: int, mark: Any) -> None:
        """Take in an event after the first."""
        self.outcome = mark.outcome or self.outcome
        self.discarded = self.discarded or mark.event == DISCARDED
        if mark.event == INSTRUCTED:
            self.words.append((time, mark.instruction.strip()))
        elif mark.event in (ENDED, DISCARDED):
            self.end = time

    def close(self) -> Segment:
        """Return the part of the bag."""
        outcome = JUDGED[self.outcome] if self.outcome < len(JUDGED) else JUDGED[0]
        words = tuple(pair for pair in self.words if pair[1])
        return Segment(self.begin, LATEST if self.end is None else self.end, words, self.task, outcome)


def _borders(bag: Bag, cut: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each part, ns."""
    topic = bag.resolve(cut)
    is_bool = bag.types[topic] == BOOL
    begin: int | None = None if is_bool else -1
    for message in bag.read({topic}):
        if not is_bool:
            if begin < message.log_time:
                yield begin, message.log_time - 1
            begin = message.log_time
        elif bag.decode(topic, message.data).data:
            begin = message.log_time if begin is None else begin
        elif begin is not None:
            yield begin, message.log_time
            begin = None
    if begin is not None and (is_bool or begin >= 0):
        yield begin, LATEST
