"""Repairs bags that a killed process has left: rebuilds index and metadata, and loses nothing of what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import errno
import fcntl
import os
from pathlib import Path
import re
from typing import BinaryIO

from mcap.reader import make_reader
from mcap.summary import Summary
from mcap.writer import MCAP0_MAGIC
import yaml

from flow_vla_core.data.bag_metadata import BagDescription, FilePart, Topic, write_description
from flow_vla_core.data.bags import MARKS, read_metadata
from flow_vla_core.data.mcap_repair import rebuild
from flow_vla_core.errors import DataError, DiskFull, FlowVLAError, RecordError

__all__ = ['Repair', 'complaint', 'find_recordings', 'repair_all', 'repair_bag']

COUNT = re.compile(r'^  message_count: (\d+)$', re.MULTILINE)


@dataclass(frozen=True)
class Repair:
    """Tells what was done with a bag.

    Args:
        path: its folder.
        complaint: what was wrong with it; empty for a whole bag, which is left as it is.
        messages: that it holds now.
        seconds: from its first to its last message.
        cut: bytes that could not be read and now stand in a file ``*.damaged`` beside the bag's.
        error: why it could not be repaired.
    """

    path: Path
    complaint: str = ''
    messages: int = 0
    seconds: float = 0.0
    cut: int = 0
    error: str = ''

    def __str__(self) -> str:
        if self.error:
            return f'{self.path}: not repaired: {self.error}'
        if not self.complaint:
            return f'{self.path}: whole'
        kept = f'; {self.cut} bytes that cannot be read are kept in *.damaged' if self.cut else ''
        return f'{self.path}: repaired ({self.complaint}): {self.messages} messages, {self.seconds:.1f} s{kept}'


def find_recordings(folder: Path) -> list[Path]:
    """Return the folders with MCAP files at or below a folder, sorted."""
    return sorted({path.parent for path in Path(folder).rglob('*.mcap')})


def complaint(bag: Path) -> str:
    """Say what is wrong with index or metadata of a bag; nothing if it is whole."""
    counts = []
    for path in _files(bag):
        try:
            counts.append(_summary(path).statistics.message_count)
        except DataError as error:
            return f'{path.name}: {error}'
    try:
        text = (bag / 'metadata.yaml').read_text()
    except (OSError, UnicodeDecodeError) as error:
        return f'metadata.yaml: {getattr(error, "strerror", "") or "no text"}'
    if (told := COUNT.search(text)) is None or int(told[1]) != sum(counts):
        return f'metadata.yaml: tells of {told[1] if told else "no"} messages, there are {sum(counts)}'
    return ''


def repair_bag(bag: Path) -> Repair:
    """Repair a bag if it needs it. One that is being recorded is left as it is.

    Raises:
        DataError: if a file of it is no MCAP.
        DiskFull: if there is no room to work in; the bag is as it was.
        RecordError: if it can't be written, or is being recorded.
    """
    bag = Path(bag)
    problem = complaint(bag)
    if not problem:
        return Repair(bag)
    try:
        marks = _told_marks(bag)
        cut = sum(_repair_file(path) for path in _files(bag))
        summaries = [(path, _summary(path)) for path in _files(bag)]
        for path, _ in summaries:
            marks.update(_kept_marks(path))
        description = _describe(summaries, marks)
        write_description(bag, description)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f'{bag}: no room on the disk to repair it') from error
        raise RecordError(f'{bag}: {error.strerror}') from error
    messages = sum(part.messages for part in description.files)
    times = [time for part in description.files if part.messages for time in (part.first, part.last)]
    return Repair(bag, problem, messages, (max(times, default=0) - min(times, default=0)) / 1e9, cut)


def repair_all(folder: Path) -> Iterator[Repair]:
    """Repair every bag at or below a folder that needs it, and tell of each; an error with one stops nothing."""
    for bag in find_recordings(folder):
        try:
            yield repair_bag(bag)
        except FlowVLAError as error:
            yield Repair(bag, error=str(error).removeprefix(f'{bag}: '))


def _files(bag: Path) -> list[Path]:
    return sorted(Path(bag).glob('*.mcap'), key=lambda path: (len(path.name), path.name))


def _repair_file(path: Path) -> int:
    """Repair one file unless it is whole; return how many bytes were cut."""
    with path.open('r+b') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordError(f'{path.parent}: is being recorded') from None
        except OSError:
            pass  # a file system without locks
        try:
            _summary(path)
            return 0
        except DataError:
            pass
        try:
            return rebuild(file, path)
        except DataError as error:
            raise DataError(f'{path.parent}: {path.name}: {error}') from error


def _summary(path: Path) -> Summary:
    """Read the index. Raise `DataError` if there is none, or it is damaged."""
    try:
        with path.open('rb') as file:
            _check_end(file)
            summary = make_reader(file).get_summary()
    except OSError as error:
        raise DataError(error.strerror or 'unreadable') from error
    except DataError:
        raise
    except Exception as error:  # damaged bytes make the parser raise anything
        raise DataError(f'damaged index: {type(error).__name__}: {error}') from error
    if summary is None or summary.statistics is None:
        raise DataError('no index')
    return summary


def _check_end(file: BinaryIO) -> None:
    if file.seek(0, os.SEEK_END) < 2 * len(MCAP0_MAGIC):
        raise DataError('cut off')
    file.seek(-len(MCAP0_MAGIC), os.SEEK_END)
    if file.read() != MCAP0_MAGIC:
        raise DataError('cut off')
    file.seek(0)


def _told_marks(bag: Path) -> dict[str, str]:
    try:
        return read_metadata(bag)
    except DataError:
        return {}


def _kept_marks(path: Path) -> dict[str, str]:
    with path.open('rb') as file:
        kept = [metadata.metadata for metadata in make_reader(file).iter_metadata() if metadata.name == MARKS]
    return kept[-1] if kept else {}


def _describe(files: Sequence[tuple[Path, Summary]], marks: Mapping[str, str]) -> BagDescription:
    parts, topics, counts, hashes = [], {}, {}, {}
    for path, summary in files:
        told = summary.statistics
        parts.append(FilePart(path.name, told.message_start_time, told.message_end_time, told.message_count))
        for number, channel in summary.channels.items():
            kind = summary.schemas[channel.schema_id].name if channel.schema_id in summary.schemas else ''
            topics.setdefault(channel.topic, Topic(channel.topic, kind, _offered(channel.metadata)))
            counts[channel.topic] = counts.get(channel.topic, 0) + told.channel_message_counts.get(number, 0)
            hashes[channel.topic] = channel.metadata.get('topic_type_hash', '')
    return BagDescription(parts, [(topic, counts[name]) for name, topic in topics.items()], hashes, marks)


def _offered(metadata: Mapping[str, str]) -> tuple[Mapping[str, object], ...]:
    try:
        profiles = yaml.safe_load(metadata.get('offered_qos_profiles', '')) or []
    except yaml.YAMLError:
        return ()
    return tuple(profile for profile in profiles if isinstance(profile, Mapping)) if isinstance(profiles, list) else ()
