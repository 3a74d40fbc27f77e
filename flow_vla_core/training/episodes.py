"""Bags as episodes to train on and to validate on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
import multiprocessing
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bags import find_bags, read_metadata
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.reading import ReadOptions, read_episodes
from flow_vla_core.errors import DataError, closest

__all__ = ['OUTCOMES', 'choose_bags', 'hold_out', 'load_episodes']


def choose_bags(folders: Iterable[Path], outcomes: Sequence[str] = ('success',)) -> tuple[list[Path], list[Path]]:
    """Find the bags below some folders; return those with a wanted outcome, and the rest.

    Raises:
        DataError: if a folder is missing or holds no bag, a bag can't be read, an outcome is unknown or none is left.
    """
    for outcome in outcomes:
        if outcome not in OUTCOMES:
            raise DataError(f'no outcome {outcome!r}; {closest(outcome, OUTCOMES)}')
    bags: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f'{folder}: no such folder')
        found = find_bags(folder)
        if not found:
            raise DataError(f'{folder}: holds no rosbag2 folder')
        bags += found
    wanted = [bag for bag in bags if read_metadata(bag).get('outcome', 'unknown') in outcomes]
    if not wanted:
        raise DataError(f'{len(bags)} bags, none with the outcome {" or ".join(outcomes)}')
    return wanted, [bag for bag in bags if bag not in set(wanted)]


def load_episodes(bags: Sequence[Path], contract: RobotContract, workers: int = 1,
                  skip: Callable[[DataError], None] | None = None,
                  options: ReadOptions | None = None) -> Iterator[Episode]:
    """Read bags in several processes, in order.

    Args:
        bags: their folders.
        contract: says which topics, and how they are read.
        workers: number of processes; 1 reads in this one.
        skip: hears why a bag can't be used, and it is left out; without it the first such bag is an error.
        options: how episodes are cut, and where actions come from.

    Raises:
        DataError: for the first bag that can't be used, without ``skip``, or if none is left.
    """
    left = 0
    for found in _read_all(bags, contract, workers, options):
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


def _read_all(bags: Sequence[Path], contract: RobotContract, workers: int,
              options: ReadOptions | None) -> Iterator[list[Episode] | DataError]:
    read = partial(_try, contract, options)
    if workers <= 1:
        yield from map(read, bags)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context('spawn')) as pool:
        try:
            yield from pool.map(read, bags, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def _try(contract: RobotContract, options: ReadOptions | None, bag: Path) -> list[Episode] | DataError:
    try:
        return read_episodes(bag, contract, options)
    except DataError as error:
        return error
