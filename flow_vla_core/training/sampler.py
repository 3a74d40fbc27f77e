"""Which examples make up the batch of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from flow_vla_core.errors import DataError

__all__ = ['Sampler']


class Sampler:
    """Draws batches from an endless row of shuffled epochs; a step number alone says which, so it needs no state.

    Args:
        groups: (N,) int64, the group (instruction) of each example.
        batch_size: examples in a batch.
        seed: of the order.
        balance: draw each group equally often, with replacement, in place of each example once an epoch.

    Raises:
        DataError: if there is no example.
    """

    def __init__(self, groups: Tensor, batch_size: int, seed: int, balance: bool = False) -> None:
        if len(groups) == 0:
            raise DataError('no examples to draw from')
        self.size, self.batch_size, self.seed = len(groups), batch_size, seed
        counts = torch.bincount(groups).clamp(min=1)
        self._weights = (1 / counts.double())[groups] if balance else None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """Return the numbers (B,) of the examples of a step."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return torch.stack([self._at(place) for place in places])

    def _at(self, place: int) -> Tensor:
        epoch, index = divmod(place, self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return self._order[index]

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self._weights is None:
            return torch.randperm(self.size, generator=generator)
        return torch.multinomial(self._weights, self.size, replacement=True, generator=generator)
