"""Planar flows, with a numerical inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.base import NormalizingFlow, Transform
from flow_vla_core.flows.parameters import ContextParameters, above_minus_one

__all__ = ['Planar', 'PlanarFlow']

MOST_STEPS = 100  # of Newton's method; about ten are usual


class PlanarFlow(NormalizingFlow):
    """Makes a density out of planar transforms, one after another.

    Each is ``z = x + v tanh(w x + b)``. Rezende and Mohamed, arXiv 1505.05770, section 4.1. Data to noise is the closed
    form, so the log-density is cheap; a sample needs one equation in one unknown to be solved in each layer. Both have
    exact gradients.

    Args:
        dim: number of dimensions D.
        context_dim: width of the context; 0 for none.
        layers: number of transforms, at least 1.

    Raises:
        ConfigError: for a size that is not allowed.

    Example:
        >>> flow = PlanarFlow(2, context_dim=3, layers=4)
        >>> flow(torch.zeros(5, 3)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 16) -> None:
        if layers < 1:
            raise ConfigError(f'layers: {layers}; allowed: 1 or more')
        super().__init__([Planar(dim, context_dim) for _ in range(layers)])


class Planar(Transform):
    """Moves points along one direction by how far they lie from a plane: ``z = x + v tanh(w x + b)``.

    ``v = u + (m(w u) - w u) w / |w|^2`` with m of `above_minus_one`, so that ``k = w v > -1`` and the map is one to
    one; ``log |det| = log(1 + k (1 - tanh(w x + b)^2))``. Rezende and Mohamed, arXiv 1505.05770, equations 10 to 12
    and appendix A.1. The inverse solves ``a + k tanh(a) = w z + b`` and returns ``x = z - v tanh(a)``.

    Args:
        dim: number of dimensions D.
        context_dim: width of the context that moves u, w and b; 0 for none.

    Example:
        >>> planar, x = Planar(3), torch.ones(2, 3)
        >>> z, log_det = planar(x)
        >>> torch.allclose(planar.inverse(z)[0], x, atol=1e-5)
        True
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        u, w, b = 0.1 * torch.randn(dim) / dim ** 0.5, torch.randn(dim) / dim ** 0.5, torch.randn(1)
        self.parameters_of = ContextParameters(torch.cat([u, w, b]), context_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise, in closed form."""
        v, w, b, k = self._constrained(context)
        tanh = torch.tanh((x * w).sum(-1) + b)
        return x + v * tanh[..., None], torch.log1p(k * (1 - tanh ** 2))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data, by Newton's method."""
        v, w, b, k = self._constrained(context)
        c = (z * w).sum(-1) + b
        tanh = torch.tanh(_Root.apply(k.expand_as(c), c))
        return z - v * tanh[..., None], -torch.log1p(k * (1 - tanh ** 2))

    def _constrained(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return v (..., D), w (..., D), b (...) and k (...)."""
        u, w, b = self.parameters_of(context).split([self.dim, self.dim, 1], dim=-1)
        product = (w * u).sum(-1, keepdim=True)
        k = above_minus_one(product)
        length = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        return u + (k - product) * w / length, w, b.squeeze(-1), k.squeeze(-1)


class _Root(torch.autograd.Function):
    """Solves ``a + k tanh(a) = c`` for a, with k > -1; all of one shape.

    The gradient is that of the implicit function: ``da/dc = 1 / (1 + k (1 - tanh(a)^2))``, ``da/dk = -tanh(a) da/dc``.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, c: Tensor) -> Tensor:
        a = _solve(k, c.abs()) * c.sign()  # the equation is odd
        ctx.save_for_backward(k, a)
        return a

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        k, a = ctx.saved_tensors
        tanh = torch.tanh(a)
        grad = grad / (1 + k * (1 - tanh ** 2))
        return -tanh * grad, grad


def _solve(k: Tensor, c: Tensor) -> Tensor:
    """Solve for c >= 0, where the root lies between ``low`` and ``high``.

    On a >= 0 the left side is concave if k > 0, and convex otherwise: Newton's method from the bracket's lower end, or
    from its upper one, goes to the root without ever crossing it.
    """
    low = torch.where(k > 0, torch.maximum(c - k, c / (1 + k)), c)
    high = torch.where(k > 0, c, torch.minimum(c - k, c / (1 + k)))
    a = torch.where(k > 0, low, high)
    close = 2 * torch.finfo(c.dtype).eps
    for _ in range(MOST_STEPS):
        tanh = torch.tanh(a)
        found = a - (a + k * tanh - c) / (1 + k * (1 - tanh ** 2))
        found = torch.minimum(torch.maximum(found, low), high)
        done = ((found - a).abs() <= close * (1 + a)).all()
        a = found
        if done:
            break
    return a
