"""Bags as episodes to train on and to validate on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bags import need_bags, try_information
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.parallel import read_all
from flow_vla_core.data.reading import ReadOptions
from flow_vla_core.errors import DataError, closest

__all__ = ['OUTCOMES', 'choose_bags', 'hold_out', 'load_episodes']


def choose_bags(folders: Iterable[Path], outcomes: Sequence[str] = ('success',)) -> tuple[list[Path], list[Path]]:
    """Find the bags below some folders; return those that may hold an episode with a wanted outcome, and the rest.

    Raises:
        DataError: if a folder is missing or holds no bag, an outcome is unknown or none is left.
    """
    for outcome in outcomes:
        if outcome not in OUTCOMES:
            raise DataError(f'no outcome {outcome!r}; {closest(outcome, OUTCOMES)}')
    bags = need_bags(folders)
    wanted = [bag for bag in bags if _may_hold(bag, outcomes)]
    if not wanted:
        raise DataError(f'{len(bags)} bags, none with the outcome {" or ".join(outcomes)}; those without a mark are '
                        'unknown, as --outcome unknown takes them')
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
    for found in read_all(bags, contract, workers, options, cache):
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


def _may_hold(bag: Path, outcomes: Sequence[str]) -> bool:
    """Say whether a bag's outcome is one of these, or only known when it is read, as with damaged metadata."""
    try:
        information, _ = try_information(bag)
    except DataError:
        return True
    if not information:
        return True
    outcome = (information.get('custom_data') or {}).get('outcome')
    topics = information.get('topics_with_message_count')
    inside = outcome is None and isinstance(topics, list) and any('flow_vla/msg/Episode' in str(t) for t in topics)
    return inside or str(outcome or 'unknown') in outcomes
