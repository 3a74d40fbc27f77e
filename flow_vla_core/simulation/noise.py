"""Disturbances of a simulated robot, so that demonstrations show recoveries."""

from __future__ import annotations

import numpy as np

__all__ = ['ExecutionNoise']


class ExecutionNoise:
    """Disturbs what a robot executes while the recorded command stays the expert's (DART, arXiv 1703.09327).

    Each episode draws its own standard deviation uniformly from [0, std]; in a share of the episodes the motion
    is also overridden now and then by a short push into a random direction.

    Args:
        std: largest standard deviation of the Gaussian noise, as a share of the action's range.
        push_rate: probability per step that a push of 3 to 8 steps begins, in the episodes that have pushes.
        push_share: share of the episodes that have pushes.
    """

    def __init__(self, std: float = 0.3, push_rate: float = 0.03, push_share: float = 0.6) -> None:
        self.std, self.push_rate, self.push_share = std, push_rate, push_share
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Draw the disturbances of one episode."""
        self._random = np.random.default_rng([seed, 0x6e6f6973])
        self._episode_std = self._random.uniform(0, self.std)
        self._has_pushes = self.std > 0 and self._random.random() < self.push_share
        self._left, self._push = 0, np.zeros(3)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the disturbed action (A,); its first values are a motion in [-1, 1], its last one is the gripper."""
        if self.std == 0:
            return action
        disturbed = action + self._random.normal(0, self._episode_std, action.shape) * [*np.ones(len(action) - 1), 0.3]
        if self._left == 0 and self._has_pushes and self._random.random() < self.push_rate:
            self._left, self._push = int(self._random.integers(3, 9)), self._random.uniform(-1, 1, 3)
        if self._left > 0:
            self._left -= 1
            disturbed[:3] = self._push
        return disturbed
