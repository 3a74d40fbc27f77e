"""Rates, gaps, drops, delay and order of one topic, out of its times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flow_vla_core.data.inspection.scan import TopicScan

__all__ = ['Gap', 'Timing', 'measure', 'runs_of']

PERIODIC = 8       # messages without which no period is estimated
REGULAR = 2.0      # nine of ten intervals of a periodic topic are below this many periods
PAUSE = 3.0        # periods after which silence is a gap
FAR = 1.0          # s
LATE = 5           # messages in a row that may lie behind a later one and still have only been overtaken


@dataclass(frozen=True)
class Gap:
    """Is a pause of a stream; begins ``start`` ns and lasts ``length`` s."""

    start: int
    length: float


@dataclass(frozen=True)
class Timing:
    """Describes the times of a topic.

    Args:
        count: messages N.
        rate: of the periods between first and last, Hz; 0 for fewer than two.
        period: median time between two messages, s; 0 for a topic that is not periodic.
        jitter: standard deviation of that time without the gaps, s.
        gaps: pauses of more than three periods, by stamp.
        drops: single messages that are missing in intervals of less than a gap, estimated from the period.
        zeros: headers without a stamp.
        repeated: stamps that another message before had.
        overtaken: messages that a later one overtook.
        jumps: times at which stamps jumped back and stayed there.
        delay: (minimum, median, 95 % quantile, maximum) of receipt minus stamp, s; None without stamps.
    """

    count: int
    rate: float = 0.0
    period: float = 0.0
    jitter: float = 0.0
    gaps: tuple[Gap, ...] = ()
    drops: int = 0
    zeros: int = 0
    repeated: int = 0
    overtaken: int = 0
    jumps: int = 0
    delay: tuple[float, float, float, float] | None = None


def measure(topic: TopicScan) -> Timing:
    """Measure a topic; by its stamps where it has trustworthy ones, by the times of receipt otherwise."""
    if not len(topic):
        return Timing(0)
    if topic.stamps is None:
        return _regularity(np.sort(topic.log), len(topic))
    real = topic.stamps != 0
    zeros = int((~real).sum())
    stamps, delay = topic.stamps[real], (topic.log[real] - topic.stamps[real]) / 1e9
    if not len(stamps):
        return _regularity(np.sort(topic.log), len(topic), zeros=zeros)
    quantiles = tuple(float(value) for value in np.quantile(delay, (0, 0.5, 0.95, 1)))
    sound = ~_stray(delay)
    overtaken, jumps = _order(stamps[sound])
    repeated = len(stamps[sound]) - len(np.unique(stamps[sound]))
    times = stamps if sound.all() and not zeros else topic.log
    return _regularity(times if jumps else np.sort(times), len(topic), zeros=zeros, repeated=repeated,
                       overtaken=overtaken, jumps=jumps, delay=quantiles)


def runs_of(timing: Timing, times: np.ndarray) -> list[tuple[int, int]]:
    """Return the stretches of (N,) sorted times without a gap, as pairs of first and last time, ns."""
    if not len(times):
        return []
    if not timing.period:
        return [(int(time), int(time)) for time in times]
    breaks = np.flatnonzero(np.diff(times) > PAUSE * timing.period * 1e9)
    firsts, lasts = np.r_[0, breaks + 1], np.r_[breaks, len(times) - 1]
    return [(int(times[first]), int(times[last])) for first, last in zip(firsts, lasts)]


def _order(stamps: np.ndarray) -> tuple[int, int]:
    """Return how many stamps were overtaken, and how often they jumped back to stay."""
    runs = _runs(stamps < np.maximum.accumulate(stamps))
    return sum(len(run) for run in runs if len(run) <= LATE), sum(len(run) > LATE for run in runs)


def _stray(delay: np.ndarray) -> np.ndarray:
    """Say which of (N,) delays are far from the others for a moment only, (N,) bool: their stamps are just wrong."""
    far = np.abs(delay - np.median(delay)) > FAR
    for run in _runs(far):
        far[run] = len(run) <= LATE
    return far


def _runs(flags: np.ndarray) -> list[np.ndarray]:
    """Return the places of (N,) flags that are set, those in a row together."""
    places = np.flatnonzero(flags)
    return np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []


def _regularity(times: np.ndarray, count: int, **told: object) -> Timing:
    steps = np.diff(times)
    steps = steps[steps > 0] if len(steps) else steps
    if not len(steps):
        return Timing(count, **told)
    seconds = steps / 1e9
    rate = len(steps) / float(seconds.sum())
    period = float(np.median(seconds))
    if len(steps) < PERIODIC - 1 or np.quantile(seconds, 0.9) > REGULAR * period:
        return Timing(count, rate, **told)
    long = seconds > PAUSE * period
    between = seconds[~long]
    starts = times[:-1][np.diff(times) > 0]
    gaps = tuple(Gap(int(start), float(length)) for start, length in zip(starts[long], seconds[long]))
    drops = int(np.maximum(np.round(between / period) - 1, 0).sum())
    return Timing(count, rate, period, float(between.std()), gaps, drops, **told)
