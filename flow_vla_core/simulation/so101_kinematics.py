"""Forward and inverse kinematics of the SO-101 arm with its gripper pointing down."""

from __future__ import annotations

import numpy as np

from flow_vla_core.simulation.so101_scene import ARM, build_model

__all__ = ['Kinematics']

SITE, BODY = 'gripperframe', 'gripper'  # the site's x axis points out of the gripper, z from fixed to moving jaw
DAMPING = 1e-6
ROTATION_WEIGHT = 0.02  # m/rad: an error of 0.1 rad counts like one of 2 mm, so far points tilt the gripper
ITERATIONS = 30
LARGEST_TURN = 0.3  # rad, of a joint in an iteration
TOLERANCE = 1e-4  # rad


class Kinematics:
    """Solves where the fingertips are and which joint angles bring them somewhere, by damped least squares.

    A step is ``(J^T J + damping I)^-1 J^T error`` (Wampler 1986). Five joints can place a point, hold the gripper
    upright and turn its jaws; where they can't, the point goes before the direction.
    ``low`` and ``high`` (5,) are the ends of the joints' ranges, rad.

    Args:
        offset: m, from the fixed jaw's tip towards the moving jaw; the point that is placed.

    Example:
        >>> arm = Kinematics(0.01)
        >>> angles = arm.solve(np.array([0.2, 0.05, 0.1]), 0.0, np.array([0.0, -0.3, 0.6, 1.2, 0.0]))
        >>> arm.point(angles).round(3).tolist()
        [0.2, 0.05, 0.1]
    """

    def __init__(self, offset: float) -> None:
        import mujoco
        self._mujoco, self._model = mujoco, build_model()
        self._data = mujoco.MjData(self._model)
        self._offset = offset
        self._site, self._body = self._model.site(SITE).id, self._model.body(BODY).id
        joints = [self._model.joint(name) for name in ARM]
        self.low, self.high = np.array([joint.range for joint in joints]).T

    def point(self, angles: np.ndarray) -> np.ndarray:
        """Return the point (3,), m, for joint angles (5,), rad."""
        return self._place(angles)[0]

    def solve(self, point: np.ndarray, yaw: float, start: np.ndarray) -> np.ndarray:
        """Return joint angles (5,), rad, within their ranges, as near to the demand as the arm can come.

        Args:
            point: (3,), m.
            yaw: direction from the fixed to the moving jaw in the plane of the table, rad.
            start: (5,), angles from which the solution is sought.
        """
        wanted = np.array([[0.0, -np.sin(yaw), np.cos(yaw)], [0.0, np.cos(yaw), np.sin(yaw)], [-1.0, 0.0, 0.0]])
        angles = np.array(start, float)
        for _ in range(ITERATIONS):
            place, rotation, jacobian = self._jacobian(angles)
            turn = 0.5 * np.cross(rotation, wanted, axisa=0, axisb=0, axisc=0).sum(1)
            error = np.concatenate([point - place, ROTATION_WEIGHT * turn])
            before, angles = angles, self._improve(angles, jacobian, error)
            if np.abs(angles - before).max() < TOLERANCE:
                break
        return angles

    def _improve(self, angles: np.ndarray, jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Take one step; joints that it would drive beyond their range stay there, and the others make up for them."""
        free = np.ones(len(ARM), bool)
        while True:
            moved = jacobian[:, free]
            step = np.zeros(len(ARM))
            step[free] = np.linalg.solve(moved.T @ moved + DAMPING * np.eye(free.sum()), moved.T @ error)
            step *= min(1.0, LARGEST_TURN / max(np.abs(step).max(), TOLERANCE))
            blocked = free & ((angles + step > self.high) & (angles >= self.high)
                              | (angles + step < self.low) & (angles <= self.low))
            if not blocked.any():
                return np.clip(angles + step, self.low, self.high)
            free &= ~blocked

    def _place(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._data.qpos[:len(ARM)] = angles
        self._mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site] + self._offset * rotation[:, 2], rotation

    def _jacobian(self, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return point (3,), rotation (3, 3), and the derivative (6, 5) of the point and of the weighted rotation."""
        point, rotation = self._place(angles)
        self._mujoco.mj_comPos(self._model, self._data)
        rows = np.zeros((2, 3, self._model.nv))
        self._mujoco.mj_jac(self._model, self._data, rows[0], rows[1], point, self._body)
        rows[1] *= ROTATION_WEIGHT
        return point, rotation, rows.reshape(6, -1)[:, :len(ARM)]
