"""Numbers that a transform learns, and that a context may move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ['ContextParameters', 'above_minus_one']

MARGIN = 0.01  # how close to -1 `above_minus_one` comes: a layer contracts at most 100 times


class ContextParameters(nn.Module):
    """Gives the P numbers of a transform: ``a + g(context)`` with a learned, and g a small network that begins at zero.

    Args:
        initial: (P,) what a begins with.
        context_dim: width C of the context; 0 for none, and then a is all.
        hidden: width of g's hidden layer.

    Example:
        >>> ContextParameters(torch.zeros(5), context_dim=3)(torch.ones(2, 3)).shape
        torch.Size([2, 5])
    """

    def __init__(self, initial: Tensor, context_dim: int = 0, hidden: int = 32) -> None:
        super().__init__()
        self.constant = nn.Parameter(initial)
        self.network = None
        if context_dim:
            last = nn.Linear(hidden, len(initial))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.network = nn.Sequential(nn.Linear(context_dim, hidden), nn.SiLU(), last)

    def forward(self, context: Tensor | None) -> Tensor:
        """(..., C) -> (..., P), or (P,) without context."""
        return self.constant if self.network is None else self.constant + self.network(context)


def above_minus_one(x: Tensor) -> Tensor:
    """Map every number above -1, and 0 to 0: ``m(x) = -1 + d + (1 - d) softplus(x + log(e - 1))`` with d = 0.01.

    Rezende and Mohamed, arXiv 1505.05770, appendix A.1, moved so that m(0) = 0, and with a margin d.

    Example:
        >>> above_minus_one(torch.tensor([-100.0, 0.0]))
        tensor([-0.9900,  0.0000])
    """
    return MARGIN - 1 + (1 - MARGIN) * torch.nn.functional.softplus(x + math.log(math.e - 1))
