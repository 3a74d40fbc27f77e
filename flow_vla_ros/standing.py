"""Keeps what was said before an episode and still holds when it begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple

__all__ = ['Said', 'Standing']


class Said(NamedTuple):
    """Holds a message as it was on the wire.

    Args:
        topic: with its namespace.
        data: serialized.
        received: ROS time of its receipt, ns.
        stamp: its own, ns.
    """

    topic: str
    data: bytes
    received: int
    stamp: int


class Standing:
    """Keeps the last message of each publisher that a late subscriber would get too, and the last ones of some topics.

    Args:
        recent: topics of which everything of the last ``age`` is kept.
        age: ns of ROS time.

    Example:
        >>> standing = Standing({'status'}, age=10)
        >>> for time in (0, 8, 15):
        ...     standing.hear(Said('status', b'', time, time), publisher=b'a', latched=False)
        >>> standing.hear(Said('map', b'', 1, 1), publisher=b'b', latched=True)
        >>> [said.received for said in standing.recall(now=16, publishers={b'b'})]
        [1, 8, 15]
    """

    def __init__(self, recent: Collection[str], age: int) -> None:
        self._age = age
        self._recent: dict[str, deque[Said]] = {topic: deque() for topic in recent}
        self._last: dict[bytes, Said] = {}

    def hear(self, said: Said, publisher: bytes, latched: bool) -> None:
        """Take note of a message, of who has published it, and of whether those who come late get it."""
        if latched:
            self._last[publisher] = said
        if (recent := self._recent.get(said.topic)) is not None:
            if recent and said.received < recent[-1].received:  # ROS time went backwards
                recent.clear()
            recent.append(said)
            while recent[0].received < said.received - self._age:
                recent.popleft()

    def latched(self) -> set[str]:
        """Return the topics of which something is kept for those who come late."""
        return {said.topic for said in self._last.values()}

    def recall(self, now: int, publishers: Collection[bytes]) -> Iterator[Said]:
        """Yield what holds at a time, ns, in the order of its receipt; publishers that have gone are forgotten."""
        self._last = {publisher: said for publisher, said in self._last.items() if publisher in publishers}
        recent = [said for kept in self._recent.values() for said in kept if 0 <= now - said.received <= self._age]
        yield from sorted({*self._last.values(), *recent}, key=lambda said: said.received)
