"""What the values of a contract's action vector are called, and how far and how fast they may go."""

from __future__ import annotations

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.execution.limits import RATES
from flow_vla_core.execution.rate_limits import workspace

__all__ = ['axes_of', 'brisk_accelerations', 'largest_rates', 'ranges']

BRISK = 0.8         # of the acceleration: the rest is for following


def axes_of(contract: RobotContract) -> list[str]:
    """Return the names of the values of the action vector, ``PART.NAME``, in order."""
    return [f'{part.name}.{name}' for part in contract.actions for name in part.names]


def largest_rates(contract: RobotContract, travel: float) -> np.ndarray:
    """Return the largest velocities (A,), unit/s; a value without a limit goes from end to end in ``travel``, s."""
    return np.concatenate([_largest(part, travel, contract.rates.policy_dt) for part in contract.actions])


def brisk_accelerations(contract: RobotContract) -> np.ndarray:
    """Return how fast velocities (A,) of positions may change; infinite for those that the executor smooths alone."""
    return np.concatenate([_brisk(part) for part in contract.actions])


def ranges(contract: RobotContract) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends (A,) of what may be commanded: of range, largest velocity and workspace, whatever is nearest."""
    low, high = [], []
    for part in contract.actions:
        limits = part.limits
        ends = workspace(part) if part.kind == 'ee_pose' else np.outer([-np.inf, np.inf], np.ones(part.dim))
        if part.kind in ('ee_twist', 'joint_velocity'):
            ends = np.outer([-1, 1], limits.velocity)
        low.append(ends[0] if limits.min is None else np.maximum(limits.min, ends[0]))
        high.append(ends[1] if limits.max is None else np.minimum(limits.max, ends[1]))
    return np.concatenate(low), np.concatenate(high)


def _brisk(part: ActionPart) -> np.ndarray:
    if part.kind in (*RATES, 'gripper') or part.limits.acceleration is None:
        return np.full(part.dim, np.inf)
    return BRISK * np.array(part.limits.acceleration)


def _largest(part: ActionPart, travel: float, step: float) -> np.ndarray:
    limits = part.limits
    if limits.velocity is not None:
        return np.array(limits.velocity)
    if part.kind == 'ee_delta':
        return np.maximum(np.abs(limits.min), np.abs(limits.max)) / step
    return (np.array(limits.max) - np.array(limits.min)) / travel
