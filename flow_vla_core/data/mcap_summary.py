"""The index at the end of an MCAP file: what is in it and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import struct
import zlib

from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.records import (
    AttachmentIndex,
    Channel,
    ChunkIndex,
    DataEnd,
    Footer,
    McapRecord,
    MessageIndex,
    MetadataIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.writer import MCAP0_MAGIC

__all__ = ['McapIndex', 'MessageTimes', 'encode', 'encode_times']

MessageTimes = Mapping[int, list[tuple[int, int]]]  # channel -> log time, ns, and offset in its chunk, of each message


@dataclass
class McapIndex:
    """Collects schemas, channels, chunks and metadata of a file while it is written or read.

    Args:
        schemas: by number.
        channels: by number.
        chunks: in the order of the file.
        metadata: where words about the file stand.
        attachments: where attachments stand.
        counts: messages of each channel.
        first: earliest log time, ns; 0 without messages.
        last: latest one.
    """

    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    metadata: list[MetadataIndex] = field(default_factory=list)
    attachments: list[AttachmentIndex] = field(default_factory=list)
    counts: dict[int, int] = field(default_factory=dict)
    first: int = 0
    last: int = 0

    def add_chunk(self, chunk: ChunkIndex, times: MessageTimes) -> None:
        """Add a chunk with its messages."""
        self.chunks.append(chunk)
        if not times:
            return
        self.first = min(self.first, chunk.message_start_time) if self.counts else chunk.message_start_time
        self.last = max(self.last, chunk.message_end_time)
        for channel, entries in times.items():
            self.counts[channel] = self.counts.get(channel, 0) + len(entries)

    def tail(self, offset: int) -> bytes:
        """Encode all that follows the data, which ends at ``offset``, up to the end of the file."""
        builder = RecordBuilder()
        DataEnd(0).write(builder)
        start, offsets = offset + builder.count, []
        data_end = builder.end()
        for opcode, records in self._groups():
            before = builder.count
            for record in records:
                record.write(builder)
            if builder.count > before:
                offsets.append(SummaryOffset(opcode, start + before, builder.count - before))
        offset_start = start + builder.count
        for group in offsets:
            group.write(builder)
        summary = builder.end()
        checksum = zlib.crc32(struct.pack('<BQQQ', Opcode.FOOTER, 20, start, offset_start), zlib.crc32(summary))
        footer = Footer(summary_start=start, summary_offset_start=offset_start, summary_crc=checksum)
        return data_end + summary + encode(footer) + MCAP0_MAGIC

    def _groups(self) -> list[tuple[Opcode, list[McapRecord]]]:
        return [(Opcode.SCHEMA, [*self.schemas.values()]), (Opcode.CHANNEL, [*self.channels.values()]),
                (Opcode.STATISTICS, [self._statistics()]), (Opcode.CHUNK_INDEX, [*self.chunks]),
                (Opcode.ATTACHMENT_INDEX, [*self.attachments]), (Opcode.METADATA_INDEX, [*self.metadata])]

    def _statistics(self) -> Statistics:
        return Statistics(
            attachment_count=len(self.attachments), channel_count=len(self.channels),
            channel_message_counts=self.counts, chunk_count=len(self.chunks), message_count=sum(self.counts.values()),
            message_end_time=self.last, message_start_time=self.first, metadata_count=len(self.metadata),
            schema_count=len(self.schemas))


def encode(record: McapRecord) -> bytes:
    """Return the bytes of a record."""
    builder = RecordBuilder()
    record.write(builder)
    return builder.end()


def encode_times(times: MessageTimes, offset: int) -> tuple[bytes, dict[int, int]]:
    """Return the message indexes that follow a chunk, and where each stands if the first does at ``offset``."""
    data, offsets = bytearray(), {}
    for channel, entries in times.items():
        offsets[channel] = offset + len(data)
        data += encode(MessageIndex(channel, entries))
    return bytes(data), offsets
