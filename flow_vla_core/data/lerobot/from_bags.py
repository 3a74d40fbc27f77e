"""Bags to a LeRobotDataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
import logging
import os
from pathlib import Path
import shutil
from tempfile import TemporaryDirectory

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.lerobot.schema import Info
from flow_vla_core.data.lerobot.writer import DatasetWriter, ExportOptions, sized
from flow_vla_core.data.npy_rows import NpyRows
from flow_vla_core.data.reading import ReadOptions, read_parts
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['export_bags', 'export_episodes']


def export_bags(bags: Iterable[Path], contract: RobotContract, out: Path, options: ExportOptions | None = None,
                reading: ReadOptions | None = None, skip: Callable[[DataError], None] | None = None) -> Info:
    """Write bags as a LeRobotDataset v3.0; a folder that is there in the end is complete.

    Decoded images wait on the disk, beside the dataset, so that memory does not grow with the length of a bag.

    Args:
        bags: in the order of the episodes.
        contract: says which topics, and how they are read.
        out: folder of the dataset; must not exist.
        options: of images and files.
        reading: how episodes are cut, and where actions come from.
        skip: hears why a bag can't be used, and it is left out; without it the first such bag is an error.

    Raises:
        DataError: for a bag that can't be used, without ``skip``, or if there are none.
        ConfigError: if the folder exists, or images can't be encoded in the form that is asked for.
    """
    options = options or ExportOptions()
    read = sized(contract, 'recorded') if options.size == 'recorded' else contract
    return export_episodes(_read_all(bags, read, reading or ReadOptions(), out.parent, skip), contract, out, options)


def export_episodes(episodes: Iterable[Episode], contract: RobotContract, out: Path,
                    options: ExportOptions | None = None) -> Info:
    """Write episodes, whose images have the size that ``options`` say; see `export_bags`."""
    if out.exists():
        raise ConfigError(f'{out}: already exists')
    unfinished = out.with_name(f'{out.name}.part{os.getpid()}')
    try:
        with DatasetWriter(unfinished, contract, options) as writer:
            for episode in episodes:
                writer.write(episode)
        unfinished.rename(out)
        return writer.info
    except OSError as error:
        raise DataError(f'{out}: {error.strerror or error}') from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_all(bags: Iterable[Path], contract: RobotContract, reading: ReadOptions, disk: Path,
              skip: Callable[[DataError], None] | None) -> Iterator[Episode]:
    for bag in bags:
        try:
            yield from _read(bag, contract, reading, disk)
        except DataError as error:
            if skip is None:
                raise
            skip(error)


def _read(bag: Path, contract: RobotContract, reading: ReadOptions, disk: Path) -> Iterator[Episode]:
    """Yield the episodes of a bag, their images mapped from files that go when the next bag is read."""
    disk.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=disk, prefix='.images_') as folder:
        numbers = count()

        def grow(_: str, shape: tuple[int, ...], kind: type[np.generic]) -> NpyRows:
            return NpyRows(Path(folder) / f'{next(numbers)}.npy', shape, kind)

        parts, problems = read_parts(open_bag(bag), contract, reading, lambda _: grow)
        for problem in problems:
            logging.getLogger(__name__).warning('%s', problem)
        for part in parts:
            yield from part.episodes(Path(bag))
