"""Reads an MCAP file record by record without its index, and says how far it is sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
import struct
from typing import BinaryIO, TypeVar
import zlib

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Chunk, ChunkIndex, McapRecord, Metadata, MetadataIndex, Schema
from mcap.writer import MCAP0_MAGIC

from flow_vla_core.data.compression import decompress
from flow_vla_core.data.mcap_records import MESSAGE_HEAD, PREFIX, records
from flow_vla_core.data.mcap_summary import McapIndex, MessageTimes
from flow_vla_core.errors import DataError

__all__ = ['DamagedRecord', 'OpenedChunk', 'RawRecord', 'Scan', 'open_chunk', 'parse', 'scan', 'walk']

WANTED = (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK, Opcode.MESSAGE_INDEX, Opcode.ATTACHMENT,
          Opcode.METADATA)
LIMIT = 2 ** 31  # bytes; a longer record can only come from damage
R = TypeVar('R', bound=McapRecord)


class DamagedRecord(DataError):
    """Reports a record that can't be read; those after it may be sound."""


@dataclass(frozen=True)
class RawRecord:
    """Is one record: its kind, its bytes without the head, and where it begins and ends in the file."""

    opcode: int
    data: bytes
    start: int
    end: int


@dataclass(frozen=True)
class OpenedChunk:
    """Holds a chunk as it stands in the file, and what is in it.

    Args:
        chunk: with the data that its checksum is of.
        exact: whether its head, which no checksum covers, tells of what is in it.
        times: of its messages.
        schemas: that it defines.
        channels: that it defines.
    """

    chunk: Chunk
    exact: bool
    times: MessageTimes
    schemas: tuple[Schema, ...]
    channels: tuple[Channel, ...]


@dataclass
class Scan:
    """Says what a file holds.

    Args:
        index: of all that is sound.
        end: where the sound data ends.
        damaged: where damaged data begins and ends, in pairs.
        loose: whether messages stand outside of chunks.
        unindexed: chunks that lack message indexes; the number of each in ``index.chunks``.
        inexact: whether the head of a chunk tells something else than is in it.
        times: of the messages of the last chunk.
        header: whether the file begins as it should.
    """

    index: McapIndex = field(default_factory=McapIndex)
    end: int = 0
    damaged: list[tuple[int, int]] = field(default_factory=list)
    loose: bool = False
    unindexed: list[int] = field(default_factory=list)
    inexact: bool = False
    times: MessageTimes = field(default_factory=dict)
    header: bool = False


def walk(file: BinaryIO) -> Iterator[RawRecord]:
    """Yield the whole records up to the end of the data or to a head that is none; then one of kind 0 for the rest.

    The data of kinds that nobody here needs is left out.

    Raises:
        DataError: if the file is no MCAP.
    """
    size = file.seek(0, 2)
    file.seek(0)
    magic = file.read(len(MCAP0_MAGIC))
    if not MCAP0_MAGIC.startswith(magic):
        raise DataError('not an MCAP file')
    position = len(magic)
    while position < size:
        head = file.read(PREFIX.size)
        opcode, length = PREFIX.unpack(head) if len(head) == PREFIX.size else (0, 0)
        end = position + PREFIX.size + length
        if not (Opcode.HEADER <= opcode <= Opcode.DATA_END or opcode >= 0x80) or end > size or length > LIMIT:
            yield RawRecord(0, b'', position, size)
            return
        if opcode in WANTED:
            yield RawRecord(opcode, file.read(length), position, end)
        else:
            file.seek(end)
            yield RawRecord(opcode, b'', position, end)
        if opcode == Opcode.DATA_END:
            return
        position = end


def parse(record: RawRecord, kind: type[R]) -> R:
    """Read a record. Raise `DamagedRecord` if it is none of its kind."""
    try:
        return kind.read(ReadDataStream(BytesIO(record.data)))
    except Exception as error:  # damaged bytes make the parser raise anything
        raise DamagedRecord(f'record at {record.start}: {error}') from error


def open_chunk(record: RawRecord) -> OpenedChunk:
    """Read a chunk and all that is in it. Raise `DamagedRecord` unless all of its content is as it was written."""
    try:
        chunk = Chunk.read(ReadDataStream(BytesIO(record.data)))
        data = decompress(chunk.data, chunk.compression, chunk.uncompressed_size)
        if chunk.uncompressed_crc not in (0, zlib.crc32(data)):
            raise DataError('the checksum differs')
        contents = _contents(data)
        return OpenedChunk(chunk, record.data.startswith(_head(chunk, contents[0], len(data))), *contents)
    except Exception as error:  # damaged bytes make parser and decompressors raise anything
        raise DamagedRecord(f'chunk at {record.start}: {error}') from error


def scan(file: BinaryIO) -> Scan:
    """Read a file from the beginning, as far as that goes; memory for one chunk at a time is taken.

    Raises:
        DataError: if the file is no MCAP.
    """
    result = Scan()
    for record in walk(file):
        if record.opcode == Opcode.DATA_END:
            result.end = record.start
            break
        if record.opcode == Opcode.MESSAGE_INDEX:
            if not _note_message_index(result, record):
                continue
        elif record.opcode == 0:
            result.damaged.append((record.start, record.end))
            break
        else:
            try:
                _note(result, record)
            except DamagedRecord:
                result.damaged.append((record.start, record.end))
                continue
        result.end = record.end
    _close_chunk(result)
    return result


def _note(result: Scan, record: RawRecord) -> None:
    index = result.index
    if record.opcode == Opcode.HEADER:
        result.header = True
    elif record.opcode == Opcode.SCHEMA:
        schema = parse(record, Schema)
        index.schemas[schema.id] = schema
    elif record.opcode == Opcode.CHANNEL:
        channel = parse(record, Channel)
        index.channels[channel.id] = channel
    elif record.opcode == Opcode.METADATA:
        metadata = parse(record, Metadata)
        index.metadata.append(MetadataIndex(record.start, record.end - record.start, metadata.name))
    elif record.opcode == Opcode.ATTACHMENT:
        parse(record, Attachment)
        result.loose = True
    elif record.opcode == Opcode.MESSAGE:
        if len(record.data) < MESSAGE_HEAD.size or MESSAGE_HEAD.unpack_from(record.data)[0] not in index.channels:
            raise DamagedRecord(f'message at {record.start}')
        result.loose = True
    elif record.opcode == Opcode.CHUNK:
        _note_chunk(result, record)


def _note_chunk(result: Scan, record: RawRecord) -> None:
    opened, index = open_chunk(record), result.index
    known = {**index.channels, **{channel.id: channel for channel in opened.channels}}
    if any(channel not in known for channel in opened.times):
        raise DamagedRecord(f'chunk at {record.start}: a channel is not known')
    _close_chunk(result)
    result.inexact |= not opened.exact
    index.schemas.update((schema.id, schema) for schema in opened.schemas)
    index.channels.update(known)
    chunk = opened.chunk
    index.add_chunk(ChunkIndex(
        chunk_start_offset=record.start, chunk_length=record.end - record.start,
        message_start_time=chunk.message_start_time, message_end_time=chunk.message_end_time, message_index_offsets={},
        message_index_length=0, compression=chunk.compression, compressed_size=len(chunk.data),
        uncompressed_size=chunk.uncompressed_size), opened.times)
    result.times = opened.times


def _note_message_index(result: Scan, record: RawRecord) -> bool:
    """Take a message index of the last chunk; tell whether it was one."""
    if not result.index.chunks or len(record.data) < 2:
        return False
    chunk = result.index.chunks[-1]
    if record.start != chunk.chunk_start_offset + chunk.chunk_length + chunk.message_index_length:
        return False
    chunk.message_index_offsets[struct.unpack_from('<H', record.data)[0]] = record.start
    chunk.message_index_length += record.end - record.start
    return True


def _close_chunk(result: Scan) -> None:
    number = len(result.index.chunks) - 1
    if number >= 0 and number not in result.unindexed and (
            set(result.index.chunks[number].message_index_offsets) != set(result.times)):
        result.unindexed.append(number)


def _head(chunk: Chunk, times: MessageTimes, size: int) -> bytes:
    """Encode what stands before the data of a chunk: of messages at some times, of ``size`` bytes decompressed."""
    stamps = [time for messages in times.values() for time, _ in messages] or [0]
    name = chunk.compression.encode()
    return (struct.pack('<QQQII', min(stamps), max(stamps), size, chunk.uncompressed_crc, len(name)) + name
            + struct.pack('<Q', len(chunk.data)))


def _contents(data: bytes) -> tuple[dict[int, list[tuple[int, int]]], tuple[Schema, ...], tuple[Channel, ...]]:
    times: dict[int, list[tuple[int, int]]] = {}
    schemas, channels = [], []
    for opcode, start, end in records(data):
        position = start - PREFIX.size
        if opcode == Opcode.MESSAGE:
            channel, _, log_time, _ = MESSAGE_HEAD.unpack_from(data, start)
            times.setdefault(channel, []).append((log_time, position))
        elif opcode == Opcode.SCHEMA:
            schemas.append(parse(RawRecord(opcode, data[start:end], position, end), Schema))
        elif opcode == Opcode.CHANNEL:
            channels.append(parse(RawRecord(opcode, data[start:end], position, end), Channel))
    return times, tuple(schemas), tuple(channels)
