"""Reads the serialized messages of a rosbag2 folder, as far as they go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import logging
from pathlib import Path
import struct
from typing import Any

from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader

from flow_vla_core.data.bags import read_information
from flow_vla_core.data.typestore import full_name, typestore
from flow_vla_core.errors import DataError

__all__ = ['Bag', 'header_stamp', 'read_bag']

HEADER = 'std_msgs/msg/Header'
RECORD_LIMIT = 2 ** 31  # bytes; a length above it can only come from a damaged file


@dataclass(frozen=True)
class Bag:
    """Holds what was recorded, not decoded.

    Args:
        path: the rosbag2 folder.
        marks: the custom data of its metadata.
        types: topic -> ``package/msg/Type``.
        messages: topic -> pairs of log time (ns) and serialized message, as recorded.
        complete: False for a file that was cut off; what stands before the cut is here.
    """

    path: Path
    marks: Mapping[str, str]
    types: Mapping[str, str]
    messages: Mapping[str, list[tuple[int, bytes]]]
    complete: bool = True

    def find(self, topic: str, kind: str) -> str:
        """Return the recorded name of a topic that may be relative to a namespace.

        Raises:
            DataError: if it was not recorded, stands in several namespaces, has another type or no messages.
        """
        name = self._resolve(topic)
        if self.types[name] != full_name(kind):
            raise DataError(f'{self.path}: {name}: recorded as {self.types[name]}, expected {full_name(kind)}')
        if not self.messages.get(name):
            end = '' if self.complete else ' before the place where the bag was cut off'
            raise DataError(f'{self.path}: {name}: no messages{end}')
        return name

    def stamped(self, topic: str, zero_is_receipt: bool = False) -> Iterator[tuple[int, bytes]]:
        """Yield the messages of a topic with the stamp of their header, or their log time for a type without one.

        Args:
            topic: as recorded.
            zero_is_receipt: a stamp of 0 means the log time, as ROS controllers read it in a command.
        """
        has_header = _has_header(self.types[topic])
        for log_time, data in self.messages[topic]:
            if not has_header:
                yield log_time, data
                continue
            try:
                stamp = header_stamp(data)
            except (IndexError, struct.error) as error:
                raise DataError(f'{self.path}: {topic}: a message of {len(data)} bytes has no header') from error
            yield (log_time if zero_is_receipt and stamp == 0 else stamp), data

    def decode(self, topic: str, data: bytes) -> Any:
        """Return a serialized message as an object. Raise `DataError` if the bytes are not one."""
        try:
            return typestore().deserialize_cdr(data, self.types[topic])
        except Exception as error:  # bytes from anywhere make the parser raise anything
            raise DataError(f'{self.path}: {topic}: damaged message: {error}') from error

    def _resolve(self, topic: str) -> str:
        absolute = '/' + topic.lstrip('/')
        if absolute in self.types:
            return absolute
        found = [] if topic.startswith('/') else [name for name in self.types if name.endswith(absolute)]
        if len(found) == 1:
            return found[0]
        recorded = ', '.join(sorted(self.types)) or 'nothing'
        reason = f'stands in several namespaces: {", ".join(found)}' if found else f'not recorded; there are {recorded}'
        raise DataError(f'{self.path}: {topic}: {reason}')


def read_bag(path: Path) -> Bag:
    """Read a rosbag2 folder with MCAP or any other storage that rosbags knows.

    A file that was cut off, as by a crash or a full disk, is read up to there; a warning says so.

    Raises:
        DataError: if it is no bag, or nothing in it can be read.
    """
    path = Path(path)
    information = read_information(path)
    marks = dict(information.get('custom_data') or {})
    if information.get('storage_identifier') != 'mcap' or information.get('compression_mode'):
        return _read_other(path, marks)
    types: dict[str, str] = {}
    messages: dict[str, list[tuple[int, bytes]]] = {}
    problems = [problem for name in information.get('relative_file_paths') or []
                if (problem := _read_mcap(path / str(name), types, messages))]
    if not any(messages.values()):
        raise DataError(f'{path}: no messages{": " if problems else ""}{"; ".join(problems)}')
    if problems:
        logging.getLogger(__name__).warning('%s: read as far as it goes: %s', path, '; '.join(problems))
    return Bag(path, marks, types, messages, not problems)


def header_stamp(data: bytes) -> int:
    """Read the stamp of a serialized message whose type begins with a header, ns."""
    seconds, nanoseconds = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return seconds * 10 ** 9 + nanoseconds


def _has_header(kind: str) -> bool:
    definitions = typestore().fielddefs
    if kind not in definitions:
        raise DataError(f'no definition of the message type {kind!r} is known')
    fields = definitions[kind][1]
    return bool(fields) and fields[0][1][1] == HEADER


def _read_mcap(path: Path, types: dict[str, str], messages: dict[str, list[tuple[int, bytes]]]) -> str:
    """Add what a file holds; return why it ends early, or nothing."""
    schemas: dict[int, str] = {}
    topics: dict[int, str] = {}
    try:
        with path.open('rb') as file:
            for record in StreamReader(file, validate_crcs=True, record_size_limit=RECORD_LIMIT).records:
                if isinstance(record, Message):
                    messages[topics[record.channel_id]].append((record.log_time, record.data))
                elif isinstance(record, Schema):
                    schemas[record.id] = record.name
                elif isinstance(record, Channel):
                    topics[record.id] = record.topic
                    types[record.topic] = schemas[record.schema_id]
                    messages.setdefault(record.topic, [])
    except Exception as error:  # a damaged file makes the parser and the decompressors raise anything
        return f'{path.name}: {type(error).__name__}: {error}'
    return ''


def _read_other(path: Path, marks: dict[str, str]) -> Bag:
    from rosbags.rosbag2 import Reader
    try:
        with Reader(path) as reader:
            types = {connection.topic: connection.msgtype for connection in reader.connections}
            messages: dict[str, list[tuple[int, bytes]]] = {topic: [] for topic in types}
            for connection, time, data in reader.messages():
                messages[connection.topic].append((time, data))
    except Exception as error:  # as above
        raise DataError(f'{path}: {error}') from error
    return Bag(path, marks, types, messages)
