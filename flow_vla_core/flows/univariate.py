"""Bijections of single numbers, whose parameters a network computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from flow_vla_core.errors import ConfigError

__all__ = ['Affine', 'Univariate', 'soft_clamp']


class Univariate(ABC):
    """Declares a monotonic bijection of the real line; parameters that are all zero make it the identity.

    Shapes: x and y (...), parameters (..., P), logarithms of the slope (...).
    """

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Number of parameters P of one bijection."""

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and ``log dy/dx``."""

    @abstractmethod
    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and ``log dx/dy``."""


@dataclass(frozen=True)
class Affine(Univariate):
    """Scales and shifts: ``y = x exp(s) + t`` with ``s = soft_clamp(a)`` for the parameters (t, a).

    The clamp keeps |s| below its limit in both directions, and the gradient above 0.
    Dinh et al., arXiv 1605.08803, eq. 7.

    Args:
        clamp: limit of |s|.

    Raises:
        ConfigError: if it is not above 0.

    Example:
        >>> import torch
        >>> y, log_slope = Affine(clamp=2.0).forward(torch.tensor([3.0]), torch.tensor([[1.0, 2.0]]))
        >>> bool(y == 3 * torch.e + 1), log_slope
        (True, tensor([1.]))
    """

    clamp: float = 2.0

    def __post_init__(self) -> None:
        if not self.clamp > 0:
            raise ConfigError(f'affine clamp: {self.clamp}; allowed: above 0')

    @property
    def parameters(self) -> int:
        """Two: shift and scale."""
        return 2

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(...), (..., 2) -> (...), (...)."""
        shift, scale = self._constrain(parameters)
        return x * scale.exp() + shift, scale

    def inverse(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(...), (..., 2) -> (...), (...)."""
        shift, scale = self._constrain(parameters)
        return (y - shift) * (-scale).exp(), -scale

    def _constrain(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = parameters.unbind(-1)
        return shift, soft_clamp(scale, self.clamp)


def soft_clamp(values: Tensor, limit: float) -> Tensor:
    """Return ``a / (1 + |a| / limit)``, which is about a near 0, and has a gradient everywhere."""
    return values / (1 + values.abs() / limit)
