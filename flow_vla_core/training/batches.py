"""The examples of each step, cut into shards, and fetched early."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.objective import Objective
from flow_vla_core.training.randomness import source_of
from flow_vla_core.training.world import World

__all__ = ['Batches', 'Shard']


@dataclass(frozen=True)
class Shard:
    """Holds a part of a batch.

    Args:
        examples: as the objective loaded them.
        generator: source of all randomness of this part; seed, step and the number of the part name its beginning.
    """

    examples: Any
    generator: torch.Generator


class Batches:
    """Cuts the batch of each step into ``accumulate`` shards and fetches those of this process.

    What a shard is depends on seed, step and its number alone: not on what was asked for before, nor on how many
    processes share the work.

    Args:
        objective: says which examples, and loads them.
        config: of the training.
        world: the processes that share the work.

    Raises:
        ConfigError: if there are fewer shards than processes.

    Example:
        >>> from flow_vla_core.flows import RealNVP
        >>> from flow_vla_core.training.tensor_objectives import DensityObjective
        >>> objective = DensityObjective(RealNVP(2), torch.randn(50, 2))
        >>> batches = Batches(objective, LoopConfig(batch_size=8, accumulate=2), World())
        >>> [len(shard.examples) for shard in batches.shards(0)]
        [4, 4]
    """

    def __init__(self, objective: Objective, config: LoopConfig, world: World) -> None:
        world.check_shards(config.accumulate)
        self._objective, self._config = objective, config
        self._sampler = objective.sampler(config)
        self._mine = range(world.rank, config.accumulate, world.size)
        self._drawn: tuple[int, tuple[Tensor, ...]] = -1, ()
        self._ahead = objective.ahead * len(self._mine)
        self._pool = ThreadPoolExecutor(1, 'load') if self._ahead else None
        self._waiting: deque[tuple[tuple[int, int], Future[Shard]]] = deque()

    def shards(self, step: int) -> Iterator[Shard]:
        """Yield the shards of a step that this process computes."""
        return (self._take(step, number) for number in self._mine)

    def load(self, step: int, number: int) -> Shard:
        """Fetch any shard, now."""
        if self._drawn[0] != step:
            self._drawn = step, self._sampler.batch(step).chunk(self._config.accumulate)
        generator = source_of(self._config.seed, step, number)
        return Shard(self._objective.load(self._drawn[1][number], generator), generator)

    def _take(self, step: int, number: int) -> Shard:
        if self._pool is None:
            return self.load(step, number)
        if not self._waiting or self._waiting[0][0] != (step, number):
            self._forget()
            self._fetch(step, number)
        while len(self._waiting) <= self._ahead:
            self._fetch(*self._after(*self._waiting[-1][0]))
        return self._waiting.popleft()[1].result()

    def _fetch(self, step: int, number: int) -> None:
        self._waiting.append(((step, number), self._pool.submit(self.load, step, number)))

    def _forget(self) -> None:
        while self._waiting:
            self._waiting.pop()[1].cancel()

    def _after(self, step: int, number: int) -> tuple[int, int]:
        following = number + self._mine.step
        return (step, following) if following in self._mine else (step + 1, self._mine.start)
