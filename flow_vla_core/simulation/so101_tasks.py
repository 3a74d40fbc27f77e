"""The tasks of the SO-101 arm: their words, when they are done, and where an expert would move next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from flow_vla_core.simulation.so101_scene import CUBE_SIZE, CUBES, ZONE

__all__ = ['CUBE_TASKS', 'JAW_STEP', 'TIP_OFFSET', 'CubeTask', 'Lift', 'Push', 'Reach']

TIP_OFFSET = 0.0085        # m, beside the fixed jaw: the middle of closed fingertips
GRASP_OFFSET = 0.023       # m, beside the fixed jaw: where a cube stands between open jaws
OPEN, CLOSED = 0.75, 0.0   # rad, of the gripper
JAW_STEP = 0.1             # rad, of the gripper in a policy step
ABOVE = 0.03               # m, from the middle of a cube to the point to reach
REACH_RADIUS = 0.025       # m
LIFT_HEIGHT, LIFTED = 0.05, 0.11  # m; that counts, and that the expert goes to
HOVER, TRAVEL = 0.075, 0.06       # m above the table: before going down; what is lower has to rise before it travels
PUSH_HEIGHT, GRASP_HEIGHT = 0.014, 0.016  # m
PUSH_LEAD = 0.04           # m, by which the waypoint runs ahead of the fingertips that push
BESIDE = 0.042             # m, from the middle of a cube to the fingertips that are about to push it
SIDES: Mapping[str, float] = {'left': -1.0, 'right': 1.0}  # as the front camera sees them -> sign of y


class CubeTask(Protocol):
    """Declares a task with one of the cubes.

    Args:
        colour: of the cube.
        offset: m, beside the fixed jaw; the point of the gripper that `waypoint` is about.
        yaw: rad, direction of the jaws in the plane of the table.
    """

    colour: str
    offset: float
    yaw: float

    @property
    def words(self) -> str:
        """What people would say."""

    def met(self, tip: np.ndarray, cube: np.ndarray) -> bool:
        """Tell whether it is done, given the middles of the closed fingertips and of the cube, (3,), m."""

    def waypoint(self, point: np.ndarray, cube: np.ndarray, jaw: float) -> tuple[np.ndarray, float]:
        """Return where the gripper's point (3,), m, and its jaw, rad, should go next, from where they and the cube are.
        """


@dataclass(frozen=True)
class Reach:
    """Brings the fingertips to within 2.5 cm of a point just above a cube."""

    colour: str
    offset: ClassVar[float] = TIP_OFFSET
    yaw: ClassVar[float] = 0.0

    @property
    def words(self) -> str:
        """What people would say."""
        return f'reach the {self.colour} cube'

    def met(self, tip: np.ndarray, cube: np.ndarray) -> bool:
        """Tell whether the fingertips are there."""
        return bool(np.linalg.norm(tip - cube - [0, 0, ABOVE]) < REACH_RADIUS)

    def waypoint(self, point: np.ndarray, cube: np.ndarray, jaw: float) -> tuple[np.ndarray, float]:
        """Go straight there."""
        return cube + [0, 0, ABOVE], CLOSED


@dataclass(frozen=True)
class Push:
    """Pushes a cube until its middle lies in the zone of one side.

    Args:
        colour: of the cube.
        side: ``left`` or ``right``, as the front camera sees it.
    """

    colour: str
    side: str
    offset: ClassVar[float] = TIP_OFFSET
    yaw: ClassVar[float] = 0.0

    @property
    def words(self) -> str:
        """What people would say."""
        return f'push the {self.colour} cube to the {self.side}'

    def met(self, tip: np.ndarray, cube: np.ndarray) -> bool:
        """Tell whether the cube lies on the table in the zone."""
        return bool(cube[1] * SIDES[self.side] > ZONE and cube[2] < CUBE_SIZE)

    def waypoint(self, point: np.ndarray, cube: np.ndarray, jaw: float) -> tuple[np.ndarray, float]:
        """Go down on the far side of the cube and push; begin again where the cube slipped away."""
        sign = SIDES[self.side]
        if cube[1] * sign > ZONE + 0.01:
            return np.array([*point[:2], HOVER]), CLOSED
        across, along = abs(point[0] - cube[0]), (cube[1] - point[1]) * sign
        low = point[2] < PUSH_HEIGHT + (0.006 if along > BESIDE - 0.01 else 0.016)
        if low and across < 0.014 and along > 0.015:
            return np.array([cube[0], point[1] + sign * PUSH_LEAD, PUSH_HEIGHT]), CLOSED
        return _over(point, cube - [0, sign * BESIDE, 0], PUSH_HEIGHT, 0.012), CLOSED


@dataclass(frozen=True)
class Lift:
    """Grips a cube and lifts it until its lower side is 5 cm above the table."""

    colour: str
    offset: ClassVar[float] = GRASP_OFFSET
    yaw: ClassVar[float] = -np.pi / 2

    @property
    def words(self) -> str:
        """What people would say."""
        return f'pick up the {self.colour} cube'

    def met(self, tip: np.ndarray, cube: np.ndarray) -> bool:
        """Tell whether the cube is high enough."""
        return bool(cube[2] - CUBE_SIZE / 2 > LIFT_HEIGHT)

    def waypoint(self, point: np.ndarray, cube: np.ndarray, jaw: float) -> tuple[np.ndarray, float]:
        """Go down over the cube with open jaws, close them, and go up once they are closed around it."""
        apart = np.linalg.norm(point[:2] - cube[:2])
        height = point[2] - cube[2]
        if jaw < CLOSED + 0.05 and apart < 0.025 and height < 0.03:
            return np.array([*point[:2], LIFTED]), CLOSED
        if height < 0.012 and apart < (0.01 if jaw > OPEN - JAW_STEP else 0.025):
            return np.array([*point[:2], GRASP_HEIGHT]), CLOSED
        return _over(point, cube, GRASP_HEIGHT, 0.008), OPEN


def _over(point: np.ndarray, place: np.ndarray, height: float, radius: float) -> np.ndarray:
    """Return the next waypoint on the way down to a place: up if low and not above it, across, then down."""
    apart = np.linalg.norm(point[:2] - place[:2])
    if apart < radius * (1.0 if point[2] > TRAVEL else 1.8):
        return np.array([*place[:2], height])
    if point[2] < TRAVEL and apart > 2 * radius:
        return np.array([*point[:2], HOVER + 0.02])
    return np.array([*place[:2], HOVER])


CUBE_TASKS: Mapping[str, CubeTask] = {
    **{f'reach-{colour}': Reach(colour) for colour in CUBES},
    **{f'push-{colour}-{side}': Push(colour, side) for colour in CUBES for side in SIDES},
    **{f'lift-{colour}': Lift(colour) for colour in CUBES},
}
