"""Writes one episode as a rosbag2 folder with MCAP, so that what was written survives a crash or a full disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import errno
import os
from pathlib import Path
import shutil
import time
from typing import Any

from mcap.writer import CompressionType, Writer
import yaml

from flow_vla_core.data.typestore import full_name, schema
from flow_vla_core.errors import DataError, DiskFull, RecordError

__all__ = ['EpisodeWriter', 'Topic']

FLUSH_SECONDS = 0.5  # what a crash may cost at most, twice over
COMPRESSIONS = {'none': CompressionType.NONE, 'lz4': CompressionType.LZ4, 'zstd': CompressionType.ZSTD}


@dataclass(frozen=True)
class Topic:
    """Describes a recorded topic.

    Args:
        name: as it is on the graph.
        type: such as ``sensor_msgs/msg/Image``.
        qos: offered profiles, in rosbag2's own form.
    """

    name: str
    type: str
    qos: tuple[Mapping[str, Any], ...] = ()


class _Sink:
    """Is a file without buffers of its own: what was accepted is with the operating system."""

    def __init__(self, path: Path) -> None:
        self._file = path.open('wb', buffering=0)

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left):]
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self._file.close()


class EpisodeWriter:
    """Writes serialized messages into ``folder/<folder's name>_0.mcap`` and describes them in ``metadata.yaml``.

    Args:
        folder: of the episode; must not exist yet.
        topics: what will be written.
        metadata: ours, kept in the bag's custom data.
        compression: ``none``, ``lz4`` or ``zstd``, for each chunk of 1 MiB.

    Raises:
        RecordError: if the folder exists or can't be made.
        DiskFull: if the disk is full; all that was flushed before stays readable.
    """

    def __init__(self, folder: Path, topics: Sequence[Topic], metadata: Mapping[str, str],
                 compression: str = 'zstd') -> None:
        self.folder, self._topics, self._metadata = folder, list(topics), dict(metadata)
        self._counts = {topic.name: 0 for topic in topics}
        self._first = self._last = 0
        self._closed = False
        self._flushed = time.monotonic()
        try:
            folder.mkdir(parents=True)
            self._sink = _Sink(self.file)
            self._writer = Writer(self._sink, compression=COMPRESSIONS[compression])
            self._writer.start(profile='ros2', library='flow_vla')
            self._channels = {topic.name: self._open(topic) for topic in topics}
            self._writer.flush()
            self._describe()
        except OSError as error:
            raise _record_error(error, folder) from error

    @property
    def file(self) -> Path:
        """The MCAP file."""
        return self.folder / f'{self.folder.name}_0.mcap'

    @property
    def messages(self) -> int:
        """Messages written so far."""
        return sum(self._counts.values())

    @property
    def duration(self) -> float:
        """Time between first and last message, s."""
        return (self._last - self._first) / 1e9

    def write(self, topic: str, data: bytes, log_time: int, publish_time: int) -> None:
        """Add a serialized message, with the time of its receipt and its own stamp, ns."""
        if topic not in self._channels:
            raise DataError(f'{self.folder.name}: topic {topic!r} was not announced')
        self._first = log_time if self.messages == 0 else min(self._first, log_time)
        self._last = max(self._last, log_time)
        self._counts[topic] += 1
        try:
            self._writer.add_message(self._channels[topic], log_time, data, publish_time, self._counts[topic])
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self.abandon()
            raise _record_error(error, self.folder) from error

    def close(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the index, add to our metadata and end."""
        self._metadata.update(metadata or {})
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.finish()
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
        """Delete the episode."""
        self._closed = True
        self._sink.close()
        shutil.rmtree(self.folder)

    def _open(self, topic: Topic) -> int:
        text, _ = schema(topic.type)
        number = self._writer.register_schema(full_name(topic.type), 'ros2msg', text.encode())
        offered = {'offered_qos_profiles': yaml.safe_dump([dict(profile) for profile in topic.qos])}
        return self._writer.register_channel(topic.name, 'cdr', number, offered)

    def _describe(self) -> None:
        temporary = self.folder / 'metadata.yaml.part'
        temporary.write_text(yaml.safe_dump({'rosbag2_bagfile_information': self._information()}, sort_keys=False))
        os.replace(temporary, self.folder / 'metadata.yaml')

    def _information(self) -> dict[str, Any]:
        return {
            'version': 9, 'storage_identifier': 'mcap', **self._times(),
            'topics_with_message_count': [self._topic_information(topic) for topic in self._topics],
            'compression_format': '', 'compression_mode': '',
            'relative_file_paths': [self.file.name],
            'files': [{'path': self.file.name, **self._times()}],
            'custom_data': self._metadata, 'ros_distro': os.environ.get('ROS_DISTRO', 'kilted'),
        }

    def _times(self) -> dict[str, Any]:
        return {'starting_time': {'nanoseconds_since_epoch': self._first},
                'duration': {'nanoseconds': self._last - self._first}, 'message_count': self.messages}

    def _topic_information(self, topic: Topic) -> dict[str, Any]:
        return {'topic_metadata': {
            'name': topic.name, 'type': full_name(topic.type), 'serialization_format': 'cdr',
            'offered_qos_profiles': [dict(profile) for profile in topic.qos],
            'type_description_hash': schema(topic.type)[1]}, 'message_count': self._counts[topic.name]}


def _record_error(error: OSError, folder: Path) -> RecordError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f'{folder}: the disk is full; what was written so far stays readable')
    return RecordError(f'{folder}: {error.strerror}')
