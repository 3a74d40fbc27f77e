"""Reads items before they are asked for, in a thread of its own and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
import threading
from typing import TypeVar

__all__ = ['ReadAhead']

Item = TypeVar('Item')


class ReadAhead:
    """Reads items in a thread of its own, so far ahead as their bytes allow; an error comes out where it happened.

    Args:
        items: what is read; those with ``data`` count by its length.
        room: bytes that may wait.

    Example:
        >>> list(ReadAhead('abc'))
        ['a', 'b', 'c']
    """

    def __init__(self, items: Iterable[Item], room: int = 2 ** 26) -> None:
        self._items, self._room = items, room
        self._waiting: deque[tuple[Item | None, BaseException | None]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._read, name='read ahead', daemon=True).start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                item, error = self._waiting.popleft()
                self._bytes -= _size(item)
                self._changed.notify_all()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item, None):
                    return
            self._put(None, None)
        except Exception as error:
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < self._room or self._closed)
            self._waiting.append((item, error))
            self._bytes += _size(item)
            self._changed.notify_all()
            return not self._closed


def _size(item: object) -> int:
    return len(getattr(item, 'data', b''))
