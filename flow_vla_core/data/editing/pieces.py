"""Copies parts of a bag into bags of their own, byte for byte, with the values in force where a part begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
import shutil
from typing import Any, Literal

import yaml

from flow_vla_core.data.bag_reader import Bag, BagMessage
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.bags import try_information
from flow_vla_core.errors import DataError

__all__ = ['Piece', 'Written', 'offered_profiles', 'write_pieces']

EPISODE = 'flow_vla/msg/Episode'
STARTED = 0  # its event
LATCHED = ('instruction', 'robot_description', 'tf_static')  # by name, for bags that do not say how topics were offered
TRANSIENT_LOCAL = (1, 'transient_local')
LATE = 10 ** 10  # ns after its end at which a part is closed


@dataclass(frozen=True)
class Piece:
    """Describes a part of a bag.

    Args:
        folder: of the new bag; must not exist.
        begin: first log time, ns.
        end: last log time, ns.
        marks: custom data of the new bag.
        episode: which Episode messages go along. ``all``: it is the same episode still, and those that began and ended
            it outside of the part get its first and last time; ``inside``: those in the part; ``none``.
    """

    folder: Path
    begin: int
    end: int
    marks: Mapping[str, str]
    episode: Literal['all', 'inside', 'none'] = 'none'


@dataclass(frozen=True)
class Written:
    """Says what was written.

    Args:
        folder: of the bag.
        messages: in it.
        duration: between the first and the last of them, s.
        problems: why some of what was recorded is missing.
    """

    folder: Path
    messages: int
    duration: float
    problems: tuple[str, ...] = ()


def write_pieces(bag: Bag, pieces: Sequence[Piece], without: Iterable[str] = ()) -> list[Written]:
    """Read a bag once and write its parts; those without messages of their own are left out.

    Log times stay, but for values that are still in force where a part begins (of topics that are offered to late
    joiners, such as the instruction): they go along with the time of its beginning.

    Args:
        bag: opened.
        pieces: by time; they do not overlap.
        without: topics that are left out.

    Raises:
        RecordError: if the disk is full; nothing is left behind.
        DataError: if a folder exists, a type is not defined anywhere, or a message is so far out of order that it
            belongs to a part that is finished.
    """
    taken = next((piece.folder for piece in pieces if piece.folder.exists()), None)
    if taken is not None:
        raise DataError(f'{taken}: exists already; nothing is overwritten')
    topics = set(bag.types) - {bag.resolve(topic) for topic in without}
    unknown = sorted(topic for topic in topics if not bag.is_known(topic))
    if unknown:
        raise DataError(f'{bag.path}: {unknown[0]}: no definition of {bag.types[unknown[0]]} is known, so that nobody '
                        f'could read the new bag; leave it out with --without {unknown[0]}')
    copier = _Copier(bag, pieces, topics)
    try:
        for message in bag.read(topics):
            copier.take(message)
        return [replace(written, problems=tuple(bag.problems)) for written in copier.finish()]
    except BaseException:
        copier.discard()
        raise


def offered_profiles(bag: Path) -> dict[str, list[dict[str, Any]]]:
    """Return how the recorded topics were offered, as far as the metadata say so."""
    information, _ = try_information(bag)
    found: dict[str, list[dict[str, Any]]] = {}
    for topic in information.get('topics_with_message_count') or []:
        told = topic.get('topic_metadata', {}) if isinstance(topic, dict) else {}
        profiles = told.get('offered_qos_profiles') or []
        if isinstance(profiles, str):  # before version 9
            try:
                profiles = yaml.safe_load(profiles) or []
            except yaml.YAMLError:
                profiles = []
        if isinstance(profiles, list):
            found[str(told.get('name', ''))] = [profile for profile in profiles if isinstance(profile, dict)]
    return found


class _Copier:
    """Deals messages out to writers, which it opens when their first message comes."""

    def __init__(self, bag: Bag, pieces: Sequence[Piece], topics: set[str]) -> None:
        self._bag, self._pieces = bag, list(pieces)
        self._begins = [piece.begin for piece in pieces]
        offered = offered_profiles(bag.path)
        self._topics = [Topic(name, kind, tuple(offered.get(name, ())), bag.definition(name))
                        for name, kind in sorted(bag.types.items()) if name in topics]
        self._latched = {name for name in bag.types if _is_latched(name, offered.get(name, ()))}
        self._in_force: dict[str, list[BagMessage]] = {}
        self._writers: dict[int, EpisodeWriter] = {}
        self._carried: dict[int, dict[str, list[bytes]]] = {}
        self._done: dict[int, Written] = {}

    def take(self, message: BagMessage) -> None:
        """Write a message into the part that it belongs to."""
        index = bisect_right(self._begins, message.log_time) - 1
        if index >= 0:
            self._deal(index, message)
        self._note(message)
        for late in [k for k in self._writers if self._pieces[k].end + LATE < message.log_time]:
            if self._pieces[late].episode != 'all':
                self._close(late)

    def finish(self) -> list[Written]:
        """End all parts."""
        for index in sorted(self._writers):
            self._close(index)
        return [self._done[index] for index in sorted(self._done)]

    def discard(self) -> None:
        """Delete what was written."""
        for writer in self._writers.values():
            writer.discard()
        for written in self._done.values():
            shutil.rmtree(written.folder, ignore_errors=True)

    def _deal(self, index: int, message: BagMessage) -> None:
        piece, mark = self._pieces[index], self._is_mark(message.topic)
        if message.log_time <= piece.end:
            if not mark or piece.episode != 'none':
                self._write(index, message)
        elif mark and piece.episode == 'all':
            self._write(index, message._replace(log_time=piece.end))

    def _is_mark(self, topic: str) -> bool:
        return self._bag.types[topic] == EPISODE

    def _write(self, index: int, message: BagMessage) -> None:
        piece = self._pieces[index]
        if index in self._done:
            raise DataError(f'{self._bag.path}: {message.topic}: a message lies more than {LATE / 1e9:g} s out of '
                            'order')
        if index not in self._writers:
            self._writers[index] = EpisodeWriter(piece.folder, self._topics, piece.marks)
            self._carried[index] = self._values_before(piece)
        if message.log_time <= piece.begin:
            if not self._is_mark(message.topic):
                self._carried[index].pop(message.topic, None)
        else:
            self._carry(index)
        self._writers[index].write(message.topic, message.data, message.log_time, self._stamp(message))

    def _note(self, message: BagMessage) -> None:
        """Keep what stays in force: the last value of a latched topic, and the marks since an episode began."""
        if self._is_mark(message.topic):
            held = self._in_force.setdefault(message.topic, [])
            if self._begins_episode(message):
                held.clear()
            held.append(message)
        elif message.topic in self._latched:
            self._in_force[message.topic] = [message]

    def _begins_episode(self, message: BagMessage) -> bool:
        try:
            return self._bag.decode(message.topic, message.data).event == STARTED
        except DataError:
            return False

    def _values_before(self, piece: Piece) -> dict[str, list[bytes]]:
        """Return what is in force where a part begins, unless something else is said at the same time."""
        return {topic: [message.data for message in held if message.log_time < piece.begin]
                for topic, held in self._in_force.items() if piece.episode == 'all' or not self._is_mark(topic)}

    def _carry(self, index: int) -> None:
        begin = self._pieces[index].begin
        for topic, values in self._carried.pop(index, {}).items():
            for data in values:
                self._writers[index].write(topic, data, begin, begin)

    def _stamp(self, message: BagMessage) -> int:
        """Return what stands for the time of publication: the header's stamp, or the receipt."""
        try:
            return self._bag.stamp(message, zero_is_receipt=True)
        except DataError:
            return message.log_time

    def _close(self, index: int) -> None:
        self._carry(index)
        writer = self._writers.pop(index)
        writer.close()
        self._done[index] = Written(writer.folder, writer.messages, writer.duration)


def _is_latched(topic: str, profiles: Iterable[Mapping[str, Any]]) -> bool:
    offered = [profile.get('durability') in TRANSIENT_LOCAL for profile in profiles]
    return any(offered) or topic.rpartition('/')[2] in LATCHED
