"""Reads the episodes of any LeRobotDataset v3, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flow_vla_core.data.lerobot.schema import Info, Place
from flow_vla_core.data.lerobot.tables import decode_png, read_rows, read_table, read_tasks
from flow_vla_core.data.lerobot.video import read_frames
from flow_vla_core.errors import DataError, closest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ['Dataset', 'Frames']

NEEDED = ('episode_index', 'length', 'data/chunk_index', 'data/file_index')


@dataclass(frozen=True)
class Frames:
    """Holds an episode as it stands in a dataset.

    Args:
        numbers: feature -> (N, ...) of its type.
        images: feature -> N images, each (Y, X, 3) uint8, decoded as they are asked for, once.
        instructions: of each frame.
        row: what ``meta/episodes`` says about it, statistics left out.
    """

    numbers: Mapping[str, np.ndarray]
    images: Mapping[str, Iterator[np.ndarray]]
    instructions: tuple[str, ...]
    row: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.instructions)


class Dataset:
    """Is a LeRobotDataset v3 on this machine's disk.

    Args:
        folder: of the dataset.

    Raises:
        DataError: names the file and what is wrong with it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.info = Info.load(self.folder)

    def __len__(self) -> int:
        return len(self.episodes)

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Instructions by their numbers."""
        return read_tasks(self.folder)

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """Rows of ``meta/episodes``, statistics left out, in order."""
        paths = sorted((self.folder / 'meta/episodes').glob('*/*.parquet'))
        if not paths:
            raise DataError(f'{self.folder}: meta/episodes holds no parquet file')
        rows: list[dict[str, Any]] = []
        for path in paths:
            rows += (found := read_rows(path, 'stats/'))
            for name in NEEDED:
                if any(not isinstance(row.get(name), int) for row in found):
                    raise DataError(f'{path}: column {name!r} is missing, or holds no whole numbers')
        return sorted(rows, key=lambda row: row['episode_index'])

    def feature(self, name: str) -> Mapping[str, Any]:
        """Return the description of a feature. Raise `DataError` if there is none of this name."""
        if name not in self.info.features:
            raise DataError(f'{self.folder}: no feature {name!r}; {closest(name, self.info.features)}')
        return self.info.features[name]

    def read(self, index: int, features: Iterable[str]) -> Frames:
        """Read an episode, given its place in `episodes`, with some of its features.

        Raises:
            DataError: if a file is missing, damaged, or has not as many frames as the episode.
        """
        row, features = self.episodes[index], list(features)
        path = self.folder / _place(row, 'data/').in_path(self.info.data_path)
        columns = [name for name in features if name not in self.info.videos]
        needed = dict.fromkeys([*columns, 'timestamp', 'frame_index', 'task_index'])
        table = self._table(path, list(needed), row)
        images = {name: _images(table[name], path) for name in columns if name in self.info.cameras}
        numbers = {name: _array(table[name], self.feature(name), path) for name in needed if name not in images}
        for name in set(features) & set(self.info.videos):
            images[name] = self._video(row, name, numbers['timestamp'])
        words = tuple(self._words(int(number), path) for number in numbers['task_index'])
        return Frames(numbers, images, words, row)

    def _table(self, path: Path, columns: list[str], row: Mapping[str, Any]) -> pa.Table:
        table = read_table(path, [*columns, 'episode_index'], row['episode_index'])
        if missing := set(columns) - set(table.column_names):
            raise DataError(f'{path}: column {sorted(missing)[0]!r} is missing')
        table = table.sort_by('frame_index')
        if len(table) != row['length'] or not len(table):
            raise DataError(f'{path}: {len(table)} frames of episode {row["episode_index"]}, meta/episodes says '
                            f'{row["length"]}')
        return table

    def _video(self, row: Mapping[str, Any], name: str, times: np.ndarray) -> Iterator[np.ndarray]:
        prefix = f'videos/{name}/'
        if f'{prefix}from_timestamp' not in row or self.info.video_path is None:
            raise DataError(f'{self.folder}: {name}: meta/episodes does not say where the video of episode '
                            f'{row["episode_index"]} is')
        path = self.folder / _place(row, prefix).in_path(self.info.video_path, video_key=name)
        return read_frames(path, row[f'{prefix}from_timestamp'], times, self.info.fps)

    def _words(self, number: int, path: Path) -> str:
        if number not in self.tasks:
            raise DataError(f'{path}: task_index {number}, meta/tasks.parquet has {sorted(self.tasks)}')
        return self.tasks[number]


def _place(row: Mapping[str, Any], prefix: str) -> Place:
    return Place(int(row[f'{prefix}chunk_index']), int(row[f'{prefix}file_index']))


def _images(column: pa.ChunkedArray, path: Path) -> Iterator[np.ndarray]:
    yield from (decode_png(file.as_py(), path) for file in column)


def _array(column: pa.ChunkedArray, feature: Mapping[str, Any], path: Path) -> np.ndarray:
    """Turn a column into (N,), or (N, ...) of the feature's shape. Raise `DataError` if it does not fit."""
    import pyarrow as pa
    flat, kind = column.combine_chunks(), column.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        flat, kind = flat.flatten(), kind.value_type
    shape = (len(column),) if feature['shape'] == (1,) else (len(column), *feature['shape'])
    values = flat.to_numpy(zero_copy_only=False)
    if values.size != np.prod(shape) or flat.null_count:
        raise DataError(f'{path}: {values.size} values with {flat.null_count} empty ones do not make {shape}')
    return values.reshape(shape)
