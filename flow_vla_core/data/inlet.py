"""One way into an aligner: the samples of a topic that may still be needed."""

from __future__ import annotations

from typing import Any

from flow_vla_core.align import StreamBuffer
from flow_vla_core.contract import ActionPart
from flow_vla_core.data.typestore import full_name, has_header, typestore

__all__ = ['UNLIMITED', 'Inlet']

UNLIMITED = 2 ** 62  # ns or samples; more than there will ever be


class Inlet:
    """Keeps what one topic gives to one stream, command or other user.

    Args:
        topic: as the contract has it.
        kind: type of its messages.
        name: of the stream or command.
        max_skew: how far before a grid time a sample may lie, ns.
        part: of the action, if it is a command.

    Attributes:
        label: name under which it is pushed.
        count: samples so far.
        held: bytes that are kept.
        newest: newest stamp, ns.
        first: smallest stamp ever, ns.
        decoded: the data that was decoded last, and what it gave.
    """

    def __init__(self, topic: str, kind: str, name: str, max_skew: int = 0, part: ActionPart | None = None) -> None:
        self.topic, self.kind, self.name, self.max_skew, self.part = topic, full_name(kind), name, max_skew, part
        self.label = topic
        self.has_header = self.kind in typestore().fielddefs and has_header(typestore(), self.kind)
        self.buffer = StreamBuffer(UNLIMITED)
        self.count = self.held = 0
        self.newest, self.first = -UNLIMITED, UNLIMITED
        self.decoded: tuple[Any, Any] | None = None

    @property
    def oldest(self) -> int:
        """Oldest stamp that is kept, ns; very large for none."""
        return UNLIMITED if self.buffer.oldest is None else self.buffer.oldest

    def push(self, stamp: int, data: Any) -> int:
        """Keep a sample; return how many bytes more are held."""
        self.count += 1
        self.newest, self.first = max(self.newest, stamp), min(self.first, stamp)
        gained = _size(data) - sum(map(_size, self.buffer.push(stamp, data)))
        self.held += gained
        return gained

    def clear(self) -> None:
        """Forget every sample."""
        self.buffer.clear()
        self.held, self.newest = 0, -UNLIMITED

    def forget(self, time: int) -> int:
        """Drop what is older than the newest sample at or before a time; return how many bytes that was."""
        freed = sum(map(_size, self.buffer.forget_before(time)))
        self.held -= freed
        return freed


def _size(data: Any) -> int:
    return len(data) if isinstance(data, (bytes, str)) else 64 + len(getattr(data, 'data', ()))
