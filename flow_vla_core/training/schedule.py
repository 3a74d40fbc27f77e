"""The learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math

__all__ = ['SCHEDULES', 'constant', 'cosine', 'one_cycle']

BEGIN = 1 / 25  # of one cycle, as a share of the highest rate


def cosine(step: int, steps: int, warm_up: int, final: float) -> float:
    """Return the factor of the learning rate: a line up to 1, then half a cosine down to ``final``.

    Args:
        step: from 0 to ``steps``.
        steps: length of the training.
        warm_up: length of the line.
        final: factor at the end.

    Example:
        >>> [cosine(step, 4, 2, 0.5) for step in range(5)]
        [0.5, 1.0, 1.0, 0.75, 0.5]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    return _between(1, final, step - warm_up, steps - warm_up)


def one_cycle(step: int, steps: int, warm_up: int, final: float) -> float:
    """Return the factor of the learning rate: half a cosine up from 1 / 25 to 1, then one down to ``final``.

    Smith and Topin, arXiv 1708.07120; of its two cycles this is the rate's, the momentum stays.

    Args:
        step: from 0 to ``steps``.
        steps: length of the training.
        warm_up: length of the way up; the paper takes 30 to 45 % of the training.
        final: factor at the end.

    Example:
        >>> [round(one_cycle(step, 4, 2, 0), 2) for step in range(5)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if step < warm_up:
        return _between(BEGIN, 1, step, warm_up)
    return _between(1, final, step - warm_up, steps - warm_up)


def constant(step: int, steps: int, warm_up: int, final: float) -> float:
    """Return the factor of the learning rate: a line up to 1, which it keeps.

    Args:
        step: from 0 to ``steps``.
        steps: length of the training, which changes nothing.
        warm_up: length of the line.
        final: changes nothing.

    Example:
        >>> [constant(step, 4, 2, 0) for step in range(5)]
        [0.5, 1.0, 1, 1, 1]
    """
    return (step + 1) / warm_up if step < warm_up else 1


SCHEDULES: Mapping[str, Callable[[int, int, int, float], float]] = {
    'cosine': cosine, 'one_cycle': one_cycle, 'constant': constant}


def _between(first: float, last: float, step: int, steps: int) -> float:
    """Go from one factor to another by half a cosine, and stay there."""
    progress = min(1.0, step / max(1, steps))
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
