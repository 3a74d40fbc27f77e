"""What the robot did: when nothing moved, how large commands and their steps were, how values are distributed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flow_vla_core.contract import ActionPart

__all__ = ['BINS', 'Distribution', 'bounds_of', 'distribute', 'idle_spans', 'is_rate', 'steps_beyond', 'still']

BINS = 40
MARGIN = 0.05      # of the range, shown beyond the limits
WINDOW = 0.25      # s over which a value has to stay the same
SMALL = 0.01       # of the range, that a value which stays the same may move meanwhile
FLOOR = 1e-3       # least of that, in the value's unit
LONG = 0.5         # s without motion that are worth speaking of
RATES = ('ee_twist', 'joint_velocity', 'ee_delta')


@dataclass(frozen=True)
class Distribution:
    """Describes the values of one dimension.

    Args:
        name: of the dimension, ``part.name``.
        unit: of the values.
        low: lower bound by the contract, or smallest value.
        high: upper bound.
        count: finite values.
        smallest: of them.
        largest: of them.
        mean: of them.
        deviation: standard deviation.
        largest_step: largest change between two in a row.
        bins: (BINS,) counts between ``low`` and ``high`` and 5 % beyond; what lies outside is in the first and last.
    """

    name: str
    unit: str
    low: float
    high: float
    count: int
    smallest: float
    largest: float
    mean: float
    deviation: float
    largest_step: float
    bins: tuple[int, ...]


def is_rate(part: ActionPart) -> bool:
    """Say whether the commands of a part are rates, which rest at zero."""
    return part.kind in RATES


def bounds_of(part: ActionPart) -> np.ndarray:
    """Return (2, D) lowest and highest command; infinite where the contract sets no bound."""
    limits = part.limits
    if limits.min is not None:
        low, high = np.array(limits.min), np.array(limits.max)
    else:
        low, high = np.full(part.dim, -np.inf), np.full(part.dim, np.inf)
    if part.kind in ('ee_twist', 'joint_velocity'):
        low, high = np.maximum(low, -np.array(limits.velocity)), np.minimum(high, np.array(limits.velocity))
    return np.stack([low, high])


def steps_beyond(part: ActionPart, stamps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (N - 1, D) steps of sorted commands as a multiple of what the limits allow in the time between them."""
    bound = part.limits.acceleration if is_rate(part) else part.limits.velocity
    if bound is None or len(values) < 2:
        return np.zeros((max(len(values) - 1, 0), part.dim))
    time = np.maximum(np.diff(stamps) / 1e9, 1e-9)
    with np.errstate(invalid='ignore'):
        steps = np.abs(np.diff(values, axis=0))
    return np.where(np.isfinite(steps), steps, 0.0) / (np.array(bound) * time[:, None])


def distribute(name: str, unit: str, values: np.ndarray, low: float, high: float) -> Distribution:
    """Describe (N,) values; those that are not finite are left out."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Distribution(name, unit, low, high, 0, *(float('nan'),) * 5, (0,) * BINS)
    low = float(low if np.isfinite(low) else finite.min())
    high = float(high if np.isfinite(high) else finite.max())
    beyond = MARGIN * (high - low) or 1e-6
    edges = np.linspace(low - beyond, high + beyond, BINS + 1)
    counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)
    step = float(np.abs(np.diff(finite)).max()) if len(finite) > 1 else 0.0
    return Distribution(name, unit, low, high, len(finite), float(finite.min()), float(finite.max()),
                        float(finite.mean()), float(finite.std()), step, tuple(int(count) for count in counts))


def still(stamps: np.ndarray, values: np.ndarray, grid: np.ndarray, rates: bool = False) -> np.ndarray:
    """Say at which of (G,) grid times (N, D) values stay as they are over a window, (G,) bool.

    Args:
        stamps: (N,) sorted, ns.
        values: (N, D).
        grid: times, ns.
        rates: whether the values are rates, which stay when they are almost zero.
    """
    finite = np.isfinite(values).all(1)
    stamps, values = stamps[finite], values[finite]
    if not len(values):
        return np.ones(len(grid), bool)
    span = values.max(0) - values.min(0)
    allowed = np.maximum(SMALL * span, FLOOR)
    before, after = (_at(stamps, values, grid + shift) for shift in (-round(WINDOW * 5e8), round(WINDOW * 5e8)))
    change = np.abs(_at(stamps, values, grid)) if rates else np.abs(after - before)
    return np.all(change <= allowed, 1)


def idle_spans(idle: np.ndarray, grid: np.ndarray) -> list[tuple[int, int]]:
    """Return the stretches of at least half a second in which (G,) ``idle`` holds, as pairs of times, ns."""
    edges = np.flatnonzero(np.diff(np.r_[False, idle, False].astype(np.int8)))
    spans = [(int(grid[first]), int(grid[last - 1])) for first, last in zip(edges[::2], edges[1::2])]
    return [(first, last) for first, last in spans if last - first >= LONG * 1e9]


def _at(stamps: np.ndarray, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the newest values at or before some times; the first ones before all of them."""
    return values[np.maximum(np.searchsorted(stamps, times, 'right') - 1, 0)]
