"""From the steps of a plan to any time between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.execution import rotations
from flow_vla_core.execution.motion import Motion

__all__ = ['INTERPOLATIONS', 'Cubic', 'Curve', 'Hold', 'Interpolation', 'InterpolationName', 'Interpolator', 'Linear',
           'rotation_of']

InterpolationName = Literal['auto', 'linear', 'cubic', 'hold']
ROTATION = ('rx', 'ry', 'rz')


class Interpolation(ABC):
    """Declares how values go from one action to the next; after the last action they stay."""

    @abstractmethod
    def coefficients(self, actions: np.ndarray) -> np.ndarray:
        """Compute (H, 4, n): from action (H, n) ``i`` on, u steps later, the value is the sum of ``c[i, k] u^k``."""


class Hold(Interpolation):
    """Keeps each action until the next one is due."""

    def coefficients(self, actions: np.ndarray) -> np.ndarray:
        """Compute (H, 4, n): constants."""
        return _stack(actions)


class Linear(Interpolation):
    """Joins actions by straight lines: velocities jump at each action."""

    def coefficients(self, actions: np.ndarray) -> np.ndarray:
        """Compute (H, 4, n): straight lines."""
        return _stack(actions, _secants(actions))


class Cubic(Interpolation):
    """Joins actions by cubics whose velocity is continuous, and which never leave the range of the two they join.

    The velocity at an action is that of the parabola through it and its neighbours (at the first action, of the first
    parabola), but at most three times the slope to either neighbour, and 0 where these slopes have different signs
    (Fritsch and Carlson, Monotone Piecewise Cubic Interpolation, 1980). At the last action it is 0.
    """

    def coefficients(self, actions: np.ndarray) -> np.ndarray:
        """Compute (H, 4, n): Hermite cubics."""
        after = _secants(actions)
        before = np.concatenate([after[:1], after[:-1]])
        slopes = (before + after) / 2
        if len(after) > 2:
            slopes[0] = (3 * after[0] - after[1]) / 2
        steepest = 3 * np.minimum(np.abs(before), np.abs(after))
        monotone = (before * after > 0) & (slopes * after > 0)
        slopes = np.where(monotone, np.clip(slopes, -steepest, steepest), 0)
        ends = np.concatenate([slopes[1:], np.zeros((1, actions.shape[1]))])
        return _stack(actions, slopes, 3 * after - 2 * slopes - ends, slopes + ends - 2 * after)


WAYS: dict[str, Interpolation] = {'linear': Linear(), 'cubic': Cubic(), 'hold': Hold()}
INTERPOLATIONS: tuple[InterpolationName, ...] = ('auto', *WAYS)
HELD, POSITIONS = ('gripper', 'ee_delta'), ('joint_position', 'ee_pose')


class Interpolator:
    """Makes a curve of the actions of a plan.

    Grippers and displacements (``ee_delta``) are always held. ``auto`` takes ``cubic`` for joints and poses that are
    driven by position, ``linear`` for velocities. The rotation vectors (rx, ry, rz) of an ``ee_pose`` turn at constant
    angular velocity on the shortest way (slerp), unless they are held.

    Args:
        contract: says the parts of the action vector, and the step.
        name: ``auto``, ``linear``, ``cubic`` or ``hold``.

    Raises:
        ConfigError: if there is no such interpolation.
    """

    def __init__(self, contract: RobotContract, name: InterpolationName = 'auto') -> None:
        if name not in INTERPOLATIONS:
            raise ConfigError(f'interpolation: {name!r} is unknown; {closest(name, INTERPOLATIONS)}')
        ways = np.concatenate([np.full(part.dim, _way(part, name)) for part in contract.actions])
        self._places = [(np.flatnonzero(ways == way), WAYS[way]) for way in np.unique(ways).tolist()]
        self._step = contract.rates.policy_dt
        places = zip(contract.actions, contract.action_slices.values())
        triples = [place.start + triple for part, place in places if (triple := rotation_of(part)) is not None]
        self.rotations = triples
        self._slerp = triples if name != 'hold' else []

    def __call__(self, actions: np.ndarray) -> Curve:
        """Make the curve of actions (H, A)."""
        actions = actions.astype(np.float64)
        coefficients = np.empty((len(actions), 4, actions.shape[1]))
        for place, interpolation in self._places:
            coefficients[..., place] = interpolation.coefficients(actions[:, place])
        return Curve(coefficients, {tuple(triple): Slerp(actions[:, triple]) for triple in self._slerp}, self._step)


class Slerp:
    """Turns from one rotation to the next at constant angular velocity.

    Args:
        vectors: (H, 3) rotation vectors, rad.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._starts = rotations.from_vector(vectors)
        self._ways = rotations.between(self._starts, np.concatenate([self._starts[1:], self._starts[-1:]]))

    def at(self, step: int, rest: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rotation vector (3,) and the angular velocity (3,), rad per step, ``rest`` steps after one."""
        turned = rotations.multiply(self._starts[step], rotations.from_vector(self._ways[step] * rest))
        return rotations.to_vector(turned), rotations.rotate(self._starts[step], self._ways[step])


class Curve:
    """Gives the values of a plan at any time.

    Args:
        coefficients: (H, 4, A) of the cubic from each action on.
        slerps: components -> the rotations that they hold.
        step: time between two actions, s.
    """

    def __init__(self, coefficients: np.ndarray, slerps: dict[tuple[int, ...], Slerp], step: float) -> None:
        self._coefficients, self._slerps, self._step = coefficients, slerps, step

    def at(self, steps: float) -> Motion:
        """Compute values (A,) and their changes, ``steps`` after the first action, at least 0."""
        index = min(int(steps), len(self._coefficients) - 1)
        rest = min(steps - index, 1.0)
        a, b, c, d = self._coefficients[index]
        values = a + rest * (b + rest * (c + rest * d))
        rates = (b + rest * (2 * c + rest * 3 * d)) / self._step
        curvatures = (2 * c + 6 * rest * d) / self._step ** 2
        for place, slerp in self._slerps.items():
            place = list(place)
            values[place], turning = slerp.at(index, rest)
            rates[place], curvatures[place] = turning / self._step, 0
        return Motion(values, rates, curvatures)


def rotation_of(part: ActionPart) -> np.ndarray | None:
    """Return the places (3,) of the rotation vector in a part that is a pose with all of one; None otherwise."""
    if part.kind != 'ee_pose' or not set(ROTATION) <= set(part.names):
        return None
    return np.array([part.names.index(name) for name in ROTATION])


def _way(part: ActionPart, name: InterpolationName) -> str:
    if part.kind in HELD:
        return 'hold'
    if name == 'auto':
        return 'cubic' if part.kind in POSITIONS else 'linear'
    return name


def _secants(actions: np.ndarray) -> np.ndarray:
    return np.diff(actions, axis=0, append=actions[-1:])


def _stack(actions: np.ndarray, *others: np.ndarray) -> np.ndarray:
    zeros = [np.zeros_like(actions)] * (3 - len(others))
    return np.stack([actions, *others, *zeros], 1)
