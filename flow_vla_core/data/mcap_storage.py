"""Reads an MCAP file in order of log time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, nullcontext
import heapq
from itertools import count
from pathlib import Path
import struct
from typing import IO

from flow_vla_core.data.compression import SIZE_LIMIT
from flow_vla_core.data.mcap_index import McapIndex, read_index, take
from flow_vla_core.data.mcap_records import CHUNK, MESSAGE, PREFIX, Span, parse_chunk, parse_message, records
from flow_vla_core.data.storage import LATEST, BagMessage, Storage
from flow_vla_core.errors import DataError

__all__ = ['McapStorage']

BUDGET = 2 ** 28  # bytes of messages that wait for those of chunks that overlap


class McapStorage(Storage):
    """Reads one MCAP file.

    Args:
        path: of the file, for messages.
        file: open for reading, if it is not the one at the path.

    Raises:
        DataError: if it is no MCAP file.
    """

    def __init__(self, path: Path, file: IO[bytes] | None = None) -> None:
        super().__init__(path)
        self.keep = file
        try:
            with self._opened() as source:
                index = read_index(source, self.damaged)
        except DataError as error:
            raise DataError(f'{path.name}: {error}') from error
        except OSError as error:
            raise DataError(f'{path.name}: {error.strerror or error}') from error
        self.metadata = index.metadata
        self._spans = sorted({span.offset: span for span in index.spans}.values())
        self.start = self._spans[0].start if self._spans else LATEST
        self._topics = {number: channel.topic for number, channel in index.channels.items()}
        self._announce(index)

    def read(self, topics: Set[str] | None, on_hole: Callable[[], None]) -> Iterator[BagMessage]:
        """Yield messages in order of log time, as far as chunks that overlap fit into memory."""
        try:
            with self._opened() as file:
                yield from self._read_spans(file, topics, on_hole)
        except OSError as error:
            self.damaged(error.strerror or str(error))
            on_hole()

    def _opened(self) -> AbstractContextManager[IO[bytes]]:
        """Open the file; a bag may have more of them than may be open at once."""
        return self.path.open('rb') if self.keep is None else nullcontext(self.keep)

    def _read_spans(self, file: IO[bytes], topics: Set[str] | None,
                    on_hole: Callable[[], None]) -> Iterator[BagMessage]:
        order, held = count(), 0
        waiting: list[tuple[int, int, BagMessage]] = []
        for span in self._spans:
            while waiting and (waiting[0][0] < span.start or held > BUDGET):
                message = heapq.heappop(waiting)[2]
                held -= len(message.data)
                yield message
            for message in self._read_span(file, span, topics, on_hole):
                held += len(message.data)
                heapq.heappush(waiting, (message.log_time, next(order), message))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _announce(self, index: McapIndex) -> None:
        for channel in index.channels.values():
            schema = index.schemas.get(channel.schema)
            kind = schema.name if schema else ''
            if self.types.setdefault(channel.topic, kind) != kind:
                self.damaged(f'{channel.topic}: recorded as {self.types[channel.topic]!r} and as {kind!r}')
            if schema:
                self.definitions.setdefault(schema.name, (schema.encoding, schema.text))

    def _read_span(self, file: IO[bytes], span: Span, topics: Set[str] | None,
                   on_hole: Callable[[], None]) -> Iterator[BagMessage]:
        try:
            content = _content(file, span)
            for opcode, begin, end in records(content):
                if opcode == MESSAGE:
                    channel, log_time, data = parse_message(content[begin:end])
                    topic = self._topics.get(channel)
                    if topic is None or log_time > LATEST:
                        raise DataError('a message without a topic' if topic is None else 'a log time out of range')
                    if topics is None or topic in topics:
                        yield BagMessage(topic, log_time, bytes(data))
        except (DataError, struct.error) as error:
            self.damaged(f'messages at byte {span.offset}: {error}')
            on_hole()


def _content(file: IO[bytes], span: Span) -> memoryview:
    """Return the records of a span."""
    if span.length > SIZE_LIMIT:
        raise DataError(f'{span.length} bytes, at most {SIZE_LIMIT} are read')
    data = memoryview(take(file, span.offset, span.length))
    if len(data) < max(span.length, PREFIX.size):
        raise DataError('cut off')
    opcode, length = PREFIX.unpack_from(data)
    if opcode != CHUNK:
        return data
    if length != span.length - PREFIX.size:
        raise DataError('the index does not fit')
    return parse_chunk(data[PREFIX.size:])
