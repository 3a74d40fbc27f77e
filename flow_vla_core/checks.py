"""Checks of all numbers of a tensor, in one pass over them."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ['all_finite', 'bounds_of']


def all_finite(values: Tensor) -> bool:
    """Return whether no number of a tensor of any shape is NaN or infinite; true of an empty one.

    Example:
        >>> import torch
        >>> all_finite(torch.tensor([1.0, 2.0])), all_finite(torch.tensor([1.0, math.nan]))
        (True, False)
    """
    return not values.numel() or all(map(math.isfinite, bounds_of(values)))


def bounds_of(values: Tensor) -> tuple[float, float]:
    """Return the least and the largest number of a tensor that is not empty; both are NaN if one of them is.

    Example:
        >>> import torch
        >>> bounds_of(torch.tensor([[3.0, -1.0], [2.0, 0.0]]))
        (-1.0, 3.0)
    """
    least, most = values.detach().aminmax()
    return least.item(), most.item()
