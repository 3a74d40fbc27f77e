"""Writes episodes as a LeRobotDataset v3.0, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
import json
from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.lerobot import schema
from flow_vla_core.data.lerobot.files import DataFiles, VideoFiles
from flow_vla_core.data.lerobot.statistics import ImageStatistics, NumberStatistics
from flow_vla_core.data.lerobot.tables import write_tasks
from flow_vla_core.data.lerobot.video import CODECS, describe_video
from flow_vla_core.errors import ConfigError, DataError, closest

__all__ = ['IMAGE_FORMS', 'SIZES', 'DatasetWriter', 'ExportOptions', 'Limits', 'sized']

IMAGE_FORMS = (*CODECS, 'png')
SIZES = ('recorded', 'policy')
EPISODES_IN_FILE = 1000  # rows of meta/episodes
BATCH = 64               # images that are counted, or compressed, at once


@dataclass(frozen=True)
class Limits:
    """Says when a file ends, and a folder of files; lerobot's own by default.

    Args:
        data_megabytes: size at which no further episode goes into a parquet file.
        video_megabytes: the same for a video.
        files: in a folder.
    """

    data_megabytes: int = 100
    video_megabytes: int = 200
    files: int = 1000


@dataclass(frozen=True)
class ExportOptions:
    """Says how episodes are written.

    Args:
        images: ``video`` (AV1, as lerobot), ``fine-video`` (H.264 with colours at full size) or ``png`` (no loss).
        size: of the images: ``recorded``, or ``policy``, the smaller one that the policy sees.
        limits: of the files.

    Raises:
        ConfigError: if there is no such form or size.
    """

    images: str = 'video'
    size: str = 'recorded'
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for key, value, allowed in (('images', self.images, IMAGE_FORMS), ('size', self.size, SIZES)):
            if value not in allowed:
                raise ConfigError(f'{key}: {value!r}; {closest(value, allowed)}')


def sized(contract: RobotContract, size: str) -> RobotContract:
    """Return a contract whose images are both published and seen at the recorded size, or at the policy's."""
    key, of = ('size', 'resolution') if size == 'recorded' else ('resolution', 'size')
    cameras = tuple(camera.model_copy(update={key: getattr(camera, of)}) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras})


class DatasetWriter:
    """Writes episodes of one contract; use it as a context manager, whose end makes the dataset complete.

    The contract goes along, with the resolution that the images have in the dataset.

    Args:
        folder: of the dataset; must not exist.
        contract: of the episodes.
        options: of images and files.

    Raises:
        ConfigError: if the folder exists, or the contract's rate is no whole number of frames a second.
    """

    def __init__(self, folder: Path, contract: RobotContract, options: ExportOptions | None = None) -> None:
        options = options or ExportOptions()
        self._kept = contract if options.size == 'recorded' else sized(contract, 'policy')
        contract, images, limits = sized(contract, options.size), options.images, options.limits
        self._info = replace(schema.make_info(contract, images != 'png'), chunks_size=limits.files,
                             data_files_size_in_mb=limits.data_megabytes,
                             video_files_size_in_mb=limits.video_megabytes)
        try:
            (folder / 'meta').mkdir(parents=True)
        except FileExistsError as error:
            raise ConfigError(f'{folder}: already exists') from error
        self._folder, self._contract, self._open = folder, contract, ExitStack()
        self._data = DataFiles(folder, self._info, self._open)
        self._videos = {} if images == 'png' else {
            schema.camera_key(camera): VideoFiles(folder, camera, self._info, CODECS[images], self._open)
            for camera in contract.cameras}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._statistics: dict[str, list[NumberStatistics | ImageStatistics]] = {}

    @property
    def info(self) -> schema.Info:
        """What was written so far."""
        return self._info

    def write(self, episode: Episode) -> None:
        """Add an episode. Raise `DataError` if its shapes are not the contract's."""
        self._check(episode)
        number, first = self._info.total_episodes, self._info.total_frames
        task = self._tasks.setdefault(episode.instruction, len(self._tasks))
        numbers = self._numbers(episode, number, first, task)
        views = {schema.camera_key(camera): _three_channels(episode.images[camera.name])
                 for camera in self._contract.cameras}
        row = {'episode_index': number, 'tasks': [episode.instruction], 'length': len(episode),
               **self._data.write(numbers, {} if self._videos else views),
               'dataset_from_index': first, 'dataset_to_index': first + len(episode)}
        for key, files in self._videos.items():
            row |= files.write(views[key])
        row |= {f'flow_vla/{field}': _plain(getattr(episode, field)) for field in schema.EPISODE_FIELDS}
        self._rows.append(row | self._summarise(numbers, views))
        self._info = replace(self._info, total_episodes=number + 1, total_frames=first + len(episode),
                             total_tasks=len(self._tasks), splits={'train': f'0:{number + 1}'})

    def close(self) -> None:
        """Complete the files and write what stands in ``meta``. Raise `DataError` if there are no episodes."""
        self._open.close()
        if not self._rows:
            raise DataError(f'{self._folder}: no episodes')
        self._write_episodes()
        write_tasks(self._folder, list(self._tasks))
        statistics = {key: type(parts[0]).merge(parts).summary() for key, parts in self._statistics.items()}
        (self._folder / schema.STATS_FILE).write_text(json.dumps(schema.as_json(statistics), indent=4))
        self._kept.dump(self._folder / schema.CONTRACT_FILE)
        features = {key: dict(feature) for key, feature in self._info.features.items()}
        for key in self._videos:
            features[key]['info'] = describe_video(self._folder / schema.Place().in_path(schema.VIDEO_PATH,
                                                                                         video_key=key))
        self._info = replace(self._info, features=features)
        self._info.save(self._folder)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._open.close()

    def _check(self, episode: Episode) -> None:
        wanted = {schema.STATE: self._contract.state_dim, schema.ACTION: self._contract.action_dim}
        for key, values in ((schema.STATE, episode.state), (schema.ACTION, episode.actions)):
            if values.shape != (len(episode), wanted[key]):
                raise DataError(f'{episode.source}: {key}: {values.shape}, expected {(len(episode), wanted[key])}')
        for camera in self._contract.cameras:
            shape, expected = episode.images[camera.name].shape, (len(episode), *camera.size, camera.channels)
            if shape != expected:
                raise DataError(f'{episode.source}: {schema.camera_key(camera)}: {shape}, expected {expected}')

    def _numbers(self, episode: Episode, number: int, first: int, task: int) -> dict[str, np.ndarray]:
        """Return the columns that are not images, (N, D)."""
        count = len(episode)
        frames, last = np.arange(count), np.arange(count) == count - 1
        columns = {schema.STATE: episode.state, schema.ACTION: episode.actions, 'next.done': last,
                   'next.success': last & (episode.outcome == 'success'), 'stamp': episode.stamps,
                   'actor': episode.actors.astype(np.int64), 'timestamp': (frames / self._info.fps).astype(np.float32),
                   'frame_index': frames, 'episode_index': np.full(count, number), 'index': first + frames,
                   'task_index': np.full(count, task)}
        return {key: values.reshape(count, -1) for key, values in columns.items() if key in self._info.features}

    def _summarise(self, numbers: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the columns ``stats/FEATURE/NAME`` of an episode, and keep what those of the dataset need."""
        parts: dict[str, NumberStatistics | ImageStatistics] = {
            **{key: ImageStatistics.merge([ImageStatistics.of(view[start:start + BATCH])
                                           for start in range(0, len(view), BATCH)]) for key, view in views.items()},
            **{key: NumberStatistics(values) for key, values in numbers.items()}}
        columns = {}
        for key, part in parts.items():
            self._statistics.setdefault(key, []).append(part)
            columns |= {f'stats/{key}/{name}': value.tolist() for name, value in part.summary().items()}
        return columns

    def _write_episodes(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq
        place = schema.Place()
        for start in range(0, len(self._rows), EPISODES_IN_FILE):
            own = {f'meta/episodes/{name}': number for name, number in vars(place).items()}
            rows = [row | own for row in self._rows[start:start + EPISODES_IN_FILE]]
            path = self._folder / place.in_path(schema.EPISODES_PATH)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
            place = place.next(self._info.chunks_size)


def _three_channels(images: np.ndarray) -> np.ndarray:
    return images if images.shape[-1] == 3 else np.broadcast_to(images, (*images.shape[:-1], 3))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
