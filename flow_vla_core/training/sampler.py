"""Which examples make up the batch of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from flow_vla_core.errors import DataError
from flow_vla_core.training.randomness import source_of

__all__ = ['BatchSampler', 'LiveSampler', 'Sampler', 'balanced']


class BatchSampler(ABC):
    """Declares which examples make up the batch of a step; a step number alone says which, so it needs no state."""

    @abstractmethod
    def batch(self, step: int) -> Tensor:
        """Return the numbers (B,) of the examples of a step. Raise `DataError` if there are none to draw from."""


class Sampler(BatchSampler):
    """Draws batches from an endless row of shuffled epochs, or by weights.

    Args:
        size: number of examples N.
        batch_size: examples in a batch.
        seed: of the order.
        weights: (N,) how often each example is drawn, with replacement; None draws each once an epoch.

    Raises:
        DataError: if there is no example, or none with a weight above 0.

    Example:
        >>> sampler = Sampler(5, 2, seed=0)
        >>> sorted(torch.cat([sampler.batch(step) for step in range(5)]).tolist())
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """

    def __init__(self, size: int, batch_size: int, seed: int, weights: Tensor | None = None) -> None:
        if size == 0:
            raise DataError('no examples to draw from')
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._sums = None if weights is None else _sums(weights)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """Return the numbers (B,) of the examples of a step."""
        if self._sums is not None:
            return _draw(self._sums, self.batch_size, source_of(self.seed, step))
        place, last = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while place < last:
            epoch, index = divmod(place, self.size)
            parts.append(self._epoch_order(epoch)[index:index + last - place])
            place += len(parts[-1])
        return torch.cat(parts)

    def _epoch_order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
        return self._order


class LiveSampler(BatchSampler):
    """Draws each batch, with replacement, from the examples that are there at its step: for buffers that change.

    Args:
        size: tells the number of examples N.
        batch_size: examples in a batch.
        seed: of the order.
        weights: tells (N,) how often each example is drawn; None draws all equally often.

    Example:
        >>> buffer = [0.5, 0.25]
        >>> sampler = LiveSampler(lambda: len(buffer), 100, seed=0)
        >>> sampler.batch(0).max().item()
        1
        >>> buffer += [0.125, 0.0]
        >>> sampler.batch(1).max().item()
        3
    """

    def __init__(self, size: Callable[[], int], batch_size: int, seed: int,
                 weights: Callable[[], Tensor | None] = lambda: None) -> None:
        self._size, self._weights, self.batch_size, self.seed = size, weights, batch_size, seed

    def batch(self, step: int) -> Tensor:
        """Return the numbers (B,) of the examples of a step."""
        size, weights = self._size(), self._weights()
        if size == 0:
            raise DataError(f'step {step}: no examples to draw from')
        generator = source_of(self.seed, step)
        if weights is None:
            return torch.randint(size, (self.batch_size,), generator=generator)
        return _draw(_sums(weights), self.batch_size, generator)


def balanced(groups: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return weights (N,) by which each group is drawn equally often, however many examples (N,) it has.

    Args:
        groups: (N,) int64, the group of each example.
        weights: (N,) how often the examples of one group are drawn, one beside the other; a group without any is not.

    Example:
        >>> balanced(torch.tensor([0, 0, 1])).tolist()
        [0.5, 0.5, 1.0]
        >>> balanced(torch.tensor([0, 0, 1]), torch.tensor([3.0, 1.0, 5.0])).tolist()
        [0.75, 0.25, 1.0]
    """
    weights = torch.ones(len(groups)).double() if weights is None else weights.double()
    totals = torch.bincount(groups, weights)
    return weights / totals.where(totals > 0, 1.0)[groups]


def _sums(weights: Tensor) -> Tensor:
    """Add up weights, (N,) double; torch.multinomial would end at 2^24 of them."""
    sums = weights.double().cumsum(0)
    if not sums[-1] > 0:
        raise DataError(f'{len(weights)} examples, none with a weight above 0')
    return sums


def _draw(sums: Tensor, count: int, generator: torch.Generator) -> Tensor:
    places = torch.rand(count, generator=generator, dtype=torch.double) * sums[-1]
    return torch.searchsorted(sums, places, right=True).clamp(max=len(sums) - 1)
