"""Monotonic rational-quadratic splines."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.univariate import Univariate, soft_clamp

__all__ = ['RationalQuadratic']


class _Bin(NamedTuple):
    """Holds the bin that a number falls into: corner, size, slopes at both ends; each (...)."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class RationalQuadratic(Univariate):
    """Maps [-B, B] onto itself by K rational-quadratic pieces with continuous slope; it is the identity elsewhere.

    In the bin with corner (x_k, y_k), mean slope s and slopes d_k, d_{k+1} at its ends, with u = (x - x_k) / width:
    ``y = y_k + height (s u^2 + d_k u (1 - u)) / (s + (d_k + d_{k+1} - 2 s) u (1 - u))``.
    The slope is 1 at -B and B. Durkan et al., arXiv 1906.04032, eq. 4 to 8. NaN stays NaN.

    The 3 K - 1 parameters: K for the logarithms of widths, K for those of heights (up to the sum), K - 1 for those
    of the inner slopes. Soft clamps keep every width and height above ``smallest`` of the largest one, and slopes
    between ``smallest`` and its inverse, so that the spline is safe in float32 for any parameters.

    Args:
        bins: K.
        bound: B.
        smallest: floor of the ratios above.

    Raises:
        ConfigError: for fewer than 2 bins, a bound that is not above 0, or a floor that is not between 0 and 1.

    Example:
        >>> spline = RationalQuadratic(bins=4, bound=3.0)
        >>> y, log_slope = spline.forward(torch.tensor([-1.0, 7.0]), torch.zeros(2, spline.parameters))
        >>> torch.allclose(y, torch.tensor([-1.0, 7.0])), torch.allclose(log_slope, torch.zeros(2), atol=1e-6)
        (True, True)
    """

    bins: int = 8
    bound: float = 5.0
    smallest: float = 1e-2

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ConfigError(f'spline bins: {self.bins}; allowed: 2 or more')
        if not 0 < self.bound < math.inf:
            raise ConfigError(f'spline bound: {self.bound}; allowed: above 0')
        if not 0 < self.smallest < 1:
            raise ConfigError(f'spline floor: {self.smallest}; allowed: between 0 and 1')

    @property
    def parameters(self) -> int:
        """3 K - 1."""
        return 3 * self.bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(...), (..., 3 K - 1) -> (...), (...)."""
        inside, share = self._share(x)
        piece = self._find(share, parameters, axis=0)
        u = (share - piece.x) / piece.width
        mean, mixed = piece.height / piece.width, u * (1 - u)
        below = mean + (piece.left + piece.right - 2 * mean) * mixed
        share = piece.y + piece.height * (mean * u.square() + piece.left * mixed) / below
        log_slope = _log_slope(piece, mean, u, mixed, below)
        return torch.where(inside, self._value(share), x), torch.where(inside, log_slope, 0)

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(...), (..., 3 K - 1) -> (...), (...)."""
        inside, share = self._share(y)
        piece = self._find(share, parameters, axis=1)
        mean, rise = piece.height / piece.width, (share - piece.y) / piece.height
        bend = piece.left + piece.right - 2 * mean
        a, b, c = mean - piece.left + rise * bend, piece.left - rise * bend, -mean * rise
        root = (b.square() - 4 * a * c).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        u = torch.where(b > 0, -2 * c, root - b) / torch.where(b > 0, b + root, 2 * a)  # nothing cancels
        mixed = u * (1 - u)
        log_slope = _log_slope(piece, mean, u, mixed, mean + bend * mixed)
        x = self._value(piece.x + u * piece.width)
        return torch.where(inside, x, y), torch.where(inside, -log_slope, 0)

    def _share(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the spline acts, and the way from -B to B as a share, which is safe elsewhere too."""
        inside = values.abs() <= self.bound
        return inside, torch.where(inside, values, 0) / (2 * self.bound) + 0.5

    def _value(self, share: Tensor) -> Tensor:
        return 2 * self.bound * (share - 0.5)

    def _find(self, share: Tensor, parameters: Tensor, axis: int) -> _Bin:
        """Return the bin of each share (...), searched among the widths (axis 0) or the heights (axis 1)."""
        limit = -math.log(self.smallest)
        sizes = soft_clamp(parameters[..., :2 * self.bins], limit / 2).exp().unflatten(-1, (2, self.bins))
        ends = sizes.cumsum(-1)
        whole = ends[..., -1]  # divided by it only after the choice: the softmax over few bins is slow on a CPU
        index = ((share * whole[..., axis])[..., None] >= ends[..., axis, :-1]).sum(-1)
        both = index[..., None, None].expand(*index.shape, 2, 1)
        size = sizes.gather(-1, both).squeeze(-1) / whole
        corner = ends.gather(-1, both).squeeze(-1) / whole - size
        slopes = functional.pad(parameters[..., 2 * self.bins:], (1, 1))
        slopes = soft_clamp(slopes.gather(-1, torch.stack((index, index + 1), -1)), limit).exp()
        return _Bin(*corner.unbind(-1), *size.unbind(-1), *slopes.unbind(-1))


def _log_slope(piece: _Bin, mean: Tensor, u: Tensor, mixed: Tensor, below: Tensor) -> Tensor:
    above = piece.right * u.square() + 2 * mean * mixed + piece.left * (1 - u).square()
    return (above * (mean / below).square()).log()
