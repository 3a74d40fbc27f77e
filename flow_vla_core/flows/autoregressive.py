"""Autoregressive flows: each number is mapped as those before it and the context say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.base import NormalizingFlow, Transform
from flow_vla_core.flows.conditioners import MaskedConditioner
from flow_vla_core.flows.splines import RationalQuadratic
from flow_vla_core.flows.univariate import Affine, Univariate

__all__ = ['MAF', 'AutoregressiveLayer', 'AutoregressiveSplineFlow', 'chain']


class AutoregressiveLayer(Transform):
    """Maps number i as its predecessors say: ``z_i = f(x_i; network(x_j before i, c))``.

    From data to noise all numbers are mapped at once; from noise to data one after another, D passes over a part of
    the network each that cost one whole pass together. Papamakarios et al., arXiv 1705.07057, eq. 2 to 5. It begins
    as the identity.

    Args:
        places: place of each number in the order, a permutation of 0 .. D - 1.
        context_dim: C; 0 for none.
        univariate: f.
        hidden: widths of the network's hidden layers.

    Raises:
        ConfigError: for places that are no permutation, or bad widths.

    Example:
        >>> layer = AutoregressiveLayer((1, 0, 2), 0, Affine())
        >>> z, log_det = layer(torch.randn(5, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, places: Sequence[int], context_dim: int, univariate: Univariate,
                 hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(len(places), context_dim)
        self.univariate = univariate
        self.network = MaskedConditioner(places, context_dim, univariate.parameters, hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        z, log_slope = self.univariate.forward(x, self.network(x, context))
        return z, log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        log_slopes = []

        def number(index: int, parameters: Tensor) -> Tensor:
            x, log_slope = self.univariate.inverse(z[..., index], parameters)
            log_slopes.append(log_slope)
            return x

        x = self.network.fill(number, z[..., :0] if context is None else context)
        return x, torch.stack(log_slopes, -1).sum(-1)


class MAF(NormalizingFlow):
    """Stacks affine autoregressive layers whose order is reversed from one to the next.

    Each layer maps ``z_i = x_i exp(s_i) + t_i`` with ``s_i, t_i = network(x_j before i, c)``, so that
    ``log |det| = sum s_i``. Papamakarios et al., arXiv 1705.07057, eq. 3 to 5; their (mu, alpha) is (-t exp(-s), -s).

    Args:
        dim: D.
        context_dim: C; 0 for none.
        layers: number of layers.
        hidden: widths of the networks' hidden layers.
        clamp: limit of the logarithm of a layer's scale.

    Raises:
        ConfigError: for a dimension, layers or widths below 1.

    Example:
        >>> flow = MAF(3, 2)
        >>> distribution = flow(torch.zeros(5, 2))
        >>> distribution.log_prob(distribution.sample()).shape
        torch.Size([5])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 5, hidden: Sequence[int] = (64, 64),
                 clamp: float = 2.0) -> None:
        super().__init__(chain(dim, context_dim, Affine(clamp), layers, hidden))


class AutoregressiveSplineFlow(NormalizingFlow):
    """Stacks rational-quadratic spline layers as `MAF` does affine ones; data should lie in [-B, B].

    Each layer maps ``z_i = f(x_i; network(x_j before i, c))`` with f of `RationalQuadratic`, so that
    ``log |det| = sum log df/dx_i``. Durkan et al., arXiv 1906.04032 (RQ-NSF (AR)).

    Args:
        dim: D.
        context_dim: C; 0 for none.
        layers: number of layers.
        hidden: widths of the networks' hidden layers.
        bins: K.
        bound: B.

    Raises:
        ConfigError: for a dimension, layers or widths below 1, or bad bins or bounds.

    Example:
        >>> flow = AutoregressiveSplineFlow(2)
        >>> flow().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 3, hidden: Sequence[int] = (64, 64),
                 bins: int = 8, bound: float = 5.0) -> None:
        super().__init__(chain(dim, context_dim, RationalQuadratic(bins, bound), layers, hidden))


def chain(dim: int, context_dim: int, univariate: Univariate, layers: int,
          hidden: Sequence[int]) -> list[Transform]:
    """Make autoregressive layers with the order 0 .. D - 1 and its reverse in turns.

    Raises:
        ConfigError: for no dimensions or layers, and as `AutoregressiveLayer`.
    """
    if dim < 1 or layers < 1:
        raise ConfigError(f'{layers} autoregressive layers of {dim} dimensions; allowed: 1 or more of each')
    orders = range(dim), range(dim)[::-1]
    return [AutoregressiveLayer(orders[index % 2], context_dim, univariate, hidden) for index in range(layers)]
