"""Classifier-free guidance: what a network hears in place of a condition, and how two answers are combined."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flow_vla_core.networks import Sizes
from flow_vla_core.solvers import Field
from flow_vla_core.types import Condition

__all__ = ['NullCondition', 'blended', 'heard']


class NullCondition(nn.Module):
    """Learns what stands in for a condition that is not given: one vector, and one token if there are tokens.

    Args:
        sizes: of the condition.

    Example:
        >>> null = NullCondition(Sizes(4, 2, 3))
        >>> null.like(Condition(torch.ones(5, 3))).vector.shape
        torch.Size([5, 3])
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vector = nn.Parameter(0.02 * torch.randn(sizes.condition_dim))
        self.token = nn.Parameter(0.02 * torch.randn(sizes.token_dim)) if sizes.token_dim else None

    def like(self, condition: Condition) -> Condition:
        """Return as many null conditions, with as many tokens, as there are conditions."""
        tokens = condition.tokens
        if tokens is not None and self.token is not None:
            tokens = self.token.to(tokens).expand_as(tokens)
        return Condition(self.vector.to(condition.vector).expand_as(condition.vector), tokens)

    def drop(self, condition: Condition, share: float, generator: torch.Generator | None = None) -> Condition:
        """Put the null condition in the place of a random share of the conditions."""
        null, vector, tokens = self.like(condition), condition.vector, condition.tokens
        away = (torch.rand(len(condition), 1, generator=generator) < share).to(vector.device)
        if tokens is not None:
            tokens = torch.where(away[..., None], null.tokens, tokens)
        return Condition(torch.where(away, null.vector, vector), tokens)


def heard(condition: Condition, null: Condition | None, weight: float) -> Condition:
    """Return what a network has to be told for `blended`: the condition, the null condition, or one after the other.

    Args:
        condition: to be followed.
        null: what stands for none, of the same length; may be missing where w is 1.
        weight: w.

    Example:
        >>> len(heard(Condition(torch.ones(1, 2)), Condition(torch.zeros(1, 2)), 3.0))
        2
    """
    if weight == 1:
        return condition
    if weight == 0:
        return null
    tokens = None if condition.tokens is None else torch.cat([condition.tokens, null.tokens])
    return Condition(torch.cat([condition.vector, null.vector]), tokens)


def blended(field: Field, weight: float) -> Field:
    """Return the field ``v(null) + w (v(condition) - v(null))``, from one call of the network.

    Ho and Salimans, arXiv 2207.12598, in the convention where w = 1 follows the condition and w = 0 ignores it, both
    exactly and without a second answer; w above 1 exaggerates the condition. (The paper's weight is w - 1.)

    Args:
        field: velocity of x at t, told what `heard` returns for the same weight.
        weight: w.

    Example:
        >>> told = heard(Condition(torch.ones(1, 2)), Condition(torch.zeros(1, 2)), 3.0)
        >>> blended(lambda x, t: told.vector, 3.0)(torch.zeros(1, 2), 0.0)
        tensor([[3., 3.]])
    """
    if weight in (0, 1):
        return field

    def blend(x: Tensor, t: float) -> Tensor:
        follows, ignores = field(torch.cat([x, x]), t).chunk(2)
        return ignores + weight * (follows - ignores)

    return blend
