"""Finds out before an episode is recorded what would spoil it: silent or slow topics, clocks apart, a full disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
import shutil
import tempfile

from flow_vla_core.data.topic_meter import TopicMeter
from flow_vla_core.errors import Code, ConfigError, DiskFull, RecordError
from flow_vla_ros.topic_taps import TopicTaps

__all__ = ['Disk', 'Preflight', 'least_rates']

RATE_SHARE = 0.8        # of its expected rate that a topic has to reach
SILENT_SECONDS = 1.0    # or three periods, whichever is longer: after that a topic counts as silent
FORESEEN_SECONDS = 60.0
MEGABYTE = 2 ** 20


@dataclass(frozen=True)
class Disk:
    """Is where episodes are written.

    Args:
        folder: of the episodes.
        min_free_mb: free space that has to remain.
    """

    folder: Path
    min_free_mb: int

    @property
    def free(self) -> int:
        """Bytes that are free."""
        existing = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        return shutil.disk_usage(existing).free

    def seconds_left(self, bytes_per_second: float) -> float:
        """Return how long the disk lasts at a rate, s; -1 at none."""
        return self.free / bytes_per_second if bytes_per_second > 0 else -1.0

    def complaints(self, bytes_per_second: float) -> Iterator[RecordError]:
        """Yield why an episode should not be begun: no room for a minute of it, or a folder that can't be written."""
        needed = self.min_free_mb + FORESEEN_SECONDS * bytes_per_second / MEGABYTE
        free = self.free // MEGABYTE
        if free < needed:
            why = '' if free < self.min_free_mb else f', for a minute at {bytes_per_second / 1e6:.1f} MB/s'
            allowed = self.min_free_mb if free < self.min_free_mb else round(needed)
            yield DiskFull(f'{self.folder}: {free} MB free, allowed: {allowed} or more{why}')
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            yield RecordError(f'{self.folder}: {error.strerror}', Code.WRITE_FAILED)


@dataclass(frozen=True)
class Preflight:
    """Judges the topics of a recorder.

    Args:
        taps: its subscriptions.
        required: topics that somebody has to publish.
        rates: topic -> least rate, Hz; its messages have to come already.
        clocked: topics whose stamps are compared with the clock and with each other.
        clock_tolerance: largest distance of a stamp from this machine's clock at receipt, s.
        skew_tolerance: largest difference between the delays of two topics, s.
    """

    taps: TopicTaps
    required: tuple[str, ...]
    rates: Mapping[str, float]
    clocked: tuple[str, ...]
    clock_tolerance: float
    skew_tolerance: float

    def missing(self) -> Iterator[RecordError]:
        """Yield the topics that nobody publishes, as one complaint."""
        absent = [topic for topic in self.required if not self.taps.has_publisher(topic)]
        if absent:
            yield RecordError(f'nobody publishes {", ".join(absent)}', Code.TOPIC_MISSING)

    def complaints(self) -> Iterator[RecordError]:
        """Yield everything that speaks against recording now, the worst first."""
        yield from self.missing()
        present = [topic for topic in self.rates if self.taps.has_publisher(topic)]
        unheard = [topic for topic in present if self._meter(topic).rate == 0]
        if unheard:
            yield RecordError(f'nothing has come yet on {", ".join(unheard)}', Code.TOPIC_MISSING)
        slow = [told for topic in present if topic not in unheard and (told := self._slow(topic))]
        if slow:
            yield RecordError('; '.join(slow), Code.TOPIC_SLOW)
        skewed = [*self._off_clock(), *self._apart()]
        if skewed:
            yield RecordError('; '.join(skewed), Code.CLOCK_SKEWED)

    def _meter(self, topic: str) -> TopicMeter:
        return self.taps.meters[topic]

    def _slow(self, topic: str) -> str:
        meter, least = self._meter(topic), self.rates[topic]
        if meter.age > max(SILENT_SECONDS, 3 / least):
            return f'{topic} has been silent for {meter.age:.1f} s'
        if meter.rate < RATE_SHARE * least:
            return f'{topic} comes at {meter.rate:.1f} Hz, expected: {least:g} or more'
        return ''

    def _off_clock(self) -> Iterator[str]:
        for topic, delay in self._delays().items():
            if abs(delay) > self.clock_tolerance:
                side = 'behind' if delay > 0 else 'ahead of'
                yield (f'{topic} is stamped {abs(delay):.3f} s {side} the clock of this machine, '
                       f'allowed: {self.clock_tolerance:g}')

    def _apart(self) -> Iterator[str]:
        delays = self._delays()
        if not delays:
            return
        first, last = min(delays, key=delays.get), max(delays, key=delays.get)
        apart = delays[last] - delays[first]
        if apart > self.skew_tolerance:
            yield (f'{last} comes {apart:.3f} s later after its stamp than {first}, allowed: {self.skew_tolerance:g}')

    def _delays(self) -> dict[str, float]:
        found = {topic: self._meter(topic).delay for topic in self.clocked}
        return {topic: delay for topic, delay in found.items() if delay is not None}


def least_rates(lines: list[str], resolve: object) -> dict[str, float]:
    """Read the parameter ``least_rates``: lines of "topic Hz".

    Args:
        lines: of the parameter.
        resolve: gives a topic its namespace.

    Raises:
        ConfigError: if a line is none of that.
    """
    rates: dict[str, float] = {}
    for line in filter(None, lines):
        topic, _, number = line.strip().rpartition(' ')
        try:
            rates[resolve(topic.strip())] = float(number)
        except ValueError:
            topic = ''
        if not topic or rates[resolve(topic.strip())] < 0:
            raise ConfigError(f'least_rates: {line!r}: write "topic Hz", such as "joint_states 200"')
    return rates
