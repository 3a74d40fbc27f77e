"""Rotations as unit quaternions (w, x, y, z) and as rotation vectors, in numpy."""

from __future__ import annotations

import numpy as np

__all__ = ['between', 'from_vector', 'mean', 'multiply', 'rotate', 'to_vector']


def from_vector(vector: np.ndarray) -> np.ndarray:
    """Turn rotation vectors (..., 3), rad, into unit quaternions (..., 4)."""
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    # sinc(x) is sin(pi x) / (pi x): no division by an angle of 0.
    return np.concatenate([np.cos(angle / 2), vector * np.sinc(angle / (2 * np.pi)) / 2], -1)


def to_vector(quaternion: np.ndarray) -> np.ndarray:
    """Turn unit quaternions (..., 4) into rotation vectors (..., 3) of at most pi."""
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    return quaternion[..., 1:] * np.where(sine > 1e-12, angle / np.maximum(sine, 1e-12), 2.0)


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply quaternions (..., 4): the right one acts first."""
    a, b = left[..., :1], right[..., :1]
    u, v = left[..., 1:], right[..., 1:]
    scalar = a * b - (u * v).sum(-1, keepdims=True)
    return np.concatenate([scalar, a * v + b * u + _cross(u, v)], -1)


def between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the shortest rotation vectors (..., 3), in the frame of ``start``, that lead to ``end``."""
    return to_vector(multiply(start * np.array([1.0, -1.0, -1.0, -1.0]), end))


def rotate(quaternion: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Rotate vectors (..., 3)."""
    axis = quaternion[..., 1:]
    twice = 2 * _cross(axis, vector)
    return vector + quaternion[..., :1] * twice + _cross(axis, twice)


def mean(quaternions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    r"""Compute the weighted mean (4,) of quaternions (n, 4): the largest eigenvector of :math:`\sum w q q^T`.

    The sign of a quaternion does not matter (Markley et al., Averaging Quaternions, 2007, equation 12).
    """
    return np.linalg.eigh((quaternions * weights[:, None]).T @ quaternions)[1][:, -1]


def _cross(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    # np.cross takes ten times as long for one pair.
    x, y, z = left[..., 0], left[..., 1], left[..., 2]
    u, v, w = right[..., 0], right[..., 1], right[..., 2]
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], -1)
