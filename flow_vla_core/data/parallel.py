"""Reads many bags in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
import multiprocessing
from pathlib import Path

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.reading import ReadOptions, read_episodes
from flow_vla_core.errors import DataError

__all__ = ['read_all']

LEAST = 4  # bags for which a process is started


def read_all(bags: Sequence[Path], contract: RobotContract, workers: int = 1, options: ReadOptions | None = None,
             cache: EpisodeCache | None = None) -> Iterator[list[Episode] | DataError]:
    """Yield, in order, the episodes of each bag, or why it can't be used.

    Args:
        bags: their folders or files.
        contract: says which topics, and how they are read.
        workers: number of processes, or, for a few bags, of threads that decode images; 1 does everything here.
        options: how episodes are cut, and where actions come from.
        cache: whose episodes are memory-mapped; None decodes into memory.
    """
    reading = _Reading(contract, options or ReadOptions(), cache)
    known = {bag for bag in bags if workers > 1 and reading.find(bag) is not None}
    missing = [bag for bag in bags if bag not in known]
    processes = min(workers, len(missing) // LEAST)
    if processes <= 1:
        yield from map(reading.threaded(workers).read, bags)
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            answers = pool.map(reading.fill, missing)
            for bag in bags:
                answer = None if bag in known else next(answers)
                yield reading.read(bag) if answer is None else answer
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Reading:
    """Says how bags are read, in this process or in another one."""

    contract: RobotContract
    options: ReadOptions
    cache: EpisodeCache | None

    def threaded(self, threads: int) -> _Reading:
        """Return the same with threads that decode images, if more than one is to be had."""
        return replace(self, options=replace(self.options, threads=threads)) if threads > 1 else self

    def find(self, bag: Path) -> list[Episode] | None:
        """Return what is in the cache."""
        return self.cache.find(bag, self.contract, self.options) if self.cache else None

    def read(self, bag: Path) -> list[Episode] | DataError:
        """Read a bag, through the cache if there is one."""
        try:
            return self.cache.episodes(bag, self.contract, self.options) if self.cache \
                else read_episodes(bag, self.contract, self.options)
        except DataError as error:
            return error

    def fill(self, bag: Path) -> list[Episode] | DataError | None:
        """Do the same for another process, which opens the files of the cache itself."""
        found = self.read(bag)
        return None if self.cache and isinstance(found, list) else found
