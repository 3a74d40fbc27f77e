"""Writes MCAP in chunks that stand on their own: whatever ends the writing, all chunks before it can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import struct
from typing import Protocol
import zlib

from mcap.opcode import Opcode
from mcap.records import Attachment, AttachmentIndex, Channel, ChunkIndex, Header, Metadata, MetadataIndex, Schema
from mcap.writer import MCAP0_MAGIC

from flow_vla_core.data.mcap_summary import McapIndex, MessageTimes, encode, encode_times
from flow_vla_core.errors import DataError, closest

__all__ = ['COMPRESSIONS', 'McapFile', 'Sink']

MESSAGE = struct.Struct('<BQHIQQ')  # opcode, length, channel, sequence, log time, publish time
CHUNK = struct.Struct('<BQQQQI')    # opcode, length, first and last time, size, checksum
SMALL = 64 * 1024                   # bytes; parts that are shorter together are joined before they are written
WORTH = 0.9                         # a chunk that stays above this share of its size is not worth compressing
PAUSE = 15                          # chunks that `auto` leaves as they are after one that was not worth it
COMPRESSIONS = {'auto': 'zstd:1', 'none': '', 'lz4': 'lz4', 'zstd_fast': 'zstd:1', 'zstd': 'zstd:3'}


class Sink(Protocol):
    """Is what an `McapFile` is written to."""

    def write(self, data: bytes) -> int:
        """Take all of the bytes."""


class _Compressor:
    """Turns the data of a chunk into MCAP's name of its compression and what is stored."""

    def __init__(self, name: str) -> None:
        if name not in COMPRESSIONS:
            raise DataError(f'no compression {name!r}; {closest(name, COMPRESSIONS)}')
        self._kind, _, level = COMPRESSIONS[name].partition(':')
        self._compress = _function(self._kind, int(level or 0))
        self._tries, self._pause = name == 'auto', 0

    def __call__(self, data: bytes) -> tuple[str, bytes]:
        if not self._kind or self._pause:
            self._pause = max(0, self._pause - 1)
            return '', data
        stored = self._compress(data)
        if self._tries and len(stored) > WORTH * len(data):
            self._pause = PAUSE
            return '', data
        return self._kind, stored


def _function(kind: str, level: int) -> Callable[[bytes], bytes]:
    """Return what compresses; none of them holds the GIL."""
    if kind == 'lz4':
        from lz4.frame import compress
        return compress
    if kind == 'zstd':
        from zstandard import ZstdCompressor
        return ZstdCompressor(level).compress
    return bytes


class McapFile:
    """Writes schemas, channels and chunks of messages as they come, and an index at the end.

    A chunk is put together in one piece, so that checksum and writing, which both let other threads run, are one call
    each; schemas, channels and metadata are written at once.

    Args:
        sink: takes the bytes.
        compression: of the chunks, a key of `COMPRESSIONS`. ``auto`` is that of ``zstd_fast`` where it makes the data
            smaller by a tenth and more, as it does with rendered images and hardly with a camera's.
        library: who writes, for the header.

    Raises:
        DataError: if there is no such compression.

    Example:
        >>> import io
        >>> from mcap.reader import make_reader
        >>> file = McapFile(output := io.BytesIO(), 'lz4')
        >>> file.add_schema(1, 'std_msgs/msg/String', 'ros2msg', b'string data')
        >>> file.add_channel(1, '/words', 1, {})
        >>> file.add_message(1, 1, 10, 9, b'...')
        >>> file.finish()
        >>> _ = output.seek(0)
        >>> [message.publish_time for _, _, message in make_reader(output).iter_messages()]
        [9]
    """

    def __init__(self, sink: Sink, compression: str = 'none', library: str = 'flow_vla') -> None:
        self._sink, self._compress = sink, _Compressor(compression)
        self.index = McapIndex()
        self.size = 0
        self._new_chunk()
        self._write(MCAP0_MAGIC + encode(Header('ros2', library)))

    def add_schema(self, number: int, name: str, encoding: str, data: bytes) -> None:
        """Add the definition of a type."""
        self.index.schemas[number] = Schema(number, data, encoding, name)
        self._write(encode(self.index.schemas[number]))

    def add_channel(self, number: int, topic: str, schema: int, metadata: Mapping[str, str],
                    encoding: str = 'cdr') -> None:
        """Add a topic."""
        self.index.channels[number] = Channel(number, topic, encoding, dict(metadata), schema)
        self._write(encode(self.index.channels[number]))

    def add_metadata(self, name: str, values: Mapping[str, str]) -> None:
        """Add words about the file."""
        start = self.size
        self._write(encode(Metadata(name=name, metadata=dict(values))))
        self.index.metadata.append(MetadataIndex(start, self.size - start, name))

    def add_attachment(self, attachment: Attachment) -> None:
        """Add a file within the file."""
        start = self.size
        self._write(encode(attachment))
        self.index.attachments.append(AttachmentIndex(
            offset=start, length=self.size - start, create_time=attachment.create_time, log_time=attachment.log_time,
            data_size=len(attachment.data), name=attachment.name, media_type=attachment.media_type))

    def add_message(self, channel: int, sequence: int, log_time: int, publish_time: int, data: bytes) -> None:
        """Add a message to the chunk that is open."""
        self._times.setdefault(channel, []).append((log_time, self.pending))
        self._parts.append(MESSAGE.pack(Opcode.MESSAGE, 22 + len(data), channel, sequence & 0xFFFFFFFF, log_time,
                                        publish_time))
        self._parts.append(data)
        self.pending += MESSAGE.size + len(data)

    def end_chunk(self) -> None:
        """Write the open chunk, if there is anything in it."""
        if not self._times:
            return
        data, times = b''.join(self._parts), self._times
        self._new_chunk()
        compression, stored = self._compress(data)
        self._write_chunk(stored, compression, len(data), zlib.crc32(data), times)

    def adopt_chunk(self, data: bytes, compression: str, size: int, checksum: int, times: MessageTimes) -> None:
        """Write a chunk as another file holds it."""
        self.end_chunk()
        self._write_chunk(data, compression, size, checksum, times)

    def finish(self) -> None:
        """Write the open chunk and the index. The sink stays open."""
        self.end_chunk()
        self._write(self.index.tail(self.size))

    def _new_chunk(self) -> None:
        self._parts: list[bytes] = []
        self._times: dict[int, list[tuple[int, int]]] = {}
        self.pending = 0

    def _write_chunk(self, data: bytes, compression: str, size: int, checksum: int, times: MessageTimes) -> None:
        stamps = [time for entries in times.values() for time, _ in entries]
        first, last, stored = min(stamps, default=0), max(stamps, default=0), len(data)
        name, start = compression.encode(), self.size
        head = CHUNK.pack(Opcode.CHUNK, 40 + len(name) + stored, first, last, size, checksum)
        length = len(head) + 12 + len(name) + stored
        index, offsets = encode_times(times, start + length)
        self._write(head + struct.pack('<I', len(name)) + name + struct.pack('<Q', stored), data, index)
        self.index.add_chunk(ChunkIndex(
            chunk_start_offset=start, chunk_length=length, message_start_time=first, message_end_time=last,
            message_index_offsets=offsets, message_index_length=len(index), compression=compression,
            compressed_size=stored, uncompressed_size=size), times)

    def _write(self, *parts: bytes) -> None:
        """Write at once what is short, and what is long without a copy: each call gives up the GIL once."""
        if len(parts) > 1 and sum(map(len, parts)) < SMALL:
            parts = (b''.join(parts),)
        for part in parts:
            if part:
                self._sink.write(part)
                self.size += len(part)
