"""Turns recorded bags into episodes on the policy's time grid, by the same rules as the live nodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
import logging
from pathlib import Path

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.alignment import STATUS, STATUS_AGE, STATUS_TOPIC
from flow_vla_core.data.bag_reader import Bag, BagMessage, open_bag
from flow_vla_core.data.cuts import cut_bag
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.frames import GrowingArray, Rows
from flow_vla_core.data.options import ReadOptions
from flow_vla_core.data.segment_reader import Grow, Part, SegmentReader
from flow_vla_core.errors import DataError, in_one_line

__all__ = ['ReadOptions', 'read_episode', 'read_episodes', 'read_parts']

LONGEST = 10_000  # letters of an error; it may list many topics


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
        readers = [SegmentReader(bag, contract, options, names, segment, grow(number))
                   for number, segment in enumerate(segments)]
        _feed(bag, readers, set(names.values()), names.get(STATUS_TOPIC))
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
    names = {stream.topic: bag.find(stream.topic, stream.message) for stream in contract.streams}
    if options.actions == 'commands':
        names |= {part.topic: bag.find(part.topic, part.message) for part in contract.actions}
    for topic, kind in ((contract.instruction.topic, 'std_msgs/String'), (STATUS_TOPIC, STATUS)):
        try:
            names[topic] = bag.find(topic, kind)
        except DataError:
            pass  # nobody needs it
    return names


def _feed(bag: Bag, readers: Sequence[SegmentReader], topics: set[str], status: str | None) -> None:
    """Read the bag once, and give each segment what belongs to it, and who acted just before it."""
    waiting, current = list(reversed(readers)), None
    before: deque[BagMessage] = deque()
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
            else:
                for earlier in before:
                    current.push(*earlier)
        if message.topic == status:
            before.append(message)
            while before[0].log_time < message.log_time - STATUS_AGE:
                before.popleft()
        if current is not None:
            if holes:
                current.interrupt()
            current.push(*message)
        holes.clear()
    for reader in readers:
        reader.finish()


def _in_memory(_: str, shape: tuple[int, ...], kind: type) -> Rows:
    return GrowingArray(shape, kind)


def _named(bag: Bag, error: DataError) -> DataError:
    text = in_one_line(error, LONGEST)
    return DataError(text if text.startswith(f'{bag.path}: ') else f'{bag.path}: {text}')
