"""Gives an MCAP file that was cut off its index back."""

from __future__ import annotations

from collections.abc import Sequence
import errno
from io import BytesIO
import os
from pathlib import Path
import shutil
from typing import BinaryIO

from mcap.data_stream import ReadDataStream
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Message, Metadata, Schema

from flow_vla_core.data.mcap_file import McapFile
from flow_vla_core.data.mcap_scan import DamagedRecord, RawRecord, Scan, open_chunk, parse, scan, walk
from flow_vla_core.data.mcap_summary import encode_times
from flow_vla_core.disk import flush_to_disk

__all__ = ['rebuild']

CHUNK_BYTES = 2 ** 20
COPY_BYTES = 2 ** 20


def rebuild(file: BinaryIO, path: Path) -> int:
    """Rebuild the index of an open file; return the bytes that can't be read, which go to ``NAME.damaged``.

    A file that is sound up to where it was cut off gets its index appended; what is there is not moved, and whenever
    this is interrupted it can be done again. Any other is written anew beside the old one, which it then replaces.

    Raises:
        DataError: if it is no MCAP.
        OSError: if it can't be written; nothing of it is lost.
    """
    found = scan(file)
    cut = sum(end - start for start, end in found.damaged)
    if found.damaged:
        _set_aside(file, found.damaged, _free_name(path.with_name(f'{path.name}.damaged')))
    if _sound_to_its_end(found):
        _append(file, found)
    else:
        _rewrite(file, path)
    flush_to_disk(path.parent)
    return cut


def _sound_to_its_end(found: Scan) -> bool:
    chunks = found.index.chunks
    if not found.header or found.loose or found.inexact or any(end <= found.end for _, end in found.damaged):
        return False
    if not found.unindexed:
        return True
    last = chunks[-1]
    follows = last.chunk_start_offset + last.chunk_length + last.message_index_length
    return found.unindexed == [len(chunks) - 1] and found.end == follows


def _set_aside(file: BinaryIO, ranges: Sequence[tuple[int, int]], target: Path) -> None:
    with target.open('xb') as output:
        for start, end in ranges:
            file.seek(start)
            while start < end:
                output.write(data := file.read(min(COPY_BYTES, end - start)))
                start += len(data)
        output.flush()
        os.fsync(output.fileno())
    flush_to_disk(target.parent)


def _free_name(path: Path) -> Path:
    names = (path, *(path.with_name(f'{path.name}.{number}') for number in range(1, 1000)))
    return next(name for name in names if not name.exists())


def _append(file: BinaryIO, found: Scan) -> None:
    end, data = found.end, b''
    if found.unindexed:
        chunk = found.index.chunks[-1]
        end = chunk.chunk_start_offset + chunk.chunk_length
        data, chunk.message_index_offsets = encode_times(found.times, end)
        chunk.message_index_length = len(data)
    data += found.index.tail(end + len(data))
    file.truncate(end)
    file.seek(end)
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _rewrite(file: BinaryIO, path: Path) -> None:
    size, beside = file.seek(0, os.SEEK_END), path.with_name(f'{path.name}.part')
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    try:
        with beside.open('wb') as output:
            copy = _Copy(McapFile(output, 'zstd_fast'))
            for record in walk(file):
                copy.take(record)
            copy.mcap.finish()
            output.flush()
            os.fsync(output.fileno())
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    os.replace(beside, path)


class _Copy:
    """Takes the records of a file into another one, sound chunks as they are."""

    def __init__(self, mcap: McapFile) -> None:
        self.mcap = mcap

    def take(self, record: RawRecord) -> None:
        try:
            self._take(record)
        except DamagedRecord:
            pass  # set aside before

    def _take(self, record: RawRecord) -> None:
        if record.opcode == Opcode.SCHEMA:
            self._add_schema(parse(record, Schema))
        elif record.opcode == Opcode.CHANNEL:
            self._add_channel(parse(record, Channel))
        elif record.opcode == Opcode.METADATA:
            metadata = parse(record, Metadata)
            self.mcap.add_metadata(metadata.name, metadata.metadata)
        elif record.opcode == Opcode.ATTACHMENT:
            self.mcap.add_attachment(parse(record, Attachment))
        elif record.opcode == Opcode.MESSAGE:
            self._add_message(record)
        elif record.opcode == Opcode.CHUNK:
            self._adopt(record)

    def _add_schema(self, schema: Schema) -> None:
        if schema.id not in self.mcap.index.schemas:
            self.mcap.add_schema(schema.id, schema.name, schema.encoding, schema.data)

    def _add_channel(self, channel: Channel) -> None:
        if channel.id not in self.mcap.index.channels:
            self.mcap.add_channel(channel.id, channel.topic, channel.schema_id, channel.metadata,
                                  channel.message_encoding)

    def _add_message(self, record: RawRecord) -> None:
        message = Message.read(ReadDataStream(BytesIO(record.data)), len(record.data))
        if message.channel_id in self.mcap.index.channels:
            self.mcap.add_message(message.channel_id, message.sequence, message.log_time, message.publish_time,
                                  message.data)
        if self.mcap.pending > CHUNK_BYTES:
            self.mcap.end_chunk()

    def _adopt(self, record: RawRecord) -> None:
        opened = open_chunk(record)
        known = {*self.mcap.index.channels, *(channel.id for channel in opened.channels)}
        if not known.issuperset(opened.times):
            return
        for schema in opened.schemas:
            self._add_schema(schema)
        for channel in opened.channels:
            self._add_channel(channel)
        chunk = opened.chunk
        self.mcap.adopt_chunk(chunk.data, chunk.compression, chunk.uncompressed_size, chunk.uncompressed_crc,
                              opened.times)
