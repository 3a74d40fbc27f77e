"""What was commanded tick by tick, which plan it came from, and how much jerk is where plans meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.execution import ChunkFollower, Command
from flow_vla_core.types import ActionChunk

__all__ = ['CommandTrace', 'Commands', 'JerkFigures', 'without_limits']

FAR = 1e9  # a bound that bounds nothing
ORDERS = {'joint_position': 3, 'ee_pose': 3, 'joint_velocity': 2, 'ee_twist': 2, 'ee_delta': 2, 'gripper': 0}


@dataclass(frozen=True)
class JerkFigures:
    """Sums up the jerk of many ticks and axes, unit/s^3.

    Args:
        maximum: largest.
        p99: 99th percentile.
        mean: of the absolute values.
        count: how many.
    """

    maximum: float
    p99: float
    mean: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> JerkFigures | None:
        """Sum up absolute values (N,); None when there is none.

        Example:
            >>> JerkFigures.of([1.0, 2.0, 3.0]).mean
            2.0
        """
        if not len(values):
            return None
        values = np.asarray(values, float)
        return cls(float(values.max()), float(np.percentile(values, 99)), float(values.mean()), len(values))


@dataclass(frozen=True)
class Commands:
    r"""Holds the commands of one episode.

    Jerk is judged by finite differences of what was commanded, T being the control period: the third difference over
    :math:`T^3` of positions, the second over :math:`T^2` of velocities; of a displacement, that of the velocity it
    means. Grippers and rotations are not judged.

    Args:
        period: of control, s.
        names: of the A values.
        units: of them.
        orders: (A,) order of the difference that is the jerk, 0 for what is not judged.
        scales: (A,) what a value has to be multiplied by to be a position or a velocity.
        settle: control ticks after a change of plans that still belong to it.
        published: (K, A) after limits.
        planned: (K, A) what the plan says, before limits.
        chunks: (K,) number of the plan in force, 0 for none.
    """

    period: float
    names: tuple[str, ...]
    units: tuple[str, ...]
    orders: np.ndarray
    scales: np.ndarray
    settle: int
    published: np.ndarray
    planned: np.ndarray
    chunks: np.ndarray

    def jerk(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the absolute jerk inside plans (N,) and where they meet (M,), of all judged axes together.

        A difference that touches commands of two plans, or of a plan and of the waiting for it, belongs to their
        meeting, and so do the ``settle`` that follow. What comes before the first plan is left out.

        Args:
            values: (K, A) published or planned.
        """
        first = int(np.argmax(self.chunks > 0)) if (self.chunks > 0).any() else len(self.chunks)
        inside, meeting = [np.empty(0)], [np.empty(0)]
        for axis in np.flatnonzero(self.orders):
            order = int(self.orders[axis])
            differences = np.abs(np.diff(self.scales[axis] * values[first:, axis].astype(float), order))
            across = _across(self.chunks[first:], order, self.settle)
            inside.append(differences[~across] / self.period ** order)
            meeting.append(differences[across] / self.period ** order)
        return np.concatenate(inside), np.concatenate(meeting)

    @property
    def changes(self) -> np.ndarray:
        """Ticks at which another plan, or none, came into force."""
        return np.flatnonzero(np.diff(self.chunks)) + 1


class CommandTrace:
    """Keeps the commands of an episode, and beside each of them what the plan said before limits.

    The latter is what a second follower commands that hears the same plans but knows no limits.

    Args:
        contract: of the robot.
        period: of control, s.
    """

    def __init__(self, contract: RobotContract, period: float) -> None:
        self._contract, self._period = contract, period
        parts = contract.actions
        self._names = tuple(name if part.dim > 1 else part.name for part in parts for name in part.names)
        self._units = tuple(part.unit for part in parts for _ in part.names)
        self._orders = np.array([_order(part, name) for part in parts for name in part.names])
        scale = {'ee_delta': 1 / contract.rates.policy_dt}
        self._scales = np.array([scale.get(part.kind, 1.0) for part in parts for _ in part.names])

    def begin(self, make_follower: Callable[[RobotContract], ChunkFollower]) -> None:
        """Forget what was; the follower that is made is asked for what plans say before limits."""
        self._unlimited = make_follower(without_limits(self._contract))
        self._published: list[np.ndarray] = []
        self._planned: list[np.ndarray] = []
        self._chunks: list[int] = []

    def accept(self, chunk: ActionChunk, now: int) -> None:
        """Hear of a plan that is in force from a time on, ns."""
        self._unlimited.accept(chunk, now)

    def add(self, now: int, command: Command, measured: Mapping[str, np.ndarray]) -> None:
        """Hear of a command, and of the state that it was computed with."""
        self._published.append(command.values)
        self._planned.append(self._unlimited.command(now, measured).values)
        self._chunks.append(command.chunk_id)

    @property
    def commands(self) -> Commands:
        """All that was heard since `begin`."""
        shape = (-1, self._contract.action_dim)
        settle = round(self._contract.rates.policy_dt / self._period) - 1
        return Commands(self._period, self._names, self._units, self._orders, self._scales, settle,
                        np.reshape(self._published, shape), np.reshape(self._planned, shape),
                        np.array(self._chunks, int))


def without_limits(contract: RobotContract) -> RobotContract:
    """Return a contract that bounds nothing but grippers, for the same robot.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> free = without_limits(RobotContract.load(find_contract('metaworld')))
        >>> free.actions[0].limits.acceleration, free.actions[0].limits.workspace_min
        (None, None)
    """
    parts = tuple(part if part.kind == 'gripper' else _without_limits(part) for part in contract.actions)
    return contract.model_copy(update={'actions': parts})


def _without_limits(part: ActionPart) -> ActionPart:
    far = (FAR,) * part.dim
    velocities = part.kind in ('ee_twist', 'joint_velocity')
    bounds = {'velocity': far} if velocities else {'min': tuple(-value for value in far), 'max': far}
    nothing = dict.fromkeys(type(part.limits).model_fields)
    return part.model_copy(update={'limits': part.limits.model_copy(update={**nothing, **bounds})})


def _order(part: ActionPart, name: str) -> int:
    is_rotation = part.kind.startswith('ee_') and name.startswith('r')
    return 0 if is_rotation else ORDERS[part.kind]


def _across(chunks: np.ndarray, order: int, settle: int) -> np.ndarray:
    """Tell for each difference of (K,) ticks whether it belongs to a change of plans: (K - order,)."""
    across = np.zeros(max(0, len(chunks) - order), bool)
    for change in np.flatnonzero(np.diff(chunks)) + 1:
        across[max(0, change - order):change + settle] = True
    return across
