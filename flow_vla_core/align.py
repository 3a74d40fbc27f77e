"""Brings many stamped streams to one reference time, in the same way live and from bags."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, StreamMissing, StreamSkewed, StreamStale, closest

__all__ = ['Aligned', 'StreamBuffer', 'StreamSpec', 'Synchroniser']

RATE_SAMPLES = 20


@dataclass(frozen=True)
class StreamSpec:
    """Describes one stream.

    Args:
        name: of the stream.
        max_age: how old its newest sample may be when an observation is made, ns; None for any.
        max_skew: how far before the reference time a sample may lie, ns; None for any.
    """

    name: str
    max_age: int | None = None
    max_skew: int | None = None


@dataclass(frozen=True)
class Aligned:
    """Holds the samples that belong to one reference time.

    Args:
        stamp: reference time, ns.
        samples: stream name -> T pairs of stamp (ns) and value, oldest first.
    """

    stamp: int
    samples: Mapping[str, tuple[tuple[int, Any], ...]]


class StreamBuffer:
    """Keeps the newest samples of one stream, sorted by stamp; of two with the same stamp the later one stays."""

    def __init__(self, capacity: int = 512) -> None:
        self._capacity = capacity
        self._stamps: list[int] = []
        self._values: list[Any] = []

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """Newest stamp, ns."""
        return self._stamps[-1] if self._stamps else None

    @property
    def oldest(self) -> int | None:
        """Oldest stamp that is still kept, ns."""
        return self._stamps[0] if self._stamps else None

    @property
    def middle(self) -> int | None:
        """Stamp of the sample in the middle, ns."""
        return self._stamps[len(self._stamps) // 2] if self._stamps else None

    def push(self, stamp: int, value: Any) -> list[Any]:
        """Add a sample, which may come late; return the values that had to go for it."""
        index = bisect_left(self._stamps, stamp)
        if index < len(self._stamps) and self._stamps[index] == stamp:
            replaced, self._values[index] = self._values[index], value
            return [replaced]
        self._stamps.insert(index, stamp)
        self._values.insert(index, value)
        if len(self._stamps) <= self._capacity:
            return []
        del self._stamps[0]
        return [self._values.pop(0)]

    def at_or_before(self, stamp: int) -> tuple[int, Any] | None:
        """Return the newest sample that is not newer than ``stamp``."""
        index = bisect_right(self._stamps, stamp) - 1
        return None if index < 0 else (self._stamps[index], self._values[index])

    def after(self, stamp: int) -> int | None:
        """Return the stamp of the first sample that is newer than ``stamp``."""
        index = bisect_right(self._stamps, stamp)
        return None if index == len(self._stamps) else self._stamps[index]

    def forget_before(self, stamp: int) -> list[Any]:
        """Drop what is older than the newest sample at or before ``stamp``; return the values."""
        index = bisect_right(self._stamps, stamp) - 1
        if index <= 0:
            return []
        dropped = self._values[:index]
        del self._stamps[:index], self._values[:index]
        return dropped

    def rate(self) -> float:
        """Rate over the last samples, Hz; 0 with fewer than two."""
        recent = self._stamps[-RATE_SAMPLES:]
        return 0.0 if len(recent) < 2 else (len(recent) - 1) * 1e9 / (recent[-1] - recent[0])

    def clear(self) -> None:
        """Forget every sample."""
        self._stamps.clear()
        self._values.clear()


class Synchroniser:
    """Selects, for a reference time, the newest sample of each stream at or before it.

    The reference time is the oldest of the streams' newest stamps, so what is selected does not change any more, and a
    bag gives the same selection as the live streams did. Earlier observations are selected by the same rule at
    ``reference - k * step``. Nothing is interpolated or filled in.

    Args:
        specs: the streams.
        history: number of observations T.
        step: time between them, ns.
        capacity: samples kept of each stream.
    """

    def __init__(self, specs: Sequence[StreamSpec], history: int = 1, step: int = 0, capacity: int = 512) -> None:
        if not specs or history < 1 or (history > 1 and step <= 0):
            raise ConfigError(f'streams {len(specs)}, history {history}, step {step}: '
                              'give at least one stream, a history of at least 1 and a step above 0 for more')
        self._specs = {spec.name: spec for spec in specs}
        self._history, self._step = history, step
        self._buffers = {spec.name: StreamBuffer(capacity) for spec in specs}

    @classmethod
    def for_contract(cls, contract: RobotContract, capacity: int = 512) -> Synchroniser:
        """Synchronise the cameras and the state of a contract."""
        specs = [StreamSpec(stream.name, round(stream.max_age * 1e9), round(stream.max_skew * 1e9))
                 for stream in contract.streams]
        return cls(specs, contract.history, contract.rates.policy_dt_ns, capacity)

    def push(self, name: str, stamp: int, value: Any) -> None:
        """Add a sample to a stream; values are kept as they are."""
        if name not in self._buffers:
            raise ConfigError(f'no stream {name!r}; {closest(name, self._buffers)}')
        self._buffers[name].push(stamp, value)

    def reference_time(self) -> int:
        """Return the oldest of the newest stamps, ns. Raise `StreamMissing` while a stream is empty."""
        missing = [name for name, buffer in self._buffers.items() if buffer.newest is None]
        if missing:
            raise StreamMissing(f'nothing received on {", ".join(missing)}')
        return min(buffer.newest for buffer in self._buffers.values())

    def first_time(self) -> int:
        """Return the first time at which every stream has a sample, ns, if none was dropped for lack of room."""
        self.reference_time()
        return max(buffer.oldest for buffer in self._buffers.values()) + (self._history - 1) * self._step

    def start_time(self) -> int:
        """Return the first time that every stream has a sample for, ns. Raise `StreamMissing` while one is empty."""
        self.reference_time()
        return max(buffer.oldest for buffer in self._buffers.values())

    def select(self, reference: int | None = None, now: int | None = None) -> Aligned:
        """Select the samples of a reference time.

        Args:
            reference: ns; by default `reference_time`.
            now: present time, ns; given, the newest samples are held against ``max_age``.

        Raises:
            StreamMissing: if a stream has nothing at or before a time that is asked for.
            StreamStale: if a stream's newest sample is too old.
            StreamSkewed: if a selected sample is too far before its time.
        """
        reference = self.reference_time() if reference is None else reference
        if now is not None:
            self._check_ages(now)
        times = [reference - k * self._step for k in reversed(range(self._history))]
        return Aligned(reference, {name: tuple(self._pick(spec, time) for time in times)
                                   for name, spec in self._specs.items()})

    def ages(self, now: int) -> dict[str, float]:
        """Return the age of each stream's newest sample, s; infinity for an empty one."""
        return {name: float('inf') if buffer.newest is None else (now - buffer.newest) / 1e9
                for name, buffer in self._buffers.items()}

    def rates(self) -> dict[str, float]:
        """Return the rate of each stream, Hz."""
        return {name: buffer.rate() for name, buffer in self._buffers.items()}

    def clear(self) -> None:
        """Forget every sample."""
        for buffer in self._buffers.values():
            buffer.clear()

    def _check_ages(self, now: int) -> None:
        for name, spec in self._specs.items():
            newest = self._buffers[name].newest
            if newest is None:
                raise StreamMissing(f'nothing received on {name}')
            if spec.max_age is not None and now - newest > spec.max_age:
                raise StreamStale(f'{name}: newest sample is {(now - newest) / 1e9:.3f} s old, '
                                  f'allowed: {spec.max_age / 1e9:g} s')

    def _pick(self, spec: StreamSpec, time: int) -> tuple[int, Any]:
        found = self._buffers[spec.name].at_or_before(time)
        if found is None:
            raise StreamMissing(f'{spec.name}: no sample at or before {time / 1e9:.3f} s')
        if spec.max_skew is not None and time - found[0] > spec.max_skew:
            raise StreamSkewed(f'{spec.name}: nearest sample lies {(time - found[0]) / 1e9:.3f} s before the reference '
                               f'time, allowed: {spec.max_skew / 1e9:g} s')
        return found
