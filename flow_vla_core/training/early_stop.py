"""When a training has stopped to become better."""

from __future__ import annotations

from collections.abc import Sequence
import math

from flow_vla_core.training.report import Point

__all__ = ['best_of', 'validations_since_best']


def best_of(points: Sequence[Point], metric: str) -> Point | None:
    """Return the first of the points with the lowest figure; None before the first that is a number.

    Example:
        >>> points = [Point(1, {'chunk_error': 0.3}), Point(2, {'chunk_error': 0.2}), Point(3, {'loss': 0.1})]
        >>> best_of(points, 'chunk_error').step
        2
    """
    found = [point for point in points if math.isfinite(point.values.get(metric, math.nan))]
    return min(found, key=lambda point: point.values[metric], default=None)


def validations_since_best(points: Sequence[Point], metric: str) -> int:
    """Count the validations after the best one.

    Example:
        >>> validations_since_best([Point(1, {'chunk_error': 0.3}), Point(2, {'chunk_error': 0.4})], 'chunk_error')
        1
    """
    best = best_of(points, metric)
    return sum(metric in point.values and (best is None or point.step > best.step) for point in points)
