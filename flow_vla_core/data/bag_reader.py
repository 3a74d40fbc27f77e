"""Reads the serialized messages of a recorded bag, as far as they go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
import heapq
from itertools import count
from pathlib import Path
import struct
from typing import Any

from flow_vla_core.data.bags import MARKS, storage_files, try_information
from flow_vla_core.data.compression import decompress, decompress_file
from flow_vla_core.data.mcap_storage import McapStorage
from flow_vla_core.data.storage import BagMessage, SqliteStorage, Storage
from flow_vla_core.data.typestore import full_name, has_header, is_ours, typestore_with
from flow_vla_core.errors import DataError, in_one_line

__all__ = ['Bag', 'BagMessage', 'header_stamp', 'open_bag', 'read_bag']


class Bag:
    """Offers what was recorded, not decoded, and reads it again each time it is asked for.

    Args:
        path: the rosbag2 folder, or a single file.
        marks: what we said about it: the custom data of its metadata, or what stands in the file.
        storages: its files.
        problems: what is wrong with it besides.
        compressed: whether each message is compressed by itself.

    Attributes:
        types: topic -> ``package/msg/Type``.

    Example:
        >>> bag = open_bag(Path('episode_000001'))  # doctest: +SKIP
        >>> for message in bag.read({'/joint_states'}):  # doctest: +SKIP
        ...     print(bag.stamp(message), bag.decode(message.topic, message.data).position)
    """

    def __init__(self, path: Path, marks: Mapping[str, str], storages: Sequence[Storage], problems: Sequence[str] = (),
                 compressed: bool = False) -> None:
        self.path, self.marks = path, dict(marks)
        self.types: dict[str, str] = {}
        self._storages, self._compressed = list(storages), compressed
        self._problems = list(problems)
        for storage in storages:
            for topic, kind in storage.types.items():
                if self.types.setdefault(topic, kind) != kind:
                    self._problems.append(f'{topic}: recorded as {self.types[topic]!r} and as {kind!r}')

    @property
    def problems(self) -> tuple[str, ...]:
        """What is damaged; empty for a whole bag. Damage inside a chunk is only found when it is read."""
        return (*self._problems, *(problem for storage in self._storages for problem in storage.problems))

    @property
    def complete(self) -> bool:
        """Whether nothing damaged was found so far."""
        return not self.problems

    @cached_property
    def messages(self) -> Mapping[str, list[tuple[int, bytes]]]:
        """Topic -> pairs of log time (ns) and serialized message: everything, in memory; for short bags."""
        found: dict[str, list[tuple[int, bytes]]] = {topic: [] for topic in self.types}
        for topic, log_time, data in self.read():
            found[topic].append((log_time, data))
        return found

    def read(self, topics: Collection[str] | None = None,
             on_hole: Callable[[], None] | None = None) -> Iterator[BagMessage]:
        """Yield the messages in order of log time, with little memory.

        Chunks that overlap in time are merged as long as that needs less than 256 MiB.

        Args:
            topics: as recorded; None for all.
            on_hole: is called between two messages where others may be missing, because the file is damaged there.
        """
        wanted = None if topics is None else frozenset(topics)
        for message in _merge(self._storages, wanted, on_hole or _nothing):
            if not self._compressed:
                yield message
                continue
            try:
                yield message._replace(data=bytes(decompress(message.data, 'zstd')))
            except DataError as error:
                self._note(f'{message.topic}: a message is {error}')
                (on_hole or _nothing)()

    def stamped(self, topic: str, zero_is_receipt: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of a topic with the stamp of their header, or their log time for a type without one.

        Args:
            topic: as recorded.
            zero_is_receipt: a stamp of 0 means the log time, as ROS controllers read it in a command.
        """
        for message in self.read({topic}):
            yield self.stamp(message, zero_is_receipt), message.data

    def stamp(self, message: BagMessage, zero_is_receipt: bool = False) -> int:
        """Return the stamp of a message's header, or its log time for a type without one, ns.

        Raises:
            DataError: if the message is too short to have one, or its type is unknown.
        """
        if not has_header(self._store, self.types[message.topic]):
            return message.log_time
        try:
            stamp = header_stamp(message.data)
        except (IndexError, struct.error) as error:
            raise DataError(f'{self.path}: {message.topic}: a message of {len(message.data)} bytes has no '
                            'header') from error
        return message.log_time if zero_is_receipt and stamp == 0 else stamp

    def is_known(self, topic: str) -> bool:
        """Say whether the type of a recorded topic is defined, by the bag or by us."""
        return self.types[topic] in self._store.fielddefs

    def is_stamped(self, topic: str) -> bool:
        """Say whether the messages of a recorded topic begin with a header; False where the type is not defined."""
        return self.is_known(topic) and has_header(self._store, self.types[topic])

    def definition(self, topic: str) -> tuple[str, str, str] | None:
        """Return language, text and hash of a type that only the bag defines, or defines in another way than we do."""
        kind = self.types[topic]
        told = next((storage.definitions[kind] for storage in self._storages if kind in storage.definitions), None)
        if told is None or not self.is_known(topic) or is_ours(self._store, kind):
            return None
        return (*told, self._store.hash_rihs01(kind))

    def find(self, topic: str, kind: str) -> str:
        """Return the recorded name of a topic that may be relative to a namespace.

        Raises:
            DataError: if it was not recorded, stands in several namespaces or has another type.
        """
        name = self.resolve(topic)
        if self.types[name] != full_name(kind):
            raise DataError(f'{self.path}: {name}: recorded as {self.types[name]}, expected {full_name(kind)}')
        return name

    def decode(self, topic: str, data: bytes) -> Any:
        """Return a serialized message as an object. Raise `DataError` if the bytes are not one."""
        kind = self.types[topic]
        if kind not in self._store.fielddefs:
            raise DataError(f'{self.path}: {topic}: no definition of the message type {kind!r} is known')
        try:
            return self._store.deserialize_cdr(data, kind)
        except Exception as error:  # bytes from anywhere make the parser raise anything
            raise DataError(f'{self.path}: {topic}: damaged message: {in_one_line(error)}') from error

    @cached_property
    def _store(self) -> Any:
        definitions = {kind: text for storage in self._storages for kind, text in storage.definitions.items()}
        return typestore_with(tuple(sorted(definitions.items())))

    def _note(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)

    def resolve(self, topic: str) -> str:
        """Return the recorded name of a topic that may be relative to a namespace. Raise `DataError` without one."""
        absolute = '/' + topic.lstrip('/')
        if absolute in self.types:
            return absolute
        found = [] if topic.startswith('/') else [name for name in self.types if name.endswith(absolute)]
        if len(found) == 1:
            return found[0]
        recorded = ', '.join(sorted(self.types)) or 'nothing'
        reason = f'stands in several namespaces: {", ".join(found)}' if found else f'not recorded; there are {recorded}'
        raise DataError(f'{self.path}: {topic}: {reason}')


def open_bag(path: Path) -> Bag:
    """Open a rosbag2 folder, or a single file of one (``.mcap``, ``.db3``, either with ``.zstd``).

    Storage is MCAP or sqlite3, in one file or several, compressed by chunk, by message or by file. What is damaged
    stands in `Bag.problems`; what can be read of it is read. Marks that its metadata do not tell are those in the file.

    Raises:
        DataError: if it is no bag, or nothing in it can be read.
    """
    path = Path(path)
    information, problems = try_information(path)
    storages: list[Storage] = []
    for file in storage_files(path, information):
        try:
            storages.append(_open_storage(file))
        except DataError as error:
            problems.append(in_one_line(error))
    told = information.get('custom_data') or {
        key: value for storage in storages for key, value in storage.metadata.get(MARKS, {}).items()}
    marks = {str(key): str(value) for key, value in told.items()}
    if not any(storage.types for storage in storages):
        raise DataError(f'{path}: no messages{": " if problems else ""}{"; ".join(problems)}')
    return Bag(path, marks, storages, problems, str(information.get('compression_mode')).lower() == 'message')


def read_bag(path: Path) -> Bag:
    """Open a bag in which there is at least one message; like `open_bag` otherwise."""
    bag = open_bag(path)
    if next(bag.read(), None) is None:
        raise DataError(f'{path}: no messages{": " if bag.problems else ""}{"; ".join(bag.problems)}')
    return bag


def header_stamp(data: bytes) -> int:
    """Read the stamp of a serialized message whose type begins with a header, ns."""
    seconds, nanoseconds = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return seconds * 10 ** 9 + nanoseconds


def _open_storage(path: Path) -> Storage:
    if path.suffix == '.zstd':
        file = decompress_file(path)
        if path.suffixes[-2:-1] == ['.db3']:
            storage: Storage = SqliteStorage(path, Path(file.name))
            storage.keep = file
            return storage
        return McapStorage(path, file)
    return SqliteStorage(path) if path.suffix == '.db3' else McapStorage(path)


def _merge(storages: Sequence[Storage], topics: frozenset[str] | None,
           on_hole: Callable[[], None]) -> Iterator[BagMessage]:
    """Merge the files of a bag by log time; a file is opened when its time has come."""
    later = sorted(storages, key=lambda storage: storage.start)
    order = count()
    heads: list[tuple[int, int, BagMessage, Iterator[BagMessage]]] = []
    while heads or later:
        while later and (not heads or later[0].start <= heads[0][0]):
            _advance(heads, later.pop(0).read(topics, on_hole), order)
        if heads:
            _, _, message, source = heapq.heappop(heads)
            yield message
            _advance(heads, source, order)


def _advance(heads: list, source: Iterator[BagMessage], order: Iterator[int]) -> None:
    message = next(source, None)
    if message is not None:
        heapq.heappush(heads, (message.log_time, next(order), message, source))


def _nothing() -> None:
    """Hear of a hole and do nothing."""
