"""Coupling layers: one half of the numbers decides what happens to the other half."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.base import NormalizingFlow, Transform
from flow_vla_core.flows.conditioners import Conditioner
from flow_vla_core.flows.splines import RationalQuadratic
from flow_vla_core.flows.univariate import Affine, Univariate

__all__ = ['CouplingLayer', 'RealNVP', 'Shuffle', 'SplineFlow', 'couple']


class CouplingLayer(Transform):
    """Keeps one half of x bit by bit and maps each number of the other: ``z_b = f(x_b; network(x_a, c)), z_a = x_a``.

    Dinh et al., arXiv 1605.08803, eq. 4 to 8. It begins as the identity.

    Args:
        dim: D, 2 or more; the first half has D // 2 numbers.
        context_dim: C; 0 for none.
        univariate: f.
        keep_first: whether the first half is the one that stays.
        hidden: widths of the network's hidden layers.

    Raises:
        ConfigError: for fewer than 2 dimensions.

    Example:
        >>> layer = CouplingLayer(3, 2, Affine())
        >>> x, context = torch.randn(5, 3), torch.randn(5, 2)
        >>> z, log_det = layer(x, context)
        >>> torch.equal(z, x), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(self, dim: int, context_dim: int, univariate: Univariate, keep_first: bool = True,
                 hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__(dim, context_dim)
        if dim < 2:
            raise ConfigError(f'a coupling layer of {dim} dimension; allowed: 2 or more')
        self.univariate, self.keep_first = univariate, keep_first
        self.halves = dim // 2, dim - dim // 2
        kept, changed = self.halves if keep_first else self.halves[::-1]
        self.network = Conditioner(kept, context_dim, changed, univariate.parameters, hidden)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        kept, changed = self._split(x)
        changed, log_slope = self.univariate.forward(changed, self.network(kept, context))
        return self._join(kept, changed), log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        kept, changed = self._split(z)
        changed, log_slope = self.univariate.inverse(changed, self.network(kept, context))
        return self._join(kept, changed), log_slope.sum(-1)

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        first, second = values.split(self.halves, -1)
        return (first, second) if self.keep_first else (second, first)

    def _join(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((kept, changed) if self.keep_first else (changed, kept), -1)


class Shuffle(Transform):
    """Puts the numbers with even indices first, so that halves mix: ``z = (x_0, x_2, .., x_1, x_3, ..)``.

    A permutation, whose log-determinant is 0 (Dinh et al., arXiv 1605.08803, section 3.5, alternate halves instead).

    Args:
        dim: D.
        context_dim: C, which it does not look at.

    Example:
        >>> Shuffle(5)(torch.arange(5.0))[0]
        tensor([0., 2., 4., 1., 3.])
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        order = torch.cat((torch.arange(0, dim, 2), torch.arange(1, dim, 2)))
        self.register_buffer('order', order, persistent=False)
        self.register_buffer('back', order.argsort(), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        return x[..., self.order], x.new_zeros(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        return z[..., self.back], z.new_zeros(z.shape[:-1])


class RealNVP(NormalizingFlow):
    """Stacks affine coupling layers whose halves take turns; from 3 dimensions on they are shuffled after each pair.

    Each layer keeps ``z_a = x_a`` and maps ``z_b = x_b exp(s) + t`` with ``s, t = network(x_a, c)``, so that
    ``log |det| = sum s``. Dinh et al., arXiv 1605.08803, eq. 4 to 7.

    Args:
        dim: D, 2 or more.
        context_dim: C; 0 for none.
        layers: number of coupling layers, 2 or more so that every number is mapped.
        hidden: widths of the networks' hidden layers.
        clamp: limit of the logarithm of a layer's scale.

    Raises:
        ConfigError: for fewer than 2 dimensions or layers, or bad widths.

    Example:
        >>> flow = RealNVP(2, 3)
        >>> distribution = flow(torch.zeros(5, 3))
        >>> distribution.log_prob(distribution.sample()).shape
        torch.Size([5])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 6, hidden: Sequence[int] = (64, 64),
                 clamp: float = 2.0) -> None:
        super().__init__(couple(dim, context_dim, Affine(clamp), layers, hidden))


class SplineFlow(NormalizingFlow):
    """Stacks rational-quadratic spline coupling layers, as `RealNVP` does affine ones; data should lie in [-B, B].

    Each layer keeps ``z_a = x_a`` and maps ``z_b = f(x_b; network(x_a, c))`` with f of `RationalQuadratic`, so that
    ``log |det| = sum log df/dx_b``. Durkan et al., arXiv 1906.04032 (RQ-NSF (C)).

    Args:
        dim: D, 2 or more.
        context_dim: C; 0 for none.
        layers: number of coupling layers, 2 or more so that every number is mapped.
        hidden: widths of the networks' hidden layers.
        bins: K.
        bound: B.

    Raises:
        ConfigError: for fewer than 2 dimensions or layers, or bad widths, bins or bounds.

    Example:
        >>> flow = SplineFlow(4)
        >>> flow().sample((5,)).shape
        torch.Size([5, 4])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 6, hidden: Sequence[int] = (64, 64),
                 bins: int = 8, bound: float = 5.0) -> None:
        super().__init__(couple(dim, context_dim, RationalQuadratic(bins, bound), layers, hidden))


def couple(dim: int, context_dim: int, univariate: Univariate, layers: int,
           hidden: Sequence[int]) -> list[Transform]:
    """Make coupling layers whose halves take turns, with shuffles after each pair where halves could not mix.

    Raises:
        ConfigError: for fewer than 2 layers, and as `CouplingLayer`.
    """
    if layers < 2:
        raise ConfigError(f'{layers} coupling layers; allowed: 2 or more, so that every number is mapped')
    made: list[Transform] = []
    for index in range(layers):
        if index and index % 2 == 0 and dim > 2:
            made.append(Shuffle(dim, context_dim))
        made.append(CouplingLayer(dim, context_dim, univariate, index % 2 == 0, hidden))
    return made
