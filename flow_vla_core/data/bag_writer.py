"""Writes one episode as a rosbag2 folder with MCAP, so that what was written survives a crash or a full disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import errno
import fcntl
import os
from pathlib import Path
import shutil
import time

import yaml

from flow_vla_core.data.bag_metadata import BagDescription, FilePart, Topic, write_description
from flow_vla_core.data.bags import MARKS
from flow_vla_core.data.mcap_file import COMPRESSIONS, McapFile
from flow_vla_core.data.typestore import full_name, schema
from flow_vla_core.disk import flush_to_disk
from flow_vla_core.errors import DataError, DiskFull, RecordError

__all__ = ['COMPRESSIONS', 'EpisodeWriter', 'Topic', 'delete_bag']

FLUSH_SECONDS = 0.25        # a part of what a crash may cost; the rest is on its way to here
CHUNK_BYTES = 2 ** 20       # small enough for whoever reads a bag with random access


class _Sink:
    """Is a file without buffers of its own: what was accepted is with the operating system.

    It is locked as long as it is open, so that nobody takes it for one that a killed process has left.
    """

    def __init__(self, path: Path) -> None:
        unlocked = path.with_name(f'{path.name}.new')
        self._file = unlocked.open('xb', buffering=0)
        self._descriptor = self._file.fileno()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # a file system without locks
        os.rename(unlocked, path)

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left):]
        return len(data)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        self._file.close()


class EpisodeWriter:
    """Writes serialized messages into ``folder/<folder's name>_0.mcap`` and describes them in ``metadata.yaml``.

    What stands in the file goes to the operating system at least four times a second, as long as messages come or
    `flush_if_due` is called.

    Args:
        folder: of the episode; must not exist yet.
        topics: what will be written.
        metadata: ours, kept in the bag's custom data and in the file itself.
        compression: ``auto``, ``none``, ``lz4``, ``zstd_fast`` or ``zstd``, for each chunk.
        chunk_bytes: size above which a chunk is written.

    Raises:
        RecordError: if the folder exists or can't be made.
        DiskFull: if the disk is full; all that was flushed before stays readable.
    """

    def __init__(self, folder: Path, topics: Sequence[Topic], metadata: Mapping[str, str],
                 compression: str = 'zstd', chunk_bytes: int = CHUNK_BYTES) -> None:
        self.folder, self._metadata = folder, dict(metadata)
        self._chunk_bytes = chunk_bytes
        self._topics: dict[str, Topic] = {}
        self._hashes: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._first = self._last = self.messages = 0
        self._closed = self._settled = False
        self._flushed = time.monotonic()
        try:
            folder.mkdir(parents=True)
            self._sink = _Sink(self.file)
            self._mcap = McapFile(self._sink, compression)
            self._mcap.add_metadata(MARKS, self._metadata)
            for topic in topics:
                self.announce(topic)
            self._describe(sync=False)  # `sync` does that, in a thread that may wait
        except OSError as error:
            raise _record_error(error, folder) from error

    @property
    def file(self) -> Path:
        """The MCAP file."""
        return self.folder / f'{self.folder.name}_0.mcap'

    @property
    def bytes(self) -> int:
        """Bytes in the file so far."""
        return self._mcap.size

    @property
    def duration(self) -> float:
        """Time between first and last message, s."""
        return (self._last - self._first) / 1e9

    def announce(self, topic: Topic) -> None:
        """Add a topic. Raise `DataError` if the definition of its type is not known."""
        language, text, digest = topic.definition or ('ros2msg', *schema(topic.type))
        kind = full_name(topic.type)
        number = len(self._channels) + 1
        self._mcap.add_schema(number, kind, language, text.encode())
        offered = yaml.safe_dump([dict(profile) for profile in topic.qos])
        self._mcap.add_channel(number, topic.name, number, {'offered_qos_profiles': offered,
                                                            'topic_type_hash': digest})
        self._channels[topic.name] = number
        self._topics[topic.name] = Topic(topic.name, kind, topic.qos)
        self._hashes[topic.name], self._counts[topic.name] = digest, 0

    def announced(self, topic: str) -> bool:
        """Tell whether a topic can be written."""
        return topic in self._channels

    def write(self, topic: str, data: bytes, log_time: int, publish_time: int) -> None:
        """Add a serialized message, with the time of its receipt and its own stamp, ns."""
        if topic not in self._channels:
            raise DataError(f'{self.folder.name}: topic {topic!r} was not announced')
        self._first = log_time if self.messages == 0 else min(self._first, log_time)
        self._last = max(self._last, log_time)
        self._counts[topic] += 1
        self.messages += 1
        self._mcap.add_message(self._channels[topic], self._counts[topic], log_time, max(publish_time, 0), data)
        if self._mcap.pending > self._chunk_bytes:
            self.flush()
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write what is held back if the last time is too long ago."""
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the operating system."""
        try:
            self._mcap.end_chunk()
            self._flushed = time.monotonic()
        except OSError as error:
            self.abandon()
            raise _record_error(error, self.folder) from error

    def sync(self) -> None:
        """Hand what was flushed to the disk; any thread may call it."""
        try:
            self._sink.sync()
            if not self._settled:
                flush_to_disk(self.folder)
                flush_to_disk(self.folder.parent)
                self._settled = True
        except OSError as error:
            raise _record_error(error, self.folder) from error

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the index, add to our metadata and end."""
        self._metadata.update(metadata or {})
        if self._closed:
            return
        self._closed = True
        try:
            if metadata:
                self._mcap.end_chunk()
                self._mcap.add_metadata(MARKS, self._metadata)
            self._mcap.finish()
            self._sink.sync()
            self._describe()
        except OSError as error:
            raise _record_error(error, self.folder) from error
        finally:
            self._sink.close()

    def abandon(self) -> None:
        """End without an index; what was flushed stays."""
        self._closed = True
        self._sink.close()
        try:
            self._describe()
        except OSError:
            pass  # the description of the start is still there

    def discard(self) -> None:
        """Delete the episode. Raise `RecordError` if that fails."""
        self._closed = True
        self._sink.close()
        delete_bag(self.folder)

    def _describe(self, sync: bool = True) -> None:
        counts = [(topic, self._counts[name]) for name, topic in self._topics.items()]
        part = FilePart(self.file.name, self._first, self._last, self.messages)
        write_description(self.folder, BagDescription([part], counts, self._hashes, self._metadata), sync)


def delete_bag(folder: Path) -> None:
    """Delete a bag, its data first: what is left when that is interrupted is taken for no bag, and not repaired.

    Raises:
        RecordError: if it can't be deleted; one that is not there is none.
    """
    try:
        for path in folder.glob('*.mcap'):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RecordError(f'{folder}: cannot be deleted: {error.strerror}') from error


def _record_error(error: OSError, folder: Path) -> RecordError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f'{folder}: the disk is full; what was written so far stays readable')
    return RecordError(f'{folder}: {error.strerror}')
