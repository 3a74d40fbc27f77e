"""Takes messages without making anybody wait, and writes them in a thread of its own."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
import logging
import threading
import time

from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.jpeg import COMPRESSED_IMAGE, IMAGE, compress_image, compressed_topic
from flow_vla_core.errors import RecordError

__all__ = ['Recording', 'RecordingOptions']

POLL_SECONDS = 0.02
SYNC_SECONDS = 1.0
SMALL = 64 * 1024  # bytes; messages below it are taken somewhat longer than images when the queue gets full
RESERVE = 1.1


@dataclass(frozen=True)
class RecordingOptions:
    """Says how an episode is written.

    Args:
        queue_bytes: of messages that wait to be written; what comes beyond is lost, and counted.
        jpeg: quality of raw images as JPEG, 1 to 100; 0 keeps them as they are.
        threads: that encode JPEG.
        sync: hand what was written to the disk once a second, so that a power cut costs no more than that.
    """

    queue_bytes: int = 512 * 2 ** 20
    jpeg: int = 0
    threads: int = 2
    sync: bool = True


@dataclass(frozen=True)
class _Item:
    """Holds a message that waits, with its times, ns, and, of an image, the JPEG that is being made of it."""

    topic: str
    data: bytes
    log_time: int
    publish_time: int
    encoded: Future | None = None


class Recording:
    """Writes one episode from a bounded queue.

    `put` only enqueues. A thread writes in the order of arrival and flushes four times a second; another one hands the
    file to the disk. Each ends with `close` or `discard`.

    Args:
        writer: of the episode; belongs to the recording from now on.
        kinds: topic -> type of its messages.
        options: how to write.

    Attributes:
        lost: messages of each topic for which there was no room in the queue.
        failure: why writing ended before its time, or None.
    """

    def __init__(self, writer: EpisodeWriter, kinds: Mapping[str, str],
                 options: RecordingOptions = RecordingOptions()) -> None:
        self.writer, self._options = writer, options
        self._images = {topic for topic, kind in kinds.items() if options.jpeg and kind == IMAGE}
        self._kinds = dict(kinds)
        self._pool = ThreadPoolExecutor(options.threads, 'jpeg') if self._images else None
        self._queue: deque[_Item] = deque()
        self._waiting, self._lock = 0, threading.Lock()
        self._ending, self._done = threading.Event(), threading.Event()
        self.lost: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.failure: RecordError | None = None
        self._threads = [threading.Thread(target=self._write_all, name='writer', daemon=True)]
        if options.sync:
            self._threads.append(threading.Thread(target=self._sync, name='sync', daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Bytes in the queue."""
        return self._waiting

    def put(self, topic: str, data: bytes, log_time: int, publish_time: int) -> bool:
        """Enqueue a message with the time of its receipt and its own stamp, ns; tell whether there was room."""
        room = self._options.queue_bytes * (RESERVE if len(data) < SMALL else 1)
        with self._lock:
            if self.failure is not None or self._waiting + len(data) > room:
                self.lost[topic] += 1
                return False
            self._waiting += len(data)
            self.taken[topic] += 1
        encoded = self._pool.submit(compress_image, data, self._options.jpeg) if topic in self._images else None
        self._queue.append(_Item(topic, data, log_time, publish_time, encoded))
        return True

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write what waits, then the index. Raise `RecordError` if that fails, or writing had failed before."""
        self._end()
        if self.failure is not None:
            raise self.failure
        self.writer.close(metadata)

    def discard(self) -> None:
        """Delete the episode."""
        self._queue.clear()
        self._end()
        self.writer.discard()

    def _end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        if self._pool is not None:
            self._pool.shutdown()

    def _write_all(self) -> None:
        try:
            while not self._ending.is_set():
                self._write_waiting()
                self.writer.flush_if_due()
                self._ending.wait(POLL_SECONDS)
            self._write_waiting()
        except RecordError as error:
            self._fail(error)
        except Exception as error:  # a thread must not die in silence
            logging.getLogger(__name__).exception('the writer failed')
            self.writer.abandon()
            self._fail(RecordError(f'{self.writer.folder}: {type(error).__name__}: {error}'))
        finally:
            self._done.set()

    def _fail(self, error: RecordError) -> None:
        with self._lock:
            self.failure = error
            self.lost.update(item.topic for item in self._queue)
            self._queue.clear()

    def _write_waiting(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            try:
                self._write(item)
            finally:
                with self._lock:
                    self._waiting -= len(item.data)

    def _write(self, item: _Item) -> None:
        encoded = item.encoded.result() if item.encoded is not None else None
        if encoded is None:
            self._write_as(item.topic, self._kinds.get(item.topic, ''), item.data, item)
        else:
            self._write_as(compressed_topic(item.topic), COMPRESSED_IMAGE, encoded, item)

    def _write_as(self, topic: str, kind: str, data: bytes, item: _Item) -> None:
        if not self.writer.announced(topic):
            self.writer.announce(Topic(topic, kind))
        self.writer.write(topic, data, item.log_time, item.publish_time)

    def _sync(self) -> None:
        while not self._done.wait(SYNC_SECONDS):
            started = time.monotonic()
            try:
                self.writer.sync()
            except (RecordError, ValueError) as error:  # the writer has met the same, and has closed the file
                logging.getLogger(__name__).debug('sync: %s', error)
                return
            if (seconds := time.monotonic() - started) > SYNC_SECONDS:
                logging.getLogger(__name__).debug('the disk took %.1f s', seconds)
