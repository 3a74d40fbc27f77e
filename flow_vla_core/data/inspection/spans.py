"""Who acted, which episodes and which words: what holds from one time of a bag to another."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flow_vla_core.data.inspection.collectors import ActorCollector, EpisodeCollector, WordCollector
from flow_vla_core.data.inspection.scan import Scan
from flow_vla_core.types import Actor

__all__ = ['Span', 'acting', 'episodes', 'instructions']

STARTED, ENDED, INSTRUCTED, MARKED, DISCARDED = range(5)  # events of Episode
OUTCOMES = {0: 'unknown', 1: 'success', 2: 'failure'}


@dataclass(frozen=True)
class Span:
    """Holds what was the case from ``start`` to ``end``, ns.

    Args:
        start: first time.
        end: last time.
        label: an instruction, an actor or the id of an episode.
        outcome: of an episode.
        ended: False for an episode that no mark ends.
    """

    start: int
    end: int
    label: str
    outcome: str = ''
    ended: bool = True

    @property
    def length(self) -> float:
        """In s."""
        return (self.end - self.start) / 1e9


def episodes(scan: Scan) -> list[Span]:
    """Return the episodes that marks on a topic delimit; without any, the whole bag is one."""
    found: list[Span] = []
    start: tuple[int, str] | None = None
    for time, event, name, _, outcome in _events(scan):
        if event == STARTED:
            if start is not None:
                found.append(Span(*_pair(start, time), ended=False))
            start = (time, name)
        elif event in (ENDED, DISCARDED) and start is not None:
            found.append(Span(*_pair(start, time), OUTCOMES.get(outcome, 'unknown')))
            start = None
    if start is not None:
        found.append(Span(*_pair(start, scan.end), ended=False))
    told = str(scan.marks.get('outcome', ''))
    if len(found) == 1 and told:  # may have been judged again after the recording
        return [replace(found[0], outcome=told)]
    return found or [Span(scan.start, scan.end, scan.path.name, told)]


def instructions(scan: Scan) -> list[Span]:
    """Return the words in force, one after another; those of the metadata count where a bag holds no others."""
    words = [(time, text) for time, event, _, text, _ in _events(scan) if event in (STARTED, INSTRUCTED) and text]
    if not words:
        words = [pair for held in scan.of_kind(WordCollector).values() for pair in held.words if pair[1]]
    told = str(scan.marks.get('instruction', '')).strip()
    changes = _changes(sorted(words))
    if told and len(changes) < 2:
        return [Span(scan.start, scan.end, told)]
    return _until(changes, scan)


def acting(scan: Scan) -> list[Span]:
    """Return who acted, one after another; empty where nothing is known."""
    changes = sorted(pair for held in scan.of_kind(ActorCollector).values() for pair in held.changes)
    names = {int(actor): actor.name.lower() for actor in Actor}
    return _until(_changes([(time, names.get(source, 'nobody')) for time, source in changes]), scan)


def _events(scan: Scan) -> list[tuple[int, int, str, str, int]]:
    return sorted(event for held in scan.of_kind(EpisodeCollector).values() for event in held.events)


def _pair(start: tuple[int, str], end: int) -> tuple[int, int, str]:
    return start[0], end, start[1]


def _changes(pairs: list[tuple[int, str]]) -> list[tuple[int, str]]:
    return [pair for k, pair in enumerate(pairs) if k == 0 or pairs[k - 1][1] != pair[1]]


def _until(changes: list[tuple[int, str]], scan: Scan) -> list[Span]:
    ends = [time for time, _ in changes[1:]] + [scan.end]
    return [Span(time, max(end, time), label) for (time, label), end in zip(changes, ends)]
