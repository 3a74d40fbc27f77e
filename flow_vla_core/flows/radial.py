"""Radial flows, with a closed-form inverse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.base import NormalizingFlow, Transform
from flow_vla_core.flows.parameters import ContextParameters, above_minus_one

__all__ = ['Radial', 'RadialFlow']

SMALLEST = 1e-3  # radius alpha


class RadialFlow(NormalizingFlow):
    """Makes a density out of radial transforms, one after another.

    Each is ``z = x + beta (x - x0) / (alpha + |x - x0|)``. Rezende and Mohamed, arXiv 1505.05770, section 4.1. Both
    directions are closed forms.

    Args:
        dim: number of dimensions D.
        context_dim: width of the context; 0 for none.
        layers: number of transforms, at least 1.

    Raises:
        ConfigError: for a size that is not allowed.

    Example:
        >>> flow = RadialFlow(2, layers=4)
        >>> flow().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 16) -> None:
        if layers < 1:
            raise ConfigError(f'layers: {layers}; allowed: 1 or more')
        super().__init__([Radial(dim, context_dim) for _ in range(layers)])


class Radial(Transform):
    """Pushes points away from a centre, or pulls them to it: ``z = x + beta (x - x0) / (alpha + r)``, r = |x - x0|.

    ``alpha > 0`` and ``beta = alpha m(b) > -alpha`` with m of `above_minus_one`, so that the map is one to one;
    ``log |det| = (D - 1) log(1 + beta / (alpha + r)) + log(1 + alpha beta / (alpha + r)^2)``. Rezende and Mohamed,
    arXiv 1505.05770, equation 14 and appendix A.2. The inverse is the positive root of a quadratic equation in r.

    Args:
        dim: number of dimensions D.
        context_dim: width of the context that moves x0, alpha and beta; 0 for none.

    Example:
        >>> radial, x = Radial(3), torch.ones(2, 3)
        >>> z, log_det = radial(x)
        >>> torch.allclose(radial.inverse(z)[0], x, atol=1e-5)
        True
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.parameters_of = ContextParameters(torch.cat([torch.randn(dim), torch.tensor([0.5, 0.0])]), context_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        centre, alpha, beta = self._constrained(context)
        offset = x - centre
        distance = torch.linalg.vector_norm(offset, dim=-1)
        factor = 1 + beta / (alpha + distance)
        return centre + factor[..., None] * offset, self._log_det(distance, alpha, beta)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data: r solves ``r^2 + (alpha + beta - s) r - alpha s = 0`` with s = |z - x0|."""
        centre, alpha, beta = self._constrained(context)
        offset = z - centre
        length = torch.linalg.vector_norm(offset, dim=-1)
        factor = _shrink(length, alpha, alpha + beta)
        return centre + factor[..., None] * offset, -self._log_det(factor * length, alpha, beta)

    def _log_det(self, distance: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        reach = alpha + distance
        return (self.dim - 1) * torch.log1p(beta / reach) + torch.log1p(alpha * beta / reach ** 2)

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return x0 (..., D), alpha (...) and beta (...)."""
        centre, alpha, beta = self.parameters_of(context).split([self.dim, 1, 1], dim=-1)
        alpha = SMALLEST + functional.softplus(alpha.squeeze(-1))
        return centre, alpha, alpha * above_minus_one(beta.squeeze(-1))


def _shrink(length: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
    """Return r / s for s = ``length`` and ``total`` = alpha + beta; each branch is free of cancellation on its side."""
    half = total - length
    near = half >= 0
    root = torch.sqrt(half.square() + 4 * alpha * length)
    safe = torch.where(near, torch.ones_like(length), length)
    return torch.where(near, 2 * alpha / torch.where(near, half + root, torch.ones_like(root)),
                       (root - half) / (2 * safe))
