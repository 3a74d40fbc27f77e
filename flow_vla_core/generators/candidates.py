"""Choice among several chunks, for families that can't continue one that has begun."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['CANDIDATES', 'more_noise', 'nearest_beginning']

CANDIDATES = 16


def more_noise(noise: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw further Gaussian noise to some that is given: (B, ...) -> (B * count, ...), the given one always first.

    Args:
        noise: given.
        count: number for each element of the batch.
        generator: source of randomness.

    Example:
        >>> more_noise(torch.zeros(2, 3), 4).reshape(2, 4, 3)[:, 0]
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    shape = (len(noise), count - 1, *noise.shape[1:])
    return torch.cat([noise[:, None], torch.randn(shape, generator=generator).to(noise)], 1).flatten(0, 1)


def nearest_beginning(prefix: Tensor, chunks: Tensor) -> Tensor:
    """Choose for each prefix (B, D, A) the chunk that begins most like it: (B * N, H, A) -> (B, H, A).

    Args:
        prefix: how a chunk has to begin.
        chunks: N in a row for each prefix.

    Example:
        >>> chunks = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1).expand(4, 2, 1)
        >>> nearest_beginning(torch.tensor([[[2.2]], [[2.9]]]), chunks)[:, 0, 0]
        tensor([2., 3.])
    """
    several = chunks.unflatten(0, (len(prefix), -1))
    distance = (several[:, :, :prefix.shape[1]] - prefix[:, None]).square().sum((2, 3))
    return several[torch.arange(len(prefix), device=chunks.device), distance.argmin(1)]
