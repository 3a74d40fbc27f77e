"""Goes through a bag once and keeps what can be said about it: times, numbers, words, small pictures; no bulk."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
import hashlib
from pathlib import Path
from typing import Any
import zlib

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import Bag, header_stamp
from flow_vla_core.data.inspection.collectors import Collector, Collectors
from flow_vla_core.errors import DataError

__all__ = ['Scan', 'TopicScan', 'scan']

BODY = 12  # bytes: encapsulation and stamp stand before it
WORDS = ('flow_vla/', 'std_msgs/msg/String')  # types that do not tell two episodes apart


@dataclass(frozen=True)
class TopicScan:
    """Holds the times of a topic's messages, in the order in which they were read.

    Args:
        name: as recorded.
        type: ``package/msg/Type``.
        role: name of the contract's part that it is, or empty.
        log: (N,) int64 times of receipt, ns.
        stamps: (N,) int64 of the headers, ns; None for a type without one.
        size: bytes of all messages.
        known: whether a definition of the type is known.
    """

    name: str
    type: str
    role: str
    log: np.ndarray
    stamps: np.ndarray | None
    size: int
    known: bool

    def __len__(self) -> int:
        return len(self.log)


@dataclass(frozen=True)
class Scan:
    """Holds one bag after it was read once.

    Args:
        path: of the bag.
        marks: custom data of its metadata.
        problems: what is damaged.
        topics: recorded name -> its times.
        found: name of the contract's part (also ``instruction``) -> recorded name.
        collected: recorded name -> what was collected of its contents.
        digest: of all contents that belong to the motion; empty without any.
    """

    path: Path
    marks: Mapping[str, str]
    problems: tuple[str, ...]
    topics: Mapping[str, TopicScan]
    found: Mapping[str, str]
    collected: Mapping[str, Collector]
    digest: str

    @property
    def start(self) -> int:
        """Earliest time of receipt, ns; 0 for an empty bag."""
        return min((int(topic.log.min()) for topic in self.topics.values() if len(topic)), default=0)

    @property
    def end(self) -> int:
        """Latest time of receipt, ns; 0 for an empty bag."""
        return max((int(topic.log.max()) for topic in self.topics.values() if len(topic)), default=0)

    @property
    def duration(self) -> float:
        """Time between the first and the last message, s."""
        return (self.end - self.start) / 1e9

    def of_kind(self, kind: type[Collector]) -> dict[str, Any]:
        """Return the topics whose contents a kind of collector holds."""
        return {name: held for name, held in sorted(self.collected.items()) if isinstance(held, kind)}


@dataclass
class _Open:
    """Is a topic that is being read."""

    stamped: bool
    known: bool
    collector: Collector | None
    log: array = field(default_factory=lambda: array('q'))
    stamps: array = field(default_factory=lambda: array('q'))
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


def scan(bag: Bag, contract: RobotContract | None, pictures: int) -> Scan:
    """Read every message of a bag once; whatever is wrong with one is counted, and never raised.

    Args:
        bag: opened.
        contract: says which topics are decoded; without one, only images and our own messages are.
        pictures: thumbnails of each camera.
    """
    collectors = Collectors(bag.types, contract, pictures)
    topics: dict[str, _Open] = {}
    for message in bag.read():
        opened = topics.get(message.topic)
        if opened is None:
            opened = topics[message.topic] = _open(bag, message.topic, collectors)
        _take(bag, opened, message)
    for name in bag.types:
        topics.setdefault(name, _open(bag, name, collectors))
    return Scan(bag.path, bag.marks, tuple(bag.problems),
                {name: _close(name, bag.types[name], collectors.role(name), topics[name]) for name in sorted(topics)},
                collectors.found, {name: opened.collector for name, opened in topics.items() if opened.collector},
                _digest(bag.types, topics))


def _open(bag: Bag, topic: str, collectors: Collectors) -> _Open:
    return _Open(bag.is_stamped(topic), bag.is_known(topic), collectors.make(topic))


def _take(bag: Bag, opened: _Open, message: Any) -> None:
    log_time, data = message.log_time, message.data
    stamp = log_time
    if opened.stamped:
        stamp = header_stamp(data) if len(data) >= BODY else 0
        opened.stamps.append(stamp)
    opened.log.append(log_time)
    opened.size += len(data)
    body = zlib.crc32(memoryview(data)[BODY:])
    opened.digest.update(b'%d %d ' % (stamp if opened.stamped else 0, body))
    if opened.collector is None or not opened.known:
        return
    decoded = None
    try:
        decoded = bag.decode(message.topic, data)
        opened.collector.take(log_time, stamp, decoded, body)
    except DataError as error:
        opened.collector.refuse(str(error).removeprefix(f'{bag.path}: ').removeprefix(f'{message.topic}: '))
    if decoded is None and opened.stamped:
        opened.stamps[-1] = log_time  # what stands in the place of a stamp is noise


def _close(name: str, kind: str, role: str, opened: _Open) -> TopicScan:
    stamps = np.array(opened.stamps, np.int64) if opened.stamped else None
    return TopicScan(name, kind, role, np.array(opened.log, np.int64), stamps, opened.size, opened.known)


def _digest(types: Mapping[str, str], topics: Mapping[str, _Open]) -> str:
    """Return one number for what was recorded, whatever the order of topics in the file."""
    parts = [f'{name} {opened.digest.hexdigest()}' for name, opened in sorted(topics.items())
             if len(opened.log) and not types[name].startswith(WORDS)]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16] if parts else ''
