"""Finds bags, and says what stands in their metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import os
from pathlib import Path
import re
from typing import Any

import yaml

from flow_vla_core.errors import DataError, in_one_line

__all__ = ['MARKS', 'STORAGES', 'find_bags', 'need_bags', 'read_information', 'read_metadata', 'storage_files',
           'try_information']

STORAGES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
METADATA_LIMIT = 2 ** 24  # bytes
METADATA = 'metadata.yaml'
MARKS = 'flow_vla'  # name of the metadata inside of an MCAP file that holds our marks


def find_bags(folder: Path) -> list[Path]:
    """Return the bags at or below a folder, sorted.

    A bag is a rosbag2 folder, or one whose ``metadata.yaml`` is missing but whose files are numbered as rosbag2 does
    it, or a single file; a folder that is itself a file is that. Links are followed, each folder counts once.
    """
    folder = Path(folder)
    if _is_storage(folder):
        return [folder]
    bags: list[Path] = []
    for parent, names in _walk(folder):
        if METADATA in names:
            bags.append(parent)
        elif paths := [path for name in sorted(names) if _is_storage(path := parent / name)]:
            bags += [parent] if _is_split(paths) else paths
    return sorted(bags)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder at or below one with the names of its files; one that a link leads to twice comes once."""
    known: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in known:
            folders.clear()
            continue
        known.add(place)
        folders.sort()
        yield Path(parent), files


def need_bags(places: Iterable[Path]) -> list[Path]:
    """Return the bags at or below some places, each once. Raise `DataError` for a place without any."""
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise DataError(f'{place}: no such file or folder')
        if not (below := find_bags(place)):
            raise DataError(f'{place}: no bag at or below it')
        found.update(dict.fromkeys(below))
    return list(found)


def read_information(bag: Path) -> dict[str, Any]:
    """Return what ``metadata.yaml`` says about a bag; nothing for a bag without. Raise `DataError` if it is no bag."""
    bag = Path(bag)
    if _is_storage(bag) or not (bag / METADATA).exists() and storage_files(bag, {}):
        return {}
    path = bag / METADATA
    try:
        if path.stat().st_size > METADATA_LIMIT:
            raise DataError(f'{path}: larger than {METADATA_LIMIT} bytes')
        values = yaml.load(path.read_text(), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    except OSError as error:
        raise DataError(f'{bag}: not a rosbag2 folder: metadata.yaml: {error.strerror}') from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f'{path}: not valid YAML: {in_one_line(error)}') from error
    information = values.get('rosbag2_bagfile_information') if isinstance(values, dict) else None
    if not isinstance(information, dict) or not isinstance(information.get('custom_data') or {}, dict):
        raise DataError(f'{path}: not that of a rosbag2 folder: rosbag2_bagfile_information is missing or no mapping')
    return information


def try_information(bag: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the same and no problem; of a bag whose metadata are missing or damaged, nothing and what is wrong.

    Raises:
        DataError: if there is no storage file either.
    """
    try:
        information = read_information(bag)
    except DataError as error:
        if not storage_files(bag, {}):
            raise
        return {}, [str(error).removeprefix(f'{bag}/').removeprefix(f'{bag}: ')]
    return information, [] if information or _is_storage(Path(bag)) else [f'{METADATA} is missing']


def read_metadata(bag: Path) -> dict[str, str]:
    """Return our marks of an episode: instruction, task, outcome, contract. Raise `DataError` if it is no bag."""
    return {str(key): str(value) for key, value in (read_information(bag).get('custom_data') or {}).items()}


def storage_files(bag: Path, information: Mapping[str, Any]) -> list[Path]:
    """Return the files of a bag: those that its metadata name, or else those that lie there."""
    bag = Path(bag)
    if _is_storage(bag):
        return [bag]
    named = information.get('relative_file_paths')
    if isinstance(named, list) and named:
        return [bag / Path(str(name).replace('\0', '?')).name for name in named[:100_000]]
    found = [path for path in bag.iterdir() if _is_storage(path)] if bag.is_dir() else []
    return sorted(found, key=lambda path: (_number(path), path.name))


def _is_storage(path: Path) -> bool:
    return path.name.endswith(STORAGES) and path.is_file()


def _is_split(paths: list[Path]) -> bool:
    """Say whether files are those of one bag: ``name_0.mcap``, ``name_1.mcap`` ..."""
    stems = {re.sub(r'_\d+\..*$', '', path.name) for path in paths}
    return len(stems) == 1 and all(_number(path) >= 0 for path in paths)


def _number(path: Path) -> int:
    found = re.search(r'_(\d+)\.[a-z0-9.]+$', path.name)
    return int(found[1]) if found else -1
