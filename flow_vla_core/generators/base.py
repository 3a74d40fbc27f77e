"""What every way to make action chunks has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flow_vla_core.types import Condition

__all__ = ['Generator', 'begin_with', 'masked_mean']


class Generator(nn.Module, ABC):
    """Declares how normalised chunks (B, H, A) are learned and made; it knows no camera and no unit."""

    @abstractmethod
    def loss(self, actions: Tensor, condition: Condition, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the training loss, a scalar.

        Args:
            actions: (B, H, A).
            condition: of the same B.
            mask: (B, H) bool, false for actions that don't count.
            generator: source of randomness.
        """

    @abstractmethod
    def sample(self, condition: Condition, *, noise: Tensor | None = None, steps: int | None = None,
               prefix: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Make one chunk for each condition: (B, H, A).

        Args:
            condition: what to answer.
            noise: (B, H, A) to begin from; drawn if not given.
            steps: effort; None takes the generator's own.
            prefix: (B, D, A) actions that the chunk begins with, D below H; the rest is made to follow them.
            generator: source of randomness.
        """


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, H, A) over the actions that count (B, H)."""
    if mask is None:
        return values.mean()
    weights = mask[..., None].to(values.dtype)
    return (values * weights).sum() / (weights.sum() * values.shape[-1]).clamp(min=1)


def begin_with(prefix: Tensor | None, values: Tensor) -> Tensor:
    """Put (B, D, A) in the place of the first D of (B, H, A)."""
    return values if prefix is None else torch.cat([prefix.to(values), values[:, prefix.shape[1]:]], 1)
