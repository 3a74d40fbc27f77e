"""The learning rate as a function of the step."""

from __future__ import annotations

import math

__all__ = ['warm_up_cosine']


def warm_up_cosine(step: int, steps: int, warm_up: int, final: float) -> float:
    """Return the factor of the learning rate: a line up to 1, then half a cosine down to ``final``.

    Args:
        step: from 0 to ``steps``.
        steps: length of the training.
        warm_up: length of the line.
        final: factor at the end.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    progress = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
