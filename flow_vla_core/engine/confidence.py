"""How sure a policy is, from several of its answers to one observation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ['agreement', 'most_central']


def agreement(chunks: Tensor, spread: Tensor, firm: Tensor) -> float:
    """Return the share of the actions' variance that the observation explains, 0 to 1.

    ``1 - mean(s^2 / S^2)``, at least 0: s is the standard deviation of an action over the N chunks, S that of the same
    number over the training data. 1 where all chunks are the same, 0 where they are as far apart as any two actions of
    the data. Numbers that are constant in the data, and actions that the plan in force has fixed, do not count.

    Args:
        chunks: (N, H, A).
        spread: S, (A,).
        firm: (H,), how firmly actions are held to the plan in force; where it is 1 they are fixed.

    Returns:
        NaN for one chunk, and where nothing counts.

    Example:
        >>> agreement(torch.tensor([[[0.0]], [[1.0]]]), torch.ones(1), torch.zeros(1))
        0.5
    """
    counted = spread > 1e-6
    free = chunks[:, firm < 1][..., counted]
    if len(chunks) < 2 or free.numel() == 0:
        return math.nan
    share = (free.var(0) / spread[counted].square()).mean().item()
    return max(0.0, 1.0 - share)


def most_central(chunks: Tensor) -> Tensor:
    """Return the chunk (H, A) of (N, H, A) that is nearest to all others: the medoid; the first among equals.

    Example:
        >>> most_central(torch.tensor([[[0.0]], [[5.0]], [[1.0]]]))
        tensor([[1.]])
    """
    if len(chunks) < 3:
        return chunks[0]
    flat = chunks.flatten(1)
    return chunks[torch.cdist(flat, flat).sum(1).argmin()]
