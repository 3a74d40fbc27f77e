"""Takes the records of an MCAP file apart, and trusts none of the lengths in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import struct
from typing import NamedTuple
import zlib

from flow_vla_core.data.compression import decompress
from flow_vla_core.errors import DataError

__all__ = ['CHANNEL', 'CHUNK', 'CHUNK_INDEX', 'DATA_END', 'FOOTER', 'MAGIC', 'MESSAGE', 'MESSAGE_HEAD', 'METADATA',
           'METADATA_INDEX', 'PREFIX', 'SCHEMA', 'Channel', 'Schema', 'Span', 'parse_channel', 'parse_chunk',
           'parse_chunk_index', 'parse_message', 'parse_metadata', 'parse_metadata_index', 'parse_schema',
           'parse_times', 'records']

MAGIC = b'\x89MCAP0\r\n'
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, CHUNK_INDEX, METADATA, METADATA_INDEX, DATA_END = 2, 3, 4, 5, 6, 8, 12, 13, 15
PREFIX = struct.Struct('<BQ')
MESSAGE_HEAD = struct.Struct('<HIQQ')
CHUNK_HEAD = struct.Struct('<QQQI')


class Schema(NamedTuple):
    """Holds a message type: its name, the language of its definition, and the definition."""

    name: str
    encoding: str
    text: str


class Channel(NamedTuple):
    """Holds a topic, the number of its schema and how its messages are serialized."""

    topic: str
    schema: int
    encoding: str


@dataclass(frozen=True, order=True)
class Span:
    """Says where messages stand: in a chunk, or in a run of records outside of any.

    Args:
        start: smallest log time, ns.
        offset: of the first record, bytes.
        end: largest log time, ns.
        length: of all records, bytes.
    """

    start: int
    offset: int
    end: int
    length: int


def records(data: bytes | memoryview, at: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield opcode, begin and end of each record's content. Raise `DataError` where one is cut off."""
    size = len(data)
    while at < size:
        if size - at < PREFIX.size:
            raise DataError('a record is cut off')
        opcode, length = PREFIX.unpack_from(data, at)
        at += PREFIX.size
        if length > size - at:
            raise DataError(f'a record of {length} bytes is cut off after {size - at}')
        yield opcode, at, at + length
        at += length


def parse_schema(content: memoryview) -> tuple[int, Schema]:
    """Return number and schema."""
    fields = _Fields(content)
    return fields.number('<H'), Schema(fields.text(), fields.text(), fields.text())


def parse_channel(content: memoryview) -> tuple[int, Channel]:
    """Return number and channel."""
    fields = _Fields(content)
    number, schema = fields.number('<H'), fields.number('<H')
    return number, Channel(fields.text(), schema, fields.text())


def parse_message(content: memoryview) -> tuple[int, int, memoryview]:
    """Return channel, log time (ns) and serialized message."""
    if len(content) < MESSAGE_HEAD.size:
        raise DataError('a message is cut off')
    channel, _, log_time, _ = MESSAGE_HEAD.unpack_from(content)
    return channel, log_time, content[MESSAGE_HEAD.size:]


def parse_times(content: memoryview) -> tuple[int, int]:
    """Return the smallest and the largest log time that a chunk announces, ns."""
    return struct.unpack_from('<QQ', content) if len(content) >= 16 else (0, 0)


def parse_chunk(content: memoryview) -> memoryview:
    """Return the records of a chunk. Raise `DataError` if they are damaged."""
    if len(content) < CHUNK_HEAD.size:
        raise DataError('a chunk is cut off')
    _, _, size, checksum = CHUNK_HEAD.unpack_from(content)
    fields = _Fields(content, CHUNK_HEAD.size)
    kind = fields.text()
    data = fields.bytes(fields.number('<Q'))
    found = memoryview(decompress(data, kind, size))
    if checksum and zlib.crc32(found) != checksum:
        raise DataError('a chunk does not match its checksum')
    return found


def parse_chunk_index(content: memoryview) -> Span:
    """Return where a chunk stands."""
    if len(content) < 32:
        raise DataError('an index is cut off')
    start, end, offset, length = struct.unpack_from('<QQQQ', content)
    return Span(start, offset, end, length)


def parse_metadata(content: memoryview) -> tuple[str, dict[str, str]]:
    """Return name and pairs of a metadata record."""
    fields = _Fields(content)
    name, end = fields.text(), fields.number('<I')
    end += fields.at
    pairs = {}
    while fields.at < end:
        key = fields.text()
        pairs[key] = fields.text()
    return name, pairs


def parse_metadata_index(content: memoryview) -> tuple[int, int]:
    """Return where a metadata record stands: offset and length, bytes."""
    if len(content) < 16:
        raise DataError('an index is cut off')
    return struct.unpack_from('<QQ', content)


class _Fields:
    """Reads one field after the other."""

    def __init__(self, content: memoryview, at: int = 0) -> None:
        self._content, self.at = content, at

    def number(self, form: str) -> int:
        """Return a number of a struct's format."""
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def bytes(self, length: int) -> memoryview:
        """Return so many bytes."""
        if length > len(self._content) - self.at:
            raise DataError('a record ends early')
        self.at += length
        return self._content[self.at - length:self.at]

    def text(self) -> str:
        """Return a string with its length in front."""
        return str(self.bytes(self.number('<I')), 'utf-8', 'replace')
