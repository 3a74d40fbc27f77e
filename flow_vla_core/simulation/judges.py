"""Tells which of two motions was made in a scene that two tasks share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ['FAUCET_PAIR', 'SUCCESS_DISTANCE', 'faucet_distances', 'faucet_motion']

FAUCET_PAIR = ('faucet-open', 'faucet-close')
SUCCESS_DISTANCE = 0.07  # m, as in metaworld/envs/sawyer_faucet_{open,close}_v3.py
# Task -> the handle's site that the criterion looks at, what it adds to it, and the goal from the faucet's base (m).
CRITERIA: Mapping[str, tuple[str, tuple, tuple]] = {
    'faucet-open': ('handleStartOpen', (-0.04, 0.0, 0.02), (0.175, 0.0, 0.125)),
    'faucet-close': ('handleStartClose', (0.0, 0.0, -0.01), (-0.175, 0.0, 0.125)),
}


def faucet_distances(env: object) -> dict[str, float]:
    """Measure how far the handle is from each task's goal, m, as Meta-World's two criteria do.

    Both environments load the same model, so either criterion can be asked in either one.

    Args:
        env: Meta-World's environment of faucet-open or faucet-close.
    """
    base = np.asarray(env.obj_init_pos)
    return {task: float(np.linalg.norm(env.data.site(site).xpos + offset - (base + goal)))
            for task, (site, offset, goal) in CRITERIA.items()}


def faucet_motion(env: object) -> str:
    """Name the task whose criterion the faucet meets now; empty when it meets neither."""
    distances = faucet_distances(env)
    return next((task for task, distance in distances.items() if distance <= SUCCESS_DISTANCE), '')
