"""Bags as episodes to train on and to validate on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
import multiprocessing
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bags import find_bags, read_information
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.reading import ReadOptions, read_episodes
from flow_vla_core.errors import DataError, closest

__all__ = ['OUTCOMES', 'choose_bags', 'hold_out', 'load_episodes']

LEAST = 4  # bags for which a process is started


def choose_bags(folders: Iterable[Path], outcomes: Sequence[str] = ('success',)) -> tuple[list[Path], list[Path]]:
    """Find the bags below some folders; return those that may hold an episode with a wanted outcome, and the rest.

    Raises:
        DataError: if a folder is missing or holds no bag, a bag can't be read, an outcome is unknown or none is left.
    """
    for outcome in outcomes:
        if outcome not in OUTCOMES:
            raise DataError(f'no outcome {outcome!r}; {closest(outcome, OUTCOMES)}')
    bags: list[Path] = []
    for folder in map(Path, folders):
        if not folder.exists():
            raise DataError(f'{folder}: no such folder')
        found = find_bags(folder)
        if not found:
            raise DataError(f'{folder}: holds no rosbag2 folder')
        bags += found
    wanted = [bag for bag in bags if _may_hold(bag, outcomes)]
    if not wanted:
        raise DataError(f'{len(bags)} bags, none with the outcome {" or ".join(outcomes)}')
    return wanted, [bag for bag in bags if bag not in set(wanted)]


def load_episodes(bags: Sequence[Path], contract: RobotContract, workers: int = 1,
                  skip: Callable[[DataError], None] | None = None,
                  options: ReadOptions | None = None, cache: EpisodeCache | None = None) -> Iterator[Episode]:
    """Read bags in several processes, in order; with a cache, each bag is decoded only once.

    Args:
        bags: their folders.
        contract: says which topics, and how they are read.
        workers: number of processes; 1 reads in this one.
        skip: hears why a bag can't be used, and it is left out; without it the first such bag is an error.
        options: how episodes are cut, and where actions come from.
        cache: whose episodes are memory-mapped; None decodes into memory.

    Raises:
        DataError: for the first bag that can't be used, without ``skip``, or if none is left.
    """
    left = 0
    for found in _read_all(bags, _Reading(contract, options, cache), workers):
        if isinstance(found, list):
            left += len(found)
            yield from found
        elif skip is None:
            raise found
        else:
            skip(found)
    if not left:
        raise DataError(f'none of {len(bags)} bags can be used')


def hold_out(episodes: Sequence[Episode], share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Split episodes into those to train on and those to validate on, each instruction by the same share.

    An instruction with a single episode keeps it for training; otherwise, with a share above 0, at least one is kept
    for validation.

    Args:
        episodes: in an order that does not change.
        share: for validation, from 0 to below 1.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    held: set[int] = set()
    for text in sorted({episode.instruction for episode in episodes}):
        numbers = [index for index, episode in enumerate(episodes) if episode.instruction == text]
        count = min(max(1, round(share * len(numbers))), len(numbers) - 1) if share > 0 else 0
        held |= set(random.permutation(numbers)[:count].tolist())
    return ([episode for index, episode in enumerate(episodes) if index not in held],
            [episode for index, episode in enumerate(episodes) if index in held])


@dataclass(frozen=True)
class _Reading:
    """Says how bags are read, in this process or in another one."""

    contract: RobotContract
    options: ReadOptions | None
    cache: EpisodeCache | None

    def threaded(self, threads: int) -> _Reading:
        """Return the same with threads that decode images, if there is more than one to be had."""
        options = self.options or ReadOptions()
        return replace(self, options=replace(options, threads=max(options.threads, threads if threads > 1 else 0)))

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


def _read_all(bags: Sequence[Path], reading: _Reading, workers: int) -> Iterator[list[Episode] | DataError]:
    known = {bag for bag in bags if workers > 1 and reading.find(bag) is not None}
    missing = [bag for bag in bags if bag not in known]
    asked, workers = workers, min(workers, len(missing) // LEAST)
    if workers <= 1:
        yield from map(reading.threaded(asked).read, bags)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            answers = pool.map(reading.fill, missing)
            for bag in bags:
                answer = None if bag in known else next(answers)
                yield reading.read(bag) if answer is None else answer
        finally:
            pool.shutdown(cancel_futures=True)


def _may_hold(bag: Path, outcomes: Sequence[str]) -> bool:
    """Say whether a bag's outcome is one of these, or stands in Episode messages only."""
    information = read_information(bag)
    outcome = (information.get('custom_data') or {}).get('outcome')
    topics = information.get('topics_with_message_count')
    inside = outcome is None and isinstance(topics, list) and any('flow_vla/msg/Episode' in str(t) for t in topics)
    return inside or str(outcome or 'unknown') in outcomes
