"""Distances between chunks, for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import masked_mean

__all__ = ['LOSSES', 'find_loss', 'pseudo_huber', 'squared']

Loss = Callable[[Tensor, 'Tensor | None'], Tensor]
CORNER = 0.00054  # arXiv 2310.14189, equation 10


def squared(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean square of errors (B, H, A) over the actions that count (B, H).

    Example:
        >>> squared(torch.tensor([[[3.0, 4.0]]]))
        tensor(12.5000)
    """
    return masked_mean(error.square(), mask)


def pseudo_huber(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean over chunks of ``sqrt(m + c^2) - c``, where m is a chunk's mean square error, c = 0.00054.

    It is a chunk's distance, not its square, but for the smallest errors, so that outliers weigh less. Apart from a
    factor ``sqrt(H A)`` it is equations 8 and 10 of Improved consistency training (arXiv 2310.14189).

    Args:
        error: (B, H, A).
        mask: (B, H) bool, false for actions that don't count; a chunk without any that counts is left out.

    Example:
        >>> pseudo_huber(torch.tensor([[[3.0], [4.0]], [[3.0], [9.0]]]), torch.tensor([[True, True], [True, False]]))
        tensor(3.2672)
    """
    if mask is None:
        mask = torch.ones(error.shape[:2], dtype=torch.bool, device=error.device)
    squares = error.square().mean(-1) * mask.to(error)
    means = squares.sum(1) / mask.sum(1).clamp(min=1)
    distances = (means + CORNER ** 2).sqrt() - CORNER
    return distances.sum() / mask.any(1).sum().clamp(min=1)


LOSSES: Mapping[str, Loss] = {'squared': squared, 'pseudo_huber': pseudo_huber}


def find_loss(name: str) -> Loss:
    """Return the loss of this name.

    Raises:
        ConfigError: if there is none.

    Example:
        >>> find_loss('squared')(torch.ones(1, 2, 3))
        tensor(1.)
    """
    if name not in LOSSES:
        raise ConfigError(f'generator.loss: {name!r}; {closest(name, LOSSES)}')
    return LOSSES[name]
