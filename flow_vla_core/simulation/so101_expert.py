"""The scripted expert of the SO-101 arm: from where things are to the next joint angles."""

from __future__ import annotations

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.simulation.so101_kinematics import Kinematics
from flow_vla_core.simulation.so101_scene import CUBES
from flow_vla_core.simulation.so101_tasks import CUBE_TASKS, JAW_STEP

__all__ = ['SO101Expert']

GAIN = 0.16             # of a policy step, on the distance that is left
LARGEST_STEP = 0.010    # m, of the fingertips in a policy step
LARGEST_TURN = 0.05     # rad, of a joint in a policy step
LARGEST_CHANGE = 0.015  # rad, of that from one step to the next


class SO101Expert:
    """Moves the gripper towards the task's waypoint, which depends on the present situation alone.

    The servos' targets are moved by a share of the measured distance, at most at a moderate speed and acceleration,
    so that the arm's sag under its own weight is made up for. It remembers nothing: after a disturbance it begins
    again with what the situation asks for.

    Args:
        contract: not used; the expert's speed is in policy steps.
        task: one of `CUBE_TASKS`.
    """

    def __init__(self, contract: RobotContract, task: str) -> None:
        self._task = CUBE_TASKS[task]
        self._arm = Kinematics(self._task.offset)

    def __call__(self, privileged: np.ndarray) -> np.ndarray:
        """Return joint angles (6,), rad, for the robot's ``privileged_state`` (27,)."""
        targets, moved, angles = privileged[:18].reshape(3, 6)
        cube = privileged[18:].reshape(len(CUBES), 3)[CUBES.index(self._task.colour)]
        point = self._arm.point(angles[:5])
        waypoint, jaw = self._task.waypoint(point, cube, targets[5])
        arm = self._approach(targets[:5], moved[:5], point, waypoint)
        return np.array([*arm, targets[5] + np.clip(jaw - targets[5], -JAW_STEP, JAW_STEP)], np.float32)

    def _approach(self, targets: np.ndarray, moved: np.ndarray, point: np.ndarray, waypoint: np.ndarray) -> np.ndarray:
        """Move the arm's targets (5,) so that the measured point comes nearer to the waypoint."""
        step = GAIN * (waypoint - point)
        step *= min(1.0, LARGEST_STEP / max(np.linalg.norm(step), 1e-9))
        turn = self._arm.solve(self._arm.point(targets) + step, self._task.yaw, targets) - targets
        turn *= min(1.0, LARGEST_TURN / max(np.abs(turn).max(), 1e-9))
        step = moved + np.clip(turn - moved, -LARGEST_CHANGE, LARGEST_CHANGE)
        return np.clip(targets + step, self._arm.low, self._arm.high)
