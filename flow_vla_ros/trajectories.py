"""The points of a trajectory message: the command, and how each joint comes to rest if nothing follows."""

from __future__ import annotations

import array
from collections.abc import Iterator

from builtin_interfaces.msg import Duration
import numpy as np
from trajectory_msgs.msg import JointTrajectoryPoint

from flow_vla_core.contract import Limits

__all__ = ['points_with_stop', 'stops']

NANOSECONDS = 10 ** 9
GRID = 1000            # stops last whole milliseconds, so that few points are needed
WITHOUT_LIMIT = 0.25   # s to rest, where the contract has no limit of the acceleration


def points_with_stop(limits: Limits, values: np.ndarray, velocities: np.ndarray | None,
                     reach_in: int) -> list[JointTrajectoryPoint]:
    r"""Describe positions to be reached with velocities, and then an even braking to rest.

    joint_trajectory_controller joins points that have velocities by cubics, which fit an even braking exactly, and
    refuses a trajectory whose last velocity is not 0 (always before Humble, by default in later branches). If the next
    command comes in time, nothing of the stop is executed; if it never comes, the robot stands still within its limits.

    Args:
        limits: of the part; its accelerations are those of the stop.
        values: (n,) positions.
        velocities: (n,) at these positions, unit/s; None for positions alone.
        reach_in: time from the trajectory's start to the positions, ns.
    """
    if velocities is None:
        return [_point(reach_in, values, None)]
    later = (_point(reach_in + after, *rest) for after, *rest in stops(limits, values, velocities))
    return [_point(reach_in, values, velocities), *later]


def stops(limits: Limits, values: np.ndarray, velocities: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    r"""Yield, for each time at which a joint comes to rest, that time, ns, and positions and velocities (n,) then.

    A joint at :math:`q` with velocity :math:`v` rests after :math:`T = |v| / a` at :math:`q + v T / 2`.
    """
    values, velocities = np.asarray(values, np.float64), np.asarray(velocities, np.float64)
    lasts = np.abs(velocities) / limits.acceleration if limits.acceleration else WITHOUT_LIMIT * (velocities != 0)
    lasts = np.ceil(lasts * GRID) / GRID
    slowing = np.divide(velocities, lasts, out=np.zeros_like(velocities), where=lasts > 0)
    times = np.array(sorted({last for last in lasts.tolist() if last > 0})).reshape(-1, 1)
    passed = np.minimum(times, lasts)
    reached = values + (velocities - slowing * passed / 2) * passed
    speeds = np.where(lasts > times, velocities - slowing * passed, 0)
    yield from zip((round(time * NANOSECONDS) for time in times[:, 0].tolist()),
                   np.clip(reached, limits.min, limits.max), speeds)


def _point(after: int, positions: np.ndarray, velocities: np.ndarray | None) -> JointTrajectoryPoint:
    point = JointTrajectoryPoint(positions=_floats(positions), time_from_start=Duration(
        sec=after // NANOSECONDS, nanosec=after % NANOSECONDS))
    if velocities is not None:
        point.velocities = _floats(velocities)
    return point


def _floats(values: np.ndarray) -> array.array:
    return array.array('d', values.astype(np.float64, copy=False).tobytes())
