"""Turns recorded bags into episodes on the policy's time grid, by the same rules as the live nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import logging
from pathlib import Path
from typing import Literal

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.achieved import actions_from_state
from flow_vla_core.data.alignment import STATUS, STATUS_TOPIC, EpisodeAligner
from flow_vla_core.data.bag_reader import Bag, open_bag
from flow_vla_core.data.cuts import Segment, cut_bag
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.frames import FrameDecoder, Frames, GrowingArray, Rows, StretchKeeper
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['Grow', 'Part', 'ReadOptions', 'read_episode', 'read_episodes', 'read_parts']

Grow = Callable[[str, tuple[int, ...], type], Rows]


@dataclass(frozen=True)
class ReadOptions:
    """Says how episodes are taken from a bag.

    Args:
        cut: where episodes begin and end. ``marks``: at our Episode messages, or, without any, as ``instruction``.
            ``instruction``: new words begin a new episode. ``whole``: the bag is one. Otherwise a topic: of a
            std_msgs/Bool, True begins and False ends one; any message of another type ends one and begins the next.
        instruction: the words of a bag in which there are none.
        actions: ``commands``, or ``state``: what the robot did ``lead`` steps later, from its state.
        lead: steps of the policy.
        threads: that decode images; 0 decodes them in the process's only one.

    Raises:
        ConfigError: if a value is out of range.

    Example:
        >>> ReadOptions(cut='whole', instruction='open the drawer').lead
        1
    """

    cut: str = 'marks'
    instruction: str = ''
    actions: Literal['commands', 'state'] = 'commands'
    lead: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.actions not in ('commands', 'state'):
            raise ConfigError(f"actions {self.actions!r}; allowed: 'commands', 'state'")
        if self.lead < 1 or self.threads < 0:
            raise ConfigError(f'lead {self.lead}, threads {self.threads}: at least 1 and 0')
        if not self.cut:
            raise ConfigError("cut is empty; allowed: 'marks', 'instruction', 'whole', or a topic")


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


def read_episodes(bag: Bag | Path, contract: RobotContract, options: ReadOptions | None = None) -> list[Episode]:
    """Read a bag once and align it, with little memory beside the frames.

    Observations are those that a live `Synchroniser` would have selected at the grid times, actions the newest
    commands at or before them. Of a part in which a stream has a gap, longer than its ``max_skew`` allows, the longest
    stretch without one is used; so it is where the file is damaged. An episode has the same words from its first frame
    to its last: where they change, it is divided. A part without a usable stretch is left out with a warning, if
    others are left.

    Args:
        bag: a rosbag2 folder or file, or an opened one.
        contract: says which topics, and how they are read.
        options: how episodes are cut, and where actions come from.

    Raises:
        DataError: names the bag, the topic and the reason.
    """
    bag = bag if isinstance(bag, Bag) else open_bag(bag)
    parts, problems = read_parts(bag, contract, options or ReadOptions(), lambda _: _in_memory)
    for problem in problems:
        logging.getLogger(__name__).warning('%s', problem)
    return [episode for part in parts for episode in part.episodes(bag.path)]


def read_episode(bag: Bag | Path, contract: RobotContract, options: ReadOptions | None = None) -> Episode:
    """Read the only episode of a bag. Raise `DataError` if it can't be used, or there are several."""
    episodes = read_episodes(bag, contract, options)
    if len(episodes) > 1:
        raise DataError(f'{episodes[0].source}: holds {len(episodes)} episodes, not one')
    return episodes[0]


def read_parts(bag: Bag, contract: RobotContract, options: ReadOptions,
               grow: Callable[[int], Grow]) -> tuple[list[Part], list[str]]:
    """Return what `read_episodes` makes episodes of, and what is to be said about it.

    Args:
        bag: that is read.
        contract: says which topics, and how they are read.
        options: how episodes are cut, and where actions come from.
        grow: number of a part of the bag -> what makes the arrays that images go to.

    Raises:
        DataError: names the bag, the topic and the reason.
    """
    try:
        names = _find_topics(bag, contract, options)
        segments = cut_bag(bag, options.cut, names.pop(contract.instruction.topic, None), options.instruction)
        readers = [_SegmentReader(bag, contract, options, names, segment, grow(number))
                   for number, segment in enumerate(segments)]
        _feed(bag, readers, set(names.values()))
    except DataError as error:
        raise _named(bag, error) from error
    parts, problems = [], []
    for reader in readers:
        try:
            parts.append(reader.part(problems.append))
        except DataError as error:
            problems.append(str(_named(bag, error)))
    if not parts:
        raise DataError('; '.join(problems[:3]) or f'{bag.path}: no episode in it')
    if bag.problems:
        problems.append(f'{bag.path}: read as far as it goes: {"; ".join(bag.problems)}')
        parts = [replace(part, complete=False) for part in parts]
    return parts, problems


def _find_topics(bag: Bag, contract: RobotContract, options: ReadOptions) -> dict[str, str]:
    """Return topic of the contract -> recorded name."""
    names = {stream.topic: bag.find(stream.topic, stream.message)
             for stream in contract.streams}
    if options.actions == 'commands':
        names |= {part.topic: bag.find(part.topic, part.message) for part in contract.actions}
    for topic, kind in ((contract.instruction.topic, 'std_msgs/String'), (STATUS_TOPIC, STATUS)):
        try:
            names[topic] = bag.find(topic, kind)
        except DataError:
            pass  # nobody needs it
    return names


def _feed(bag: Bag, readers: Sequence[_SegmentReader], topics: set[str]) -> None:
    """Read the bag once, and give each segment what belongs to it."""
    waiting, current = list(reversed(readers)), None
    holes: list[bool] = []
    for message in bag.read(topics, lambda: holes.append(True)):
        if current is not None and message.log_time > current.segment.end:
            current.finish()
            current = None
        while current is None and waiting and waiting[-1].segment.begin <= message.log_time:
            current = waiting.pop()
            if message.log_time > current.segment.end:
                current.finish()
                current = None
        if current is not None:
            if holes:
                current.interrupt()
            current.push(*message)
        holes.clear()
    for reader in readers:
        reader.finish()


class _SegmentReader:
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
        """Take in a message; what is wrong with it comes with `episodes`."""
        if self._aligner is None:
            self._begin()
        self._count += 1
        if self._problem is None:
            self._try(lambda: self._aligner.push(topic, log_time, data))

    def interrupt(self) -> None:
        """Take note that messages are missing here."""
        if self._aligner is not None and self._problem is None:
            self._try(self._aligner.interrupt)
            self._keeper.close()

    def finish(self) -> None:
        """Take in what is left; nothing more will come."""
        if self._aligner is None or self._done:
            return
        self._done = True
        if self._problem is None:
            self._try(self._aligner.finish)
        try:
            self._frames = self._keeper.finish(self._aligner.last_command)
        except DataError as error:
            self._problem = self._problem or error
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

    def _try(self, step: Callable[[], list]) -> None:
        try:
            for frame in step():
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


def _in_memory(_: str, shape: tuple[int, ...], kind: type) -> Rows:
    return GrowingArray(shape, kind)


def _named(bag: Bag, error: DataError) -> DataError:
    text = str(error)
    return error if text.startswith(f'{bag.path}: ') else DataError(f'{bag.path}: {text}')


def _end(bag: Bag) -> str:
    return '' if bag.complete else f' in what can be read: {"; ".join(bag.problems)}'
