"""Reads one part of a bag that is an episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.achieved import actions_from_state
from flow_vla_core.data.alignment import AlignedFrame, EpisodeAligner
from flow_vla_core.data.bag_reader import Bag
from flow_vla_core.data.cuts import Segment
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.frames import FrameDecoder, Frames, Rows, StretchKeeper
from flow_vla_core.data.options import ReadOptions
from flow_vla_core.errors import DataError

__all__ = ['Grow', 'Part', 'SegmentReader']

Grow = Callable[[str, tuple[int, ...], type], Rows]


@dataclass(frozen=True)
class Part:
    """Holds what was read of one part of a bag.

    Args:
        frames: of its longest stretch without a gap.
        pieces: begin, end and words of each run of frames with the same words.
        task: free label.
        outcome: ``success``, ``failure`` or ``unknown``.
        complete: False if there was a gap, or the bag is damaged.
    """

    frames: Frames
    pieces: tuple[tuple[int, int, str], ...]
    task: str
    outcome: str
    complete: bool

    def episodes(self, source: Path) -> list[Episode]:
        """Return an episode for each piece; the arrays are views."""
        pieces = [(self.frames.cut(begin, end), words) for begin, end, words in self.pieces]
        return [Episode(frames.stamps, frames.images, frames.state, frames.actions, words, self.task, self.outcome,
                        source, self.complete, frames.actors) for frames, words in pieces]


class SegmentReader:
    """Reads one part of a bag.

    Args:
        bag: that it is a part of.
        contract: of the robot.
        options: of reading.
        names: topic of the contract -> recorded name.
        segment: where it begins and ends, and what is said about it.
        grow: makes the arrays that images go to.
    """

    def __init__(self, bag: Bag, contract: RobotContract, options: ReadOptions, names: Mapping[str, str],
                 segment: Segment, grow: Grow) -> None:
        self.segment = segment
        self._bag, self._contract, self._options, self._names, self._grow = bag, contract, options, names, grow
        self._aligner: EpisodeAligner | None = None
        self._problem: DataError | None = None
        self._frames: Frames | None = None
        self._count = 0
        self._done = False

    def push(self, topic: str, log_time: int, data: bytes) -> None:
        """Take in a message; what is wrong with it comes with `part`."""
        if self._aligner is None:
            self._begin()
        self._count += 1
        if self._problem is None:
            self._try(lambda: self._aligner.push(topic, log_time, data))

    def interrupt(self) -> None:
        """Take note that messages are missing here."""
        if self._aligner is not None and self._problem is None:
            self._try(self._aligner.interrupt)
            self._try(self._keeper.close)

    def finish(self) -> None:
        """Take in what is left; nothing more will come."""
        if self._aligner is None or self._done:
            return
        self._done = True
        if self._problem is None:
            self._try(self._aligner.finish)
        if self._problem is None:
            self._try(lambda: self._keeper.close(self._aligner.last_command))
        self._frames = self._keeper.best
        self._decoder.close()

    def part(self, tell: Callable[[str], None]) -> Part:
        """Return what was read, and tell of gaps. Raise `DataError` if there is no frame."""
        if self._problem is not None:
            raise self._problem
        if not self._count:
            raise DataError('no messages' + _end(self._bag))
        if self._frames is None:
            raise DataError(self._reason())
        frames, total = self._frames, self._total()
        if len(frames) < total:
            tell(f'{self._bag.path}: {self._aligner.problem or "damaged"}; kept the longest stretch without a gap, '
                 f'{len(frames)} of {total} steps')
        outcome = self.segment.outcome if self.segment.outcome in OUTCOMES else 'unknown'
        if self._options.actions == 'state':
            frames = actions_from_state(frames, self._contract, self._options.lead)
        return Part(frames, tuple(self._divide(frames)), self.segment.task, outcome, len(self._frames) >= total)

    def _begin(self) -> None:
        self._aligner = EpisodeAligner(self._contract, self._names, decode=self._bag.decode,
                                       commands=self._options.actions == 'commands')
        for time, words in self.segment.words:
            self._aligner.instruct(time, words)
        self._decoder = FrameDecoder(self._contract, self._names, self._bag.decode, self._options.threads)
        self._keeper = StretchKeeper(self._contract, self._decoder, self._grow)

    def _try(self, step: Callable[[], list[AlignedFrame] | None]) -> None:
        """Take a step, and keep the frames that it gives; what is wrong with them ends this part."""
        try:
            for frame in step() or ():
                self._keeper.add(frame)
        except DataError as error:
            self._problem = error

    def _reason(self) -> str:
        """Say why there is no frame."""
        if self._aligner.missing:
            return f'{self._names[self._aligner.missing[0]]}: no messages{_end(self._bag)}'
        start, end = self._aligner.span
        if end < start:
            return (f'streams and commands never overlap: all of them exist from {start / 1e9:.3f} s on, the first of '
                    f'them ends at {end / 1e9:.3f} s')
        return self._aligner.problem or 'no frame is whole'

    def _total(self) -> int:
        start, end = self._aligner.span
        return (end - start) // self._contract.rates.policy_dt_ns + 1

    def _divide(self, frames: Frames) -> Iterator[tuple[int, int, str]]:
        """Yield begin, end and words of each run of frames with the same words."""
        first = next((words for words in frames.instructions if words), self.segment.first_words)
        texts = np.array([words or first for words in frames.instructions], object)
        if self._options.cut == 'whole':
            texts[:] = texts[0]
        borders = [0, *(np.flatnonzero(texts[1:] != texts[:-1]) + 1).tolist(), len(texts)]
        for begin, end in zip(borders, borders[1:]):
            yield begin, end, texts[begin]


def _end(bag: Bag) -> str:
    return '' if bag.complete else f' in what can be read: {"; ".join(bag.problems)}'
