"""The data and video files of a dataset that is being written; a new one begins where the last one is full."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.contract import Camera
from flow_vla_core.data.encoding import encode_png
from flow_vla_core.data.lerobot.schema import DATA_PATH, VIDEO_PATH, Info, Place, camera_key
from flow_vla_core.data.lerobot.tables import frame_schema, frame_table
from flow_vla_core.data.lerobot.video import MEGABYTE, Codec, VideoFile

__all__ = ['DataFiles', 'VideoFiles']


class DataFiles:
    """Writes an episode after another, each as a row group, into parquet files."""

    def __init__(self, folder: Path, info: Info, stack: ExitStack) -> None:
        self._folder, self._info, self._stack = folder, info, stack
        self._schema = frame_schema(info.features)
        self._place, self._writer = Place(), None
        self._file_stack = stack.enter_context(ExitStack())

    def write(self, numbers: Mapping[str, np.ndarray], views: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Add the columns of an episode; return in which file they stand."""
        import pyarrow.parquet as pq
        columns = {**numbers, **{key: [encode_png(image) for image in view] for key, view in views.items()}}
        if self._writer is not None and self._path.stat().st_size >= self._info.data_files_size_in_mb * MEGABYTE:
            self._file_stack.close()
            self._place, self._writer = self._place.next(self._info.chunks_size), None
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._file_stack.enter_context(pq.ParquetWriter(self._path, self._schema))
        self._writer.write_table(frame_table(self._schema, columns), row_group_size=len(numbers['index']))
        return {f'data/{name}': number for name, number in vars(self._place).items()}

    @property
    def _path(self) -> Path:
        return self._folder / self._place.in_path(DATA_PATH)


class VideoFiles:
    """Writes an episode after another into the videos of a camera."""

    def __init__(self, folder: Path, camera: Camera, info: Info, codec: Codec, stack: ExitStack) -> None:
        self._folder, self._camera, self._info, self._codec = folder, camera, info, codec
        self._key = camera_key(camera)
        self._place, self._file = Place(), None
        self._file_stack = stack.enter_context(ExitStack())

    def write(self, view: np.ndarray) -> dict[str, Any]:
        """Add the frames (N, Y, X, 3) of an episode; return in which file they stand, and when."""
        if self._file is not None and self._file.megabytes >= self._info.video_files_size_in_mb:
            self._file_stack.close()
            self._place, self._file = self._place.next(self._info.chunks_size), None
        if self._file is None:
            path = self._folder / self._place.in_path(VIDEO_PATH, video_key=self._key)
            self._file = self._file_stack.enter_context(VideoFile(path, self._info.fps, self._camera.size, self._codec))
        start = self._file.seconds
        for image in view:
            self._file.write(image)
        values = {**vars(self._place), 'from_timestamp': start, 'to_timestamp': self._file.seconds}
        return {f'videos/{self._key}/{name}': value for name, value in values.items()}
