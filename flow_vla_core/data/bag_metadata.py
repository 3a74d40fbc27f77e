"""Writes ``metadata.yaml`` of a rosbag2 folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

import yaml

from flow_vla_core.disk import flush_to_disk

__all__ = ['BagDescription', 'FilePart', 'Topic', 'write_description']


@dataclass(frozen=True)
class Topic:
    """Describes a recorded topic.

    Args:
        name: as it is on the graph.
        type: such as ``sensor_msgs/msg/Image``.
        qos: offered profiles, in rosbag2's own form.
        definition: language, text and hash of a type that is none of ours.
    """

    name: str
    type: str
    qos: tuple[Mapping[str, Any], ...] = ()
    definition: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class FilePart:
    """Describes one file of a bag.

    Args:
        name: in the bag's folder.
        first: log time of the first message, ns; 0 without one.
        last: of the last one.
        messages: how many there are.
    """

    name: str
    first: int
    last: int
    messages: int

    def information(self) -> dict[str, Any]:
        """Return times and count in rosbag2's form."""
        return {'starting_time': {'nanoseconds_since_epoch': self.first},
                'duration': {'nanoseconds': self.last - self.first}, 'message_count': self.messages}


@dataclass(frozen=True)
class BagDescription:
    """Holds what ``metadata.yaml`` says about a folder with MCAP files.

    Args:
        files: in order.
        counts: messages of each topic, as pairs.
        hashes: topic -> type hash.
        marks: our own words.
    """

    files: Sequence[FilePart]
    counts: Sequence[tuple[Topic, int]]
    hashes: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)

    def information(self) -> dict[str, Any]:
        """Return it in rosbag2's form."""
        filled = [part for part in self.files if part.messages]
        whole = FilePart('', min((part.first for part in filled), default=0),
                         max((part.last for part in filled), default=0), sum(part.messages for part in filled))
        return {
            'version': 9, 'storage_identifier': 'mcap', **whole.information(),
            'topics_with_message_count': [self._topic(topic, count) for topic, count in self.counts],
            'compression_format': '', 'compression_mode': '',
            'relative_file_paths': [part.name for part in self.files],
            'files': [{'path': part.name, **part.information()} for part in self.files],
            'custom_data': dict(self.marks),
            'ros_distro': os.environ.get('ROS_DISTRO', 'kilted')}

    def _topic(self, topic: Topic, count: int) -> dict[str, Any]:
        return {'topic_metadata': {
            'name': topic.name, 'type': topic.type, 'serialization_format': 'cdr',
            'offered_qos_profiles': [dict(profile) for profile in topic.qos],
            'type_description_hash': self.hashes.get(topic.name, '')}, 'message_count': count}


def write_description(folder: Path, description: BagDescription, sync: bool = True) -> None:
    """Write ``metadata.yaml`` beside the old one and put it in its place, on the disk unless ``sync`` is false.

    Raises:
        OSError: if that fails; the old one is still there.
    """
    temporary = folder / 'metadata.yaml.part'
    text = yaml.safe_dump({'rosbag2_bagfile_information': description.information()}, sort_keys=False)
    with temporary.open('w') as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.replace(temporary, folder / 'metadata.yaml')
    if sync:
        flush_to_disk(folder)
