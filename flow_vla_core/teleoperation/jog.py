"""Deflections of sticks and keys as chunks of actions."""

from __future__ import annotations

from collections.abc import Mapping
import math

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import StreamMissing
from flow_vla_core.execution import rotations
from flow_vla_core.execution.interpolation import rotation_of
from flow_vla_core.execution.limits import RATES
from flow_vla_core.teleoperation.axes import axes_of, brisk_accelerations, largest_rates, ranges
from flow_vla_core.teleoperation.chunks import ChunkSeries
from flow_vla_core.teleoperation.settings import JogSettings, check_axes
from flow_vla_core.types import ActionChunk

__all__ = ['Jog', 'ramp', 'shape']

FASTER, SLOWEST = 1.25, 0.02


class Jog:
    """Turns named deflections in [-1, 1] into chunks that the executor can follow.

    Velocities (``ee_twist``, ``joint_velocity``, and ``ee_delta`` as the displacement that they mean in a step) follow
    the deflection. Positions (``joint_position``, ``ee_pose``, ``gripper``) are integrated from where `start` found
    them, with a velocity that changes within the contract's acceleration, and stay near the robot: whatever holds it
    back, they lead what was measured and what was commanded by no more than ``leash`` allows. A gripper is exempt, as
    closing on something is what it is for. Rotation vectors turn about the axes of the base.

    Args:
        contract: says the parts, their limits and the step.
        settings: speed, dead zone, curve, leash.

    Raises:
        ConfigError: if the settings name an axis that the contract lacks.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> jog = Jog(RobotContract.load(find_contract('metaworld')), JogSettings(speed=0.5))
        >>> jog.start(np.array([np.nan, np.nan, np.nan, -1.0]))
        >>> chunk = jog.chunk({'ee.x': 1.0}, now=0)
        >>> chunk.actions[0].tolist(), chunk.horizon
        ([0.10000000149011612, 0.0, 0.0, -1.0], 4)
    """

    def __init__(self, contract: RobotContract, settings: JogSettings | None = None) -> None:
        self._settings = settings = settings or JogSettings()
        self.axes = axes_of(contract)
        check_axes((initial.axis for initial in settings.initial), self.axes, 'jog.initial')
        self._series = ChunkSeries(contract, settings.reach)
        self.speed = settings.speed
        self._top = largest_rates(contract, settings.travel)
        self._acceleration = brisk_accelerations(contract)
        kinds = np.concatenate([[part.kind] * part.dim for part in contract.actions])
        self._rates, self._grippers = np.isin(kinds, RATES), kinds == 'gripper'
        self._low, self._high = ranges(contract)
        self._steps = np.where(kinds == 'ee_delta', self._series.step, 1.0)
        places = zip(contract.actions, contract.action_slices.values())
        self._turns = [place.start + turn for part, place in places if (turn := rotation_of(part)) is not None]
        self.stop()

    @property
    def started(self) -> bool:
        """Whether it knows where the robot is."""
        return self._goal is not None

    @property
    def moving(self) -> bool:
        """Whether the last chunk did not ask for rest."""
        return self.started and bool(self._rate.any())

    def faster(self, up: bool = True) -> float:
        """Raise or lower the speed by a quarter; return it."""
        self.speed = float(np.clip(self.speed * (FASTER if up else 1 / FASTER), SLOWEST, 1.0))
        return self.speed

    def start(self, values: np.ndarray, rates: np.ndarray | None = None) -> None:
        """Begin at the robot's values (A,) and their velocities (A,); NaN where nothing is known.

        Raises:
            StreamMissing: if a position is not known and has no initial value.
        """
        goal = np.where(self._rates, 0.0, values)
        for initial in self._settings.initial:
            place = self.axes.index(initial.axis)
            goal[place] = initial.value if np.isnan(goal[place]) else goal[place]
        if np.isnan(goal).any():
            name = self.axes[int(np.flatnonzero(np.isnan(goal))[0])]
            raise StreamMissing(f'where {name} is has neither been commanded nor measured yet')
        self._goal = np.clip(goal, self._low, self._high)
        self._rate = np.zeros(len(goal)) if rates is None else np.where(np.isfinite(rates), rates, 0.0)
        self._rate[self._rates | self._grippers] = 0
        self._series.begin_anew()

    def stop(self) -> None:
        """Forget where the robot is: `start` comes next."""
        self._goal: np.ndarray | None = None
        self._rate = np.zeros(len(self.axes))

    def chunk(self, deflections: Mapping[str, float], now: int, measured: np.ndarray | None = None,
              commanded: np.ndarray | None = None) -> ActionChunk:
        """Make the chunk for a time, ns.

        Args:
            deflections: axis -> -1 to 1; none for those left out.
            now: ROS time; the stamp.
            measured: (A,) positions, NaN where unknown.
            commanded: (A,) last commands, NaN where unknown.
        """
        wish = self._wish(deflections)
        way, self._rate = ramp(self._rate, wish, self._acceleration, self._series.elapsed(now))
        self._goal = self._moved(self._goal, way)
        for reference in (measured, commanded):
            if reference is not None:
                self._goal = self._leashed(self._goal, reference)
        rows = [self._moved(self._goal, ramp(self._rate, wish, self._acceleration, step * self._series.step)[0])
                for step in range(self._series.horizon)]
        actions = np.where(self._rates, wish * self._steps, np.stack(rows))
        return self._series.make(now, np.clip(actions, self._low, self._high))

    def _wish(self, deflections: Mapping[str, float]) -> np.ndarray:
        """Compute the velocities (A,) that deflections ask for."""
        wish = np.zeros(len(self.axes))
        for axis, deflection in deflections.items():
            wish[self.axes.index(axis)] = shape(deflection, self._settings.dead_zone, self._settings.expo)
        return wish * self._top * np.where(self._grippers, 1.0, self.speed)

    def _moved(self, goal: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Add ways (A,) to positions (A,); those of a rotation turn it about the axes of the base."""
        moved = np.clip(goal + way, self._low, self._high)
        for turn in self._turns:
            turned = rotations.multiply(rotations.from_vector(way[turn]), rotations.from_vector(goal[turn]))
            moved[turn] = np.clip(rotations.to_vector(turned), self._low[turn], self._high[turn])
        return moved

    def _leashed(self, goal: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Bring a goal (A,) as near to the robot (A,) as it has to stay; NaN, rates and grippers bind nothing."""
        lead = self._top * self._settings.leash
        bound = np.isfinite(reference) & ~self._rates & ~self._grippers
        near = np.where(bound, np.clip(goal, reference - lead, reference + lead), goal)
        for turn in self._turns:
            near[turn] = goal[turn]
            if bound[turn].all():
                start = rotations.from_vector(reference[turn])
                way = rotations.between(start, rotations.from_vector(goal[turn]))
                way *= min(1.0, lead[turn].min() / max(np.linalg.norm(way), 1e-12))
                near[turn] = rotations.to_vector(rotations.multiply(start, rotations.from_vector(way)))
        return near


def shape(deflection: float, dead_zone: float, expo: float) -> float:
    r"""Shape a deflection: :math:`(1 - e) u + e u^3` of what is left of it beyond the dead zone; 0 if not finite.

    Example:
        >>> shape(0.1, 0.1, 0.5), shape(1.0, 0.1, 0.5), round(shape(-0.55, 0.1, 0.5), 4)
        (0.0, 1.0, -0.3125)
    """
    if not math.isfinite(deflection):
        return 0.0
    rest = min(max(abs(deflection) - dead_zone, 0) / (1 - dead_zone), 1.0)
    return math.copysign((1 - expo) * rest + expo * rest ** 3, deflection) if rest else 0.0


def ramp(rate: np.ndarray, wish: np.ndarray, acceleration: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Change velocities (n,) evenly to others: return the way and the velocity (n,) after a time, s.

    With acceleration :math:`a`, infinite for at once, it takes :math:`T = |w - v| / a`, and from then on :math:`w`
    stays: the way is :math:`v \tau + (w - v) \tau^2 / 2T + w (t - \tau)` with :math:`\tau = \min(t, T)`.
    """
    change = wish - rate
    span = np.abs(change) / acceleration
    part = np.minimum(time, span)
    share = np.divide(part, span, out=np.ones_like(span), where=span > 0)
    return part * (rate + change * share / 2) + wish * (time - part), np.where(share >= 1, wish, rate + change * share)
