"""Distances between two sets of points."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_vla_core.checks import all_finite
from flow_vla_core.errors import InputError

__all__ = ['energy_distance', 'sliced_wasserstein', 'wasserstein2']


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """Return the exact Wasserstein distance of order 2 between two sets (N, D) of equally many points.

    It is the root of the least mean squared distance over all ways to pair the points.

    Raises:
        InputError: for sets of different shapes, for empty ones, and for NaN or infinity.

    Example:
        >>> wasserstein2(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
        2.0
    """
    from scipy.optimize import linear_sum_assignment
    _check(x, y)
    if len(x) != len(y):
        raise InputError(f'shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: twice the same (N, D)')
    cost = _distances(x.double(), y.double()).square().cpu().numpy()
    return float(cost[linear_sum_assignment(cost)].mean() ** 0.5)


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, generator: torch.Generator | None = None) -> float:
    """Return the sliced Wasserstein distance of order 2 between two sets (N, D) and (M, D).

    It is the root of the mean over random directions of the squared distance between the sets' projections on the
    direction, each of which is exact; Bonneel et al., Journal of Mathematical Imaging and Vision 51, 2015.
    Fast and without a limit in size, where `wasserstein2` takes N^3.

    Args:
        x: one set.
        y: the other.
        projections: number of random directions.
        generator: source of the directions.

    Raises:
        InputError: for sets of different widths, for empty ones, for NaN or infinity, and for less than one direction.

    Example:
        >>> round(sliced_wasserstein(torch.zeros(3, 1), torch.full((5, 1), 2.0)), 3)
        2.0
    """
    _check(x, y)
    if projections < 1:
        raise InputError(f'{projections} projections; allowed: 1 or more')
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64).to(x.device)
    directions = directions / directions.norm(dim=0)
    return _squared_on_lines(x.double() @ directions, y.double() @ directions).mean().sqrt().item()


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return the energy distance ``2 E|x - y| - E|x - x'| - E|y - y'|`` between two sets (N, D) and (M, D).

    It is 0 for equal sets only; Szekely and Rizzo, Journal of Statistical Planning and Inference 143, 2013.

    Raises:
        InputError: for sets of different widths, for empty ones, and for NaN or infinity.

    Example:
        >>> energy_distance(torch.zeros(3, 1), torch.full((5, 1), 2.0))
        4.0
    """
    _check(x, y)
    x, y = x.double(), y.double()
    return (2 * _distances(x, y).mean() - _distances(x, x).mean() - _distances(y, y).mean()).item()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Return Euclidean distances (N, M); those of near points are exact, too."""
    return torch.cdist(x, y, compute_mode='donot_use_mm_for_euclid_dist')


def _squared_on_lines(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared distance of order 2 in each of P columns of (N, P) and (M, P): (P,).

    Quantile functions are steps, with edges at i / N and j / M; between two edges both are constant.
    """
    count, other = len(x), len(y)
    edges = torch.cat([torch.arange(count) * other, torch.arange(other) * count]).sort().values  # in 1 / (N M), exact
    lengths = torch.diff(edges, append=torch.tensor([count * other])).to(x) / (count * other)
    x, y = x.sort(0).values[edges // other], y.sort(0).values[edges // count]
    return ((x - y).square() * lengths[:, None]).sum(0)


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or 0 in (*x.shape, *y.shape):
        raise InputError(f'shapes {tuple(x.shape)} and {tuple(y.shape)}; allowed: (N, D) and (M, D), not empty')
    for name, points in (('first', x), ('second', y)):
        if not all_finite(points):
            raise InputError(f'the {name} set holds NaN or infinity')
