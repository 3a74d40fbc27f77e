"""Says where the messages of an MCAP file stand: by its own index, or by going through the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import struct
from typing import IO
import zlib

from flow_vla_core.data.compression import SIZE_LIMIT
from flow_vla_core.data.mcap_records import (
    CHANNEL,
    CHUNK,
    CHUNK_INDEX,
    DATA_END,
    FOOTER,
    MAGIC,
    MESSAGE,
    METADATA,
    METADATA_INDEX,
    PREFIX,
    SCHEMA,
    Channel,
    Schema,
    Span,
    parse_channel,
    parse_chunk,
    parse_chunk_index,
    parse_metadata,
    parse_metadata_index,
    parse_schema,
    parse_times,
    records,
)
from flow_vla_core.data.storage import LATEST
from flow_vla_core.errors import DataError

__all__ = ['McapIndex', 'read_index', 'take']

FOOTER_SIZE = 20
MOST_METADATA, METADATA_SIZE = 100, 2 ** 20  # records, and bytes of each, that are read
RUN = 2 ** 20  # bytes of messages outside of chunks that are read at once


@dataclass
class McapIndex:
    """Holds what an MCAP file says about itself.

    Args:
        schemas: number -> schema.
        channels: number -> channel.
        spans: where messages stand.
        metadata: name -> pairs.
        places: offset and length of metadata that is not read yet.
    """

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    places: list[tuple[int, int]] = field(default_factory=list)

    def note(self, opcode: int, content: memoryview) -> None:
        """Take in a record; those that say nothing about where messages stand are passed over."""
        if opcode == SCHEMA:
            number, schema = parse_schema(content)
            self.schemas[number] = schema
        elif opcode == CHANNEL:
            number, channel = parse_channel(content)
            self.channels[number] = channel
        elif opcode == CHUNK_INDEX:
            self.spans.append(parse_chunk_index(content))
        elif opcode == METADATA:
            name, pairs = parse_metadata(content)
            self.metadata[name] = pairs
        elif opcode == METADATA_INDEX:
            self.places.append(parse_metadata_index(content))


def read_index(file: IO[bytes], damaged: Callable[[str], None]) -> McapIndex:
    """Return the index at the end of a file, or make one where there is none.

    Args:
        file: open for reading.
        damaged: hears what is wrong with the file.

    Raises:
        DataError: if it is no MCAP file.
    """
    size = file.seek(0, 2)
    if take(file, 0, len(MAGIC)) != MAGIC:
        raise DataError('empty' if not size else 'no MCAP file: it does not begin as one')
    index = McapIndex()
    problem = _read_summary(file, size, index)
    if problem is not None:
        damaged(problem)
    if problem is None and index.spans and index.channels:
        _read_metadata(file, size, index, damaged)
        return index
    return _scan(file, size, damaged)


def take(file: IO[bytes], offset: int, length: int) -> bytes:
    """Return bytes of a file, or fewer at its end."""
    file.seek(offset)
    return file.read(length)


def _read_summary(file: IO[bytes], size: int, index: McapIndex) -> str | None:
    """Read the index at the end, which need not be there; return what is wrong with it."""
    tail = size - len(MAGIC) - FOOTER_SIZE - PREFIX.size
    end = take(file, tail, size - tail) if tail >= len(MAGIC) else b''
    if end[-len(MAGIC):] != MAGIC or PREFIX.unpack_from(end) != (FOOTER, FOOTER_SIZE):
        return 'cut off: its end is missing'
    start, _, checksum = struct.unpack_from('<QQI', end, PREFIX.size)
    if not start:
        return None
    if not len(MAGIC) <= start <= tail or tail - start > SIZE_LIMIT:
        return 'its index is damaged'
    summary = memoryview(take(file, start, tail - start))
    if checksum and zlib.crc32(end[:PREFIX.size + 16], zlib.crc32(summary)) != checksum:
        return 'its index does not match its checksum'
    try:
        for opcode, begin, stop in records(summary):
            index.note(opcode, summary[begin:stop])
    except (DataError, struct.error) as error:
        return f'its index is damaged: {error}'
    sound = all(span.offset + span.length <= start and span.start <= span.end <= LATEST for span in index.spans)
    return None if sound else 'its index is damaged'


def _read_metadata(file: IO[bytes], size: int, index: McapIndex, damaged: Callable[[str], None]) -> None:
    """Read the last metadata that an index names, in the order of the file."""
    for offset, length in sorted(index.places)[-MOST_METADATA:]:
        try:
            if offset + length > size or length > METADATA_SIZE:
                raise DataError('the index does not fit')
            content = memoryview(take(file, offset, length))
            for opcode, begin, end in records(content):
                if opcode == METADATA:
                    index.note(opcode, content[begin:end])
        except (DataError, struct.error) as error:
            damaged(f'metadata at byte {offset}: {error}')


def _scan(file: IO[bytes], size: int, damaged: Callable[[str], None]) -> McapIndex:
    """Go through a file as far as it can be understood."""
    scan = _Scan(file, damaged)
    try:
        for opcode, begin, length in _walk(file, size):
            scan.take_in(opcode, begin, length)
            if opcode == DATA_END:
                break
    except (DataError, struct.error) as error:
        damaged(str(error))
    scan.end_run()
    return scan.index


def _walk(file: IO[bytes], size: int) -> Iterator[tuple[int, int, int]]:
    """Yield opcode, begin and length of each record's content."""
    at = len(MAGIC)
    while at < size:
        prefix = take(file, at, PREFIX.size)
        if len(prefix) < PREFIX.size:
            raise DataError(f'cut off after {size} bytes, inside a record')
        opcode, length = PREFIX.unpack(prefix)
        if not opcode:
            raise DataError(f'no record at byte {at}')
        at += PREFIX.size
        if length > size - at:
            raise DataError(f'cut off: the record at byte {at - PREFIX.size} has {length} bytes, {size - at} are left')
        yield opcode, at, length
        at += length


class _Scan:
    """Builds an index from one record after the other."""

    def __init__(self, file: IO[bytes], damaged: Callable[[str], None]) -> None:
        self.index = McapIndex()
        self._file, self._damaged = file, damaged
        self._run: Span | None = None
        self._latest = 0

    def take_in(self, opcode: int, begin: int, length: int) -> None:
        """Take in the record whose content begins there."""
        if opcode == MESSAGE:
            _, _, time = struct.unpack('<HIQ', take(self._file, begin, 14))
            self._extend_run(min(time, LATEST), begin - PREFIX.size, begin + length)
            return
        self.end_run()
        if opcode == CHUNK:
            self._take_in_chunk(begin, length)
        elif opcode in (SCHEMA, CHANNEL, METADATA) and length <= SIZE_LIMIT:
            self.index.note(opcode, memoryview(take(self._file, begin, length)))

    def end_run(self) -> None:
        """Note the messages outside of chunks that came one after the other."""
        if self._run is not None:
            self.index.spans.append(self._run)
        self._run = None

    def _extend_run(self, time: int, offset: int, end: int) -> None:
        if self._run is not None and end - self._run.offset > RUN:
            self.end_run()
        run = self._run or Span(time, offset, time, 0)
        self._run = Span(min(run.start, time), run.offset, max(run.end, time), end - run.offset)

    def _take_in_chunk(self, begin: int, length: int) -> None:
        start, end = parse_times(take(self._file, begin, 16))
        if not start <= end <= LATEST:
            start = end = self._latest
        self._latest = end
        self.index.spans.append(Span(start, begin - PREFIX.size, end, length + PREFIX.size))
        try:
            content = parse_chunk(memoryview(take(self._file, begin, min(length, SIZE_LIMIT))))
            for opcode, first, last in records(content):
                if opcode in (SCHEMA, CHANNEL):
                    self.index.note(opcode, content[first:last])
        except (DataError, struct.error) as error:
            self._damaged(f'chunk at byte {begin - PREFIX.size}: {error}')
