"""Which examples make up the batch of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_vla_core.errors import DataError

__all__ = ['Sampler', 'balanced']


def balanced(groups: Tensor) -> Tensor:
    """Return weights (N,) by which each group is drawn equally often, however many examples (N,) it has.

    Args:
        groups: (N,) int64, the group of each example.

    Example:
        >>> balanced(torch.tensor([0, 0, 1])).tolist()
        [0.5, 0.5, 1.0]
    """
    counts = torch.bincount(groups).clamp(min=1)
    return (1 / counts.double())[groups]


class Sampler:
    """Draws batches from an endless row of shuffled epochs; a step number alone says which, so it needs no state.

    Args:
        size: number of examples N.
        batch_size: examples in a batch.
        seed: of the order.
        weights: (N,) how often each example is drawn, with replacement; None draws each once an epoch.

    Raises:
        DataError: if there is no example.

    Example:
        >>> sampler = Sampler(5, 2, seed=0)
        >>> sorted(torch.cat([sampler.batch(step) for step in range(5)]).tolist())
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(self, size: int, batch_size: int, seed: int, weights: Tensor | None = None) -> None:
        if size == 0:
            raise DataError('no examples to draw from')
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._weights = weights
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """Return the numbers (B,) of the examples of a step."""
        place, last = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < last:
            epoch, index = divmod(place, self.size)
            parts.append(self._epoch_order(epoch)[index:index + last - place])
            place += len(parts[-1])
        return torch.cat(parts)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self._weights is None:
            return torch.randperm(self.size, generator=generator)
        return torch.multinomial(self._weights, self.size, replacement=True, generator=generator)
