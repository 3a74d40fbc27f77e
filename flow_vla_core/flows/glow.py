"""Glow for vectors: normalisation, a learned linear mixture, affine coupling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows.base import NormalizingFlow, Transform
from flow_vla_core.flows.coupling import CouplingLayer
from flow_vla_core.flows.univariate import Affine

__all__ = ['ActNorm', 'Glow', 'LinearLU']


class ActNorm(Transform):
    """Scales and shifts each number: ``z = (x - m) exp(-s)``; Kingma and Dhariwal, arXiv 1807.03039, section 3.1.

    The first batch of two or more samples that it sees in training sets m and s to their mean and the logarithm of
    their standard deviation; a constant number keeps s = 0. Saved weights remember that this has happened.

    Args:
        dim: D.
        context_dim: C, which it does not look at.

    Example:
        >>> layer = ActNorm(3)
        >>> z, _ = layer(5 + 2 * torch.randn(100, 3))
        >>> torch.allclose(z.mean(0), torch.zeros(3), atol=1e-5), bool(layer.ready)
        (True, True)
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.register_buffer('ready', torch.tensor(False))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        if self.training and not self.ready:
            self._begin(x.detach().reshape(-1, self.dim))
        return (x - self.mean) * (-self.log_scale).exp(), -self.log_scale.sum().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        return z * self.log_scale.exp() + self.mean, self.log_scale.sum().expand(z.shape[:-1])

    @torch.no_grad()
    def _begin(self, samples: Tensor) -> None:
        """Take mean and scale from samples (N, D)."""
        if len(samples) < 2:
            return
        deviation, mean = torch.std_mean(samples, 0)
        constant = deviation <= 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.log_scale.copy_(torch.where(constant, 1, deviation).log())
        self.ready.fill_(True)


class LinearLU(Transform):
    """Mixes the numbers by a matrix: ``z = P L U x``, L with unit diagonal, U with the diagonal ``sign exp(d)``.

    The log-determinant is ``sum d``; back it goes by two triangular solves. The permutation P and the signs stay as
    they are. It begins as a random rotation. Kingma and Dhariwal, arXiv 1807.03039, eq. 10 and 11.

    Args:
        dim: D.
        context_dim: C, which it does not look at.

    Example:
        >>> layer = LinearLU(3)
        >>> z, log_det = layer(torch.eye(3))
        >>> torch.allclose(z @ z.T, torch.eye(3), atol=1e-5), torch.allclose(log_det, torch.zeros(3), atol=1e-5)
        (True, True)
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__(dim, context_dim)
        rotation = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
        permutation, lower, upper = (part.to(torch.get_default_dtype()) for part in torch.linalg.lu(rotation))
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())
        self.register_buffer('sign', upper.diagonal().sign())
        self.register_buffer('order', permutation.argmax(1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        lower, upper = self._factors()
        return functional.linear(x, (lower @ upper)[self.order]), self.log_diagonal.sum().expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        lower, upper = self._factors()
        columns = z.reshape(-1, self.dim)[:, self.order.argsort()].T
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, columns, upper=True).T.reshape(z.shape)
        return x, -self.log_diagonal.sum().expand(z.shape[:-1])

    def _factors(self) -> tuple[Tensor, Tensor]:
        one = torch.eye(self.dim, dtype=self.lower.dtype, device=self.lower.device)
        diagonal = self.sign * self.log_diagonal.exp()
        return self.lower.tril(-1) + one, self.upper.triu(1) + diagonal.diag()


class Glow(NormalizingFlow):
    """Stacks steps of `ActNorm`, `LinearLU` and an affine `CouplingLayer`; Kingma and Dhariwal, arXiv 1807.03039.

    Each step is ``z = couple(P L U (x - m) exp(-s))``; its log-determinant is ``-sum s + sum log |diag U|`` plus that
    of the coupling (table 1 of the paper, without its images).

    Args:
        dim: D, 2 or more.
        context_dim: C; 0 for none.
        layers: number of steps.
        hidden: widths of the networks' hidden layers.
        clamp: limit of the logarithm of a coupling layer's scale.

    Raises:
        ConfigError: for fewer than 2 dimensions, no layers, or bad widths.

    Example:
        >>> flow = Glow(4, 3)
        >>> distribution = flow(torch.zeros(5, 3))
        >>> distribution.log_prob(distribution.sample()).shape
        torch.Size([5])
    """

    def __init__(self, dim: int, context_dim: int = 0, layers: int = 6, hidden: Sequence[int] = (64, 64),
                 clamp: float = 2.0) -> None:
        if layers < 1:
            raise ConfigError(f'{layers} steps of Glow; allowed: 1 or more')
        super().__init__([transform for _ in range(layers) for transform in (
            ActNorm(dim, context_dim), LinearLU(dim, context_dim),
            CouplingLayer(dim, context_dim, Affine(clamp), hidden=hidden))])
