"""Trajectory messages: the command, and how each joint comes to rest if nothing follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math

import numpy as np
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flow_vla_core.contract import ActionPart, Limits, Trajectory

__all__ = ['TrajectoryEncoder', 'stops']

NANOSECONDS = 10 ** 9
GRID = 1000            # stops last whole milliseconds, so that few points are needed
WITHOUT_LIMIT = 0.25   # s to rest, where the contract has no limit of the acceleration
Numbers = Sequence[float]


class TrajectoryEncoder:
    """Describes commands of one action part to a trajectory controller, in one message that it fills again each time.

    Positions with velocities are followed by an even braking to rest. joint_trajectory_controller joins points that
    have velocities by cubics, which fit an even braking exactly, and refuses a trajectory whose last velocity is not 0
    (always before Humble, by default in later branches). If the next command comes in time, nothing of the stop is
    executed; if it never comes, the robot stands still within its limits.

    Args:
        part: says the kind, the names and the limits; its accelerations are those of the stop.
        reach_in: time in which the controller is to reach each command, ns, unless the part says another.
    """

    def __init__(self, part: ActionPart, reach_in: int) -> None:
        details = part.trajectory or Trajectory()
        self._part, self._stamped = part, details.start == 'stamp'
        self._reach_in = reach_in if details.lead is None else round(details.lead * NANOSECONDS)
        self._message = JointTrajectory(joint_names=list(part.names))
        self._message.header.frame_id = part.frame
        self._points = [JointTrajectoryPoint() for _ in range(part.dim + 1)]

    def encode(self, values: np.ndarray, velocities: np.ndarray | None, stamp: int) -> JointTrajectory:
        """Describe values (n,), with how positions change (n,), None if unknown; valid until the next call.

        Args:
            values: positions or, of the kind ``joint_velocity``, velocities.
            velocities: at these positions, unit/s; left out unless the kind is ``joint_position``.
            stamp: of the command, ns.
        """
        message, positions = self._message, np.asarray(values, np.float64).tolist()
        time = message.header.stamp
        time.sec, time.nanosec = divmod(stamp if self._stamped else 0, NANOSECONDS)
        if self._part.kind == 'joint_velocity':
            message.points = self._fill([(0, (), positions)])
        elif self._part.kind != 'joint_position' or velocities is None:
            message.points = self._fill([(0, positions, ())])
        else:
            speeds = np.asarray(velocities, np.float64).tolist()
            message.points = self._fill([(0, positions, speeds), *stops(self._part.limits, positions, speeds)])
        return message

    def _fill(self, states: list[tuple[int, Numbers, Numbers]]) -> list[JointTrajectoryPoint]:
        for point, (after, positions, velocities) in zip(self._points, states):
            point.positions, point.velocities = positions, velocities
            time = point.time_from_start
            time.sec, time.nanosec = divmod(self._reach_in + after, NANOSECONDS)
        return self._points[:len(states)]


def stops(limits: Limits, values: Numbers, velocities: Numbers) -> Iterator[tuple[int, list[float], list[float]]]:
    r"""Yield, for each time at which a joint comes to rest, that time, ns, and positions and velocities (n,) then.

    A joint at :math:`q` with velocity :math:`v` rests after :math:`T = |v| / a` at :math:`q + v T / 2`.
    """
    # Plain numbers: for so few of them numpy takes three times as long, at every control tick.
    lasts = [_lasts(limits, joint, velocity) for joint, velocity in enumerate(velocities)]
    joints = list(zip(values, velocities, lasts, limits.min, limits.max))
    for time in sorted(set(lasts) - {0.0}):
        reached, speeds = [], []
        for value, velocity, last, low, high in joints:
            slowed = velocity * min(time / last, 1.0) if last else 0.0
            value += (velocity - slowed / 2) * min(time, last)
            reached.append(min(max(value, low), high))
            speeds.append(velocity - slowed if last > time else 0.0)
        yield round(time * NANOSECONDS), reached, speeds


def _lasts(limits: Limits, joint: int, velocity: float) -> float:
    if not velocity:
        return 0.0
    last = abs(velocity) / limits.acceleration[joint] if limits.acceleration else WITHOUT_LIMIT
    return math.ceil(last * GRID) / GRID
