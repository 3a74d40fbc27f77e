"""Bags to a LeRobotDataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import os
from pathlib import Path
import shutil

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode, read_episode
from flow_vla_core.data.lerobot.schema import Info
from flow_vla_core.data.lerobot.writer import DatasetWriter, ExportOptions, sized
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['export_bags', 'export_episodes']


def export_bags(bags: Iterable[Path], contract: RobotContract, out: Path, options: ExportOptions | None = None,
                skip: Callable[[DataError], None] | None = None) -> Info:
    """Write bags as a LeRobotDataset v3.0; a folder that is there in the end is complete.

    Args:
        bags: rosbag2 folders, in the order of the episodes.
        contract: says which topics, and how they are read.
        out: folder of the dataset; must not exist.
        options: of images and files.
        skip: hears why a bag can't be used, and it is left out; without it the first such bag is an error.

    Raises:
        DataError: for a bag that can't be used, without ``skip``, or if there are none.
        ConfigError: if the folder exists, or images can't be encoded in the form that is asked for.
    """
    options = options or ExportOptions()
    read = sized(contract, 'recorded') if options.size == 'recorded' else contract
    return export_episodes(_read(bags, read, skip), contract, out, options)


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
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read(bags: Iterable[Path], contract: RobotContract, skip: Callable[[DataError], None] | None) -> Iterator[Episode]:
    for bag in bags:
        try:
            yield read_episode(bag, contract)
        except DataError as error:
            if skip is None:
                raise
            skip(error)
