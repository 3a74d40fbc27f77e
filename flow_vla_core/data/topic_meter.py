"""Measures a topic while it comes in: its rate, age and bytes, the delay of its stamps, and what was lost."""

from __future__ import annotations

from collections import deque
import math
import time

__all__ = ['TopicMeter']

WINDOW = 2 * 10 ** 9  # ns
MOST = 4000           # samples that are looked back on


class TopicMeter:
    """Looks back on the last two seconds of a topic.

    Args:
        stamped: whether its messages have stamps of their own.

    Example:
        >>> meter = TopicMeter(stamped=True)
        >>> for k in range(21):
        ...     meter.add(size=100, log_time=k * 50_000_000, stamp=k * 50_000_000 - 3_000_000)
        >>> round(meter.rate, 6), meter.delay, meter.bytes_per_second
        (20.0, 0.003, 2000.0)
    """

    def __init__(self, stamped: bool) -> None:
        self.stamped = stamped
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=MOST)  # log time, delay in ns, size
        self._arrived = -math.inf
        self._sequence: dict[bytes, int] = {}
        self._gaps = self._events = 0

    def add(self, size: int, log_time: int, stamp: int) -> None:
        """Take note of a message: its bytes, the ROS time of its receipt and its stamp, ns."""
        samples = self._samples
        if samples and log_time < samples[-1][0]:  # ROS time went backwards
            samples.clear()
        samples.append((log_time, log_time - stamp, size))
        while samples[0][0] < log_time - WINDOW:
            samples.popleft()
        self._arrived = time.monotonic()

    def number(self, publisher: bytes, sequence: int) -> None:
        """Take note of the number that a publisher gave to a message; missing numbers are lost messages."""
        before = self._sequence.get(publisher)
        self._sequence[publisher] = sequence
        if before is not None and sequence > before + 1:
            self._gaps += sequence - before - 1

    def forget_numbers(self) -> None:
        """Begin to count anew with the next message, after a pause that was wanted."""
        self._sequence.clear()

    def note_lost(self, total: int) -> None:
        """Take note of how many messages the middleware says that it has lost since it subscribed."""
        self._events = max(self._events, total)

    @property
    def lost(self) -> int:
        """Messages that were lost on the way here."""
        return max(self._gaps, self._events)

    @property
    def rate(self) -> float:
        """Messages per second of ROS time; 0 below two."""
        return self._per_second(len(self._samples) - 1)

    @property
    def bytes_per_second(self) -> float:
        """Bytes per second of ROS time; 0 below two messages."""
        return self._per_second(sum(size for _, _, size in list(self._samples)[1:]))

    @property
    def age(self) -> float:
        """Time since the newest message came, s of this machine; infinity before the first."""
        return time.monotonic() - self._arrived

    @property
    def delay(self) -> float | None:
        """Shortest time from a stamp to the receipt, s; None without stamps or messages."""
        if not self.stamped or not self._samples:
            return None
        return min(delay for _, delay, _ in self._samples) / 1e9

    def _per_second(self, amount: float) -> float:
        if len(self._samples) < 2:
            return 0.0
        span = self._samples[-1][0] - self._samples[0][0]
        return amount / (span / 1e9) if span > 0 else 0.0
