"""Plays recorded messages at the times at which they were recorded, at any rate, with pauses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
import itertools
from pathlib import Path
import threading
import time

from flow_vla_core.data.bag_reader import Bag, BagMessage, open_bag
from flow_vla_core.data.offers import read_offers
from flow_vla_core.errors import ConfigError

__all__ = ['Begin', 'End', 'Lateness', 'PlayClock', 'Player', 'Playlist']

SECOND = 10 ** 9


@dataclass(frozen=True)
class Begin:
    """Says that a bag begins.

    Args:
        bag: that is read from now on.
        time: log time at which it begins to be played, ns.
        latched: the last message of each latched topic from before that time.
    """

    bag: Bag
    time: int
    latched: tuple[BagMessage, ...] = ()


@dataclass(frozen=True)
class End:
    """Says that a bag has ended, with the log time of its last message, ns."""

    bag: Bag
    time: int


@dataclass(frozen=True)
class Playlist:
    """Lists what is played: bags one after another, each between a `Begin` and an `End`; read as it is asked for.

    Args:
        bags: rosbag2 folders.
        topics: only these; all if empty.
        start_offset: leave out so much of the first bag's beginning, s; of latched topics the last message is kept.
        loop: begin again after the last one, for ever.
    """

    bags: Sequence[Path]
    topics: Collection[str] = ()
    start_offset: float = 0.0
    loop: bool = False

    def __iter__(self) -> Iterator[Begin | BagMessage | End]:
        for _ in itertools.count() if self.loop else range(1):
            played = 0
            for number, path in enumerate(self.bags):
                for item in self._one(open_bag(path), 0 if number else round(self.start_offset * SECOND)):
                    played += isinstance(item, BagMessage)
                    yield item
            if not played:
                return

    def _one(self, bag: Bag, offset: int) -> Iterator[Begin | BagMessage | End]:
        messages = iter(bag.read(self.topics or None))
        first = next(messages, None)
        if first is None:
            return
        begin, latched, last = first.log_time + offset, {}, first.log_time
        keep = {topic for topic, offer in read_offers(bag.path).items() if offer.latched}
        messages = itertools.chain([first], messages)
        for message in messages:
            if message.log_time >= begin:
                messages = itertools.chain([message], messages)
                break
            if message.topic in keep:
                latched[message.topic] = message
        yield Begin(bag, begin, tuple(latched.values()))
        for message in messages:
            last = max(last, message.log_time)
            yield message
        yield End(bag, last)


class PlayClock:
    """Says when a log time is due, on one absolute schedule: what is late does not make what follows late.

    Args:
        rate: log time per time.
        now: of the clock by which things are due, ns; monotonic.

    Raises:
        ConfigError: for a rate that is not above 0.

    Example:
        >>> times = iter([100, 160, 200, 240])
        >>> clock = PlayClock(rate=2.0, now=lambda: next(times))
        >>> clock.start(1000)               # at 100
        >>> clock.due(1080)
        140
        >>> clock.time()                    # at 160
        1120
        >>> clock.pause()                   # at 200
        >>> clock.resume()                  # at 240
        >>> clock.due(1080)
        180
    """

    def __init__(self, rate: float = 1.0, now: Callable[[], int] = time.monotonic_ns) -> None:
        if not rate > 0:
            raise ConfigError(f'rate: {rate!r}; allowed: above 0')
        self._rate, self._now = rate, now
        self._first, self._origin = 0, 0
        self._held: int | None = None

    @property
    def paused(self) -> bool:
        """Whether time stands still."""
        return self._held is not None

    def start(self, first: int, delay: float = 0.0) -> None:
        """Let the log time ``first``, ns, be due so many seconds from now."""
        now = self._now()
        self._first, self._origin = first, now + round(delay * SECOND)
        self._held = now if self.paused else None

    def due(self, time: int) -> int:
        """Return when a log time is due, ns of the clock; while paused, as if it went on at once."""
        return self._origin + round((time - self._first) / self._rate)

    def time(self) -> int:
        """Return the log time that is due now, ns."""
        now = self._now() if self._held is None else self._held
        return self._first + round((now - self._origin) * self._rate)

    def pause(self) -> None:
        """Let time stand still."""
        if self._held is None:
            self._held = self._now()

    def resume(self) -> None:
        """Let time go on."""
        if self._held is not None:
            self._origin += self._now() - self._held
            self._held = None


class Lateness:
    """Measures how late messages go out, over the last of them.

    Args:
        size: number of messages that count.

    Example:
        >>> late = Lateness(3)
        >>> for value in (9_000_000, 1_000_000, 2_000_000, 3_000_000):
        ...     late.add(value)
        >>> late.quantile(0.5), late.quantile(1.0)
        (0.002, 0.003)
    """

    def __init__(self, size: int = 20_000) -> None:
        self._last: deque[int] = deque(maxlen=size)

    def add(self, late: int) -> None:
        """Take one in, ns."""
        self._last.append(late)

    def quantile(self, share: float) -> float:
        """Return a quantile, s; NaN without any message."""
        found = sorted(self._last)
        return found[min(len(found) - 1, int(share * len(found)))] / SECOND if found else float('nan')


class Player:
    """Hands out what a playlist holds when it is due, with ROS time in between; `run` returns at its end.

    Args:
        items: `Begin`, messages and `End`.
        clock: says when.
        emit: gets every item when it is due.
        tell_time: gets the log time, ns, ``clock_hz`` times a second, at the beginning of each bag and while paused.
        clock_hz: 0 for never.
        gap: time in which each bag's time is told before it begins, s, so that whoever listens is done with the last.
    """

    def __init__(self, items: Iterable[Begin | BagMessage | End], clock: PlayClock,
                 emit: Callable[[Begin | BagMessage | End], None], tell_time: Callable[[int], None] = lambda time: None,
                 clock_hz: float = 0.0, gap: float = 0.0) -> None:
        self._items, self._clock, self._emit, self._tell_time = items, clock, emit, tell_time
        self._period = round(SECOND / clock_hz) if clock_hz > 0 else 0
        self._gap, self._next_tick, self._last = gap, 0, 0
        self._changed = threading.Condition()
        self._stopped = False
        self.lateness = Lateness()
        self.messages = 0

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._clock.paused

    def run(self) -> None:
        """Play to the end, or until `stop`."""
        for item in self._items:
            if isinstance(item, Begin):
                self._begin(item)
            elif isinstance(item, End):
                self._emit(item)
            elif not self._wait(item.log_time):
                return
            else:
                self._send(item)
            if self._stopped:
                return

    def pause(self, paused: bool) -> None:
        """Stand still, or go on."""
        with self._changed:
            self._clock.pause() if paused else self._clock.resume()
            self._changed.notify_all()

    def stop(self) -> None:
        """End `run`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _begin(self, item: Begin) -> None:
        with self._changed:
            self._clock.start(item.time, self._gap)
            self._last = item.time
        self._next_tick = 0
        self._tell_time(item.time)
        if self._wait(item.time):
            self._emit(item)
            for message in item.latched:
                self._emit(message)

    def _send(self, message: BagMessage) -> None:
        self.lateness.add(time.monotonic_ns() - self._clock.due(message.log_time))
        self._last = message.log_time
        self.messages += 1
        self._emit(message)

    def _wait(self, due: int) -> bool:
        """Wait until a log time is due, telling the time meanwhile; return whether to go on."""
        while True:
            with self._changed:
                if self._stopped:
                    return False
                now = time.monotonic_ns()
                left = SECOND if self.paused else self._clock.due(due) - now
                ticks = self._period > 0 and now >= self._next_tick
                if not ticks and left <= 0:
                    return True
                if not ticks:
                    self._changed.wait(min(left, self._next_tick - now if self._period else left) / SECOND)
                    continue
                self._next_tick = now + self._period
                present = max(self._last, min(due, self._clock.time()))
            self._tell_time(present)
