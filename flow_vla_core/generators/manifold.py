"""The product manifold of vectors and rotations: points, geodesics, and differential equations on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from flow_vla_core.divergence import exact_divergence
from flow_vla_core.errors import ConfigError
from flow_vla_core.solvers import solve, solve_adaptively

__all__ = ['Field', 'Point', 'integrate', 'rotation_from_columns', 'trace_back', 'turn_of_columns']

SMALL_ANGLE = 1e-2  # rad; below it a series is more exact than the closed form, which subtracts near-equal numbers
DEGENERATE = 1e-6  # sine of the angle between two columns that span no plane


@dataclass(frozen=True)
class Point:
    """Holds points of the product manifold ``R^N x SO(3)^K``, one for each action.

    A tangent at a point is a row of N + 3K numbers: the velocity of the vectors, then for each rotation its angular
    velocity w in the frame of the body, ``dR/dt = R hat(w)``.

    Args:
        vectors: (B, H, N).
        rotations: (B, H, K, 3, 3).

    Example:
        >>> here = Point(torch.zeros(1, 1, 2), torch.eye(3).expand(1, 1, 1, 3, 3))
        >>> there = here.move(torch.tensor([[[1.0, 2.0, 0.0, 0.0, 0.5]]]))
        >>> here.reach(there)
        tensor([[[1.0000, 2.0000, 0.0000, 0.0000, 0.5000]]])
    """

    vectors: Tensor
    rotations: Tensor

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Point:
        """Choose elements of the batch, and actions."""
        return Point(self.vectors[index], self.rotations[index])

    def move(self, tangent: Tensor) -> Point:
        """Follow the geodesic that begins with a tangent (B, H, N + 3K) for one unit of time."""
        straight, turn = self.split(tangent)
        return Point(self.vectors + straight, _compose(self.rotations, roma.rotvec_to_rotmat(turn)))

    def nudge(self, tangent: Tensor) -> Point:
        """Do what `move` does, to first order: matrices leave SO(3), but every further derivative at rest is finite."""
        straight, turn = self.split(tangent)
        return Point(self.vectors + straight, self.rotations + _spin(self.rotations, turn))

    def reach(self, other: Point) -> Tensor:
        """Return the tangent of the shortest geodesic that gets to another point in one unit of time."""
        turn = roma.rotmat_to_rotvec(_compose(self.rotations.mT, other.rotations))
        return self.join(other.vectors - self.vectors, turn)

    def split(self, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Separate a tangent (B, H, N + 3K) into velocities (B, H, N) and angular velocities (B, H, K, 3)."""
        count = self.vectors.shape[-1]
        return tangent[..., :count], tangent[..., count:].reshape(*self.rotations.shape[:-1])

    def join(self, straight: Tensor, turn: Tensor) -> Tensor:
        """Undo `split`."""
        return torch.cat([straight, turn.flatten(-2)], -1)

    def rest(self) -> Tensor:
        """Return the tangent that goes nowhere, (B, H, N + 3K).

        It hangs on the point in the graph of gradients, so that a derivative by it need not search what came before.
        """
        return 0 * self.join(self.vectors, self.rotations[..., 0])


Field = Callable[[Point, float], Tensor]


def integrate(field: Field, point: Point, steps: int, method: str) -> Point:
    """Solve ``d point / dt = v(point, t)`` on the manifold from t = 0 to t = 1.

    Each step is one step of an ordinary solver in the chart of the geodesics from where it begins, where
    ``du/dt = J(u)^-1 v`` with the right Jacobian J of SO(3) (Munthe-Kaas, BIT 38, 1998). So every solver keeps its
    order and rotations stay rotations; Euler's step is ``R exp(h hat(w))``.

    Args:
        field: gets a point and t, returns a tangent there.
        point: where to begin.
        steps: number of steps, at least 1; in none of them may a rotation turn by a full turn.
        method: one of `flow_vla_core.solvers.SOLVERS`.

    Raises:
        ConfigError: for an unknown method or fewer than one step.

    Example:
        >>> begin = Point(torch.ones(1, 1, 1), torch.eye(3).expand(1, 1, 1, 3, 3))
        >>> end = integrate(lambda point, t: torch.tensor([[[2.0, 0.0, 0.0, 1.0]]]), begin, 4, 'euler')
        >>> begin.reach(end)
        tensor([[[2.0000, 0.0000, 0.0000, 1.0000]]])
    """
    if steps < 1:
        raise ConfigError(f'{steps} solver steps; allowed: 1 or more')
    for index in range(steps):

        def in_chart(tangent: Tensor, share: float, point: Point = point, index: int = index) -> Tensor:
            velocity = field(point.move(tangent), (index + share) / steps)
            return _pull_back(point, tangent, velocity) / steps

        point = point.move(solve(in_chart, point.rest(), 1, method))
    return Point(point.vectors, roma.special_gramschmidt(point.rotations))  # rounding has bent them a little


def trace_back(field: Field, point: Point, *, rtol: float = 1e-5, atol: float = 1e-5) -> tuple[Point, Tensor]:
    """Return where points at t = 1 came from, and the integral of the field's divergence on their way: (B,).

    The divergence is exact. Left-invariant fields of SO(3) have none of their own, so that of ``R hat(w(R))`` is the
    trace of the derivative of w along them. Rotations are integrated as matrices, with steps chosen by the tolerances.

    Args:
        field: as for `integrate`; elements of the batch must not depend on each other.
        point: at t = 1.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.

    Raises:
        SolverError: if the equation can't be solved.

    Example:
        >>> end = Point(torch.ones(1, 1, 1, dtype=torch.float64), torch.eye(3).double().expand(1, 1, 1, 3, 3))
        >>> begin, grown = trace_back(lambda point, t: point.join(point.vectors, point.rotations[..., 0]), end)
        >>> round(begin.vectors.item(), 3)
        0.368
    """
    def extended(state: Tensor, t: float) -> Tensor:
        here = unpack(state)
        velocity, divergence = exact_divergence(lambda tangent: field(here.nudge(tangent), t), here.rest())
        straight, turn = here.split(velocity)
        return _pack(Point(straight, _spin(here.rotations, turn)), divergence)

    def unpack(state: Tensor) -> Point:
        vectors, rotations, _ = state.split([point.vectors[0].numel(), point.rotations[0].numel(), 1], -1)
        return Point(vectors.reshape(point.vectors.shape),
                     roma.special_gramschmidt(rotations.reshape(point.rotations.shape)))

    end = solve_adaptively(extended, _pack(point, point.vectors.new_zeros(len(point.vectors))), t0=1.0, t1=0.0,
                           rtol=rtol, atol=atol).end
    return unpack(end), -end[:, -1]


def rotation_from_columns(columns: Tensor) -> Tensor:
    """Make rotations of their first two columns by Gram-Schmidt (arXiv 1812.07035): (..., 6) -> (..., 3, 3).

    Two columns of independent Gaussian numbers give a uniform rotation. Columns that span no plane give the identity.

    Args:
        columns: the first column, then the second.

    Example:
        >>> rotation_from_columns(torch.tensor([2.0, 0.0, 0.0, 1.0, 3.0, 0.0]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 0., 1.]])
    """
    pair = columns.unflatten(-1, (2, 3)).mT
    first, second = pair.unbind(-1)
    area = torch.linalg.cross(first, second).norm(dim=-1)
    flat = area <= DEGENERATE * first.norm(dim=-1) * second.norm(dim=-1)
    plain = torch.eye(3, 2, dtype=columns.dtype, device=columns.device)
    return roma.special_gramschmidt(torch.where(flat[..., None, None], plain, pair))


def turn_of_columns(rotations: Tensor, velocity: Tensor) -> Tensor:
    """Project velocities of the first two columns (..., 6) onto the tangent space of SO(3): (..., 3), rad.

    The nearest ``R hat(w)`` in the squares of the two columns' errors has, with ``a = R^T c1`` and ``b = R^T c2``,
    ``w = (b_3, -a_3, (a_2 - b_1) / 2)``.

    Args:
        rotations: (..., 3, 3).
        velocity: of the first column, then of the second.

    Example:
        >>> turn_of_columns(torch.eye(3), torch.tensor([0.0, 3.0, -2.0, -3.0, 0.0, 1.0]))
        tensor([1., 2., 3.])
    """
    a, b = (rotations[..., None, :, :] * velocity.unflatten(-1, (2, 3))[..., None]).sum(-2).unbind(-2)
    return torch.stack([b[..., 2], -a[..., 2], (a[..., 1] - b[..., 0]) / 2], -1)


def _spin(rotations: Tensor, turn: Tensor) -> Tensor:
    """Return ``R hat(w)``: (..., 3, 3), (..., 3) -> (..., 3, 3)."""
    return torch.linalg.cross(rotations, turn[..., None, :])


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Multiply 3x3 matrices; unlike ``@``, never in the half precision of autocast, which would bend rotations."""
    return (first[..., :, :, None] * second[..., None, :, :]).sum(-2)


def _pack(point: Point, number: Tensor) -> Tensor:
    """Put vectors, matrices and a number (B,) into rows (B, .)."""
    return torch.cat([point.vectors.flatten(1), point.rotations.flatten(1), number[:, None]], 1)


def _pull_back(point: Point, tangent: Tensor, velocity: Tensor) -> Tensor:
    """Express a velocity at ``point.move(tangent)`` as the rate of change of ``tangent``: ``J(u)^-1 v``."""
    turn, (straight, spin) = point.split(tangent)[1], point.split(velocity)
    square = turn.square().sum(-1, keepdim=True)
    small = square < SMALL_ANGLE ** 2
    half = torch.where(small, torch.ones_like(square), square).sqrt() / 2
    factor = torch.where(small, 1 / 12 + square / 720, (1 - half / half.tan()) / (4 * half.square()))
    once = torch.linalg.cross(turn, spin)
    return point.join(straight, spin + once / 2 + factor * torch.linalg.cross(turn, once))
