"""Episodes as videos: many in a file, each frame at its place, keyframes close together so that any can be reached."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from flow_vla_core.errors import ConfigError, DataError

__all__ = ['CODECS', 'Codec', 'VideoFile', 'describe_video', 'read_frames']

MEGABYTE = 1024 ** 2


@dataclass(frozen=True)
class Codec:
    """Says how frames are encoded.

    Args:
        encoder: FFmpeg's name of it.
        pixels: pixel format.
        options: of the encoder; ``g`` is the distance of keyframes.
    """

    encoder: str
    pixels: str
    options: Mapping[str, str] = field(default_factory=dict)


CODECS = {
    'video': Codec('libsvtav1', 'yuv420p', {'g': '2', 'crf': '30', 'preset': '12'}),   # lerobot's own settings
    'fine-video': Codec('h264', 'yuv444p', {'g': '2', 'crf': '10'}),                   # keeps colours at full size
}


class VideoFile:
    """Writes frames into an mp4 file, one after another without a gap; use it as a context manager.

    Args:
        path: of the file; its folder is made.
        fps: frames per second.
        size: rows and columns.
        codec: how they are encoded.

    Raises:
        ConfigError: if the codec is not built in, or can't take images of this size.
    """

    def __init__(self, path: Path, fps: int, size: tuple[int, int], codec: Codec) -> None:
        import av
        os.environ.setdefault('SVT_LOG', '1')  # errors only; it writes to the terminal past FFmpeg's own log
        rows, columns = size
        if codec.pixels == 'yuv420p' and (rows % 2 or columns % 2):
            raise ConfigError(f'{path.parent.parent.name}: {rows} rows and {columns} columns: this video has to have '
                              'even ones; take --images png or fine-video')
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.frames, self._fps, self._bytes = path, 0, fps, 0
        self._container = av.open(str(path), 'w', options={'movflags': 'faststart'})
        try:
            self._stream: Any = self._container.add_stream(codec.encoder, fps, options=dict(codec.options))
            self._stream.pix_fmt, self._stream.height, self._stream.width = codec.pixels, rows, columns
            self._stream.codec_context.thread_count = os.cpu_count() or 1
            self._stream.codec_context.open()
        except (av.FFmpegError, ValueError) as error:
            self._container.close()
            raise ConfigError(f'{path}: {codec.encoder} does not take {columns} x {rows} pixels of {codec.pixels}: '
                              f'{error}') from error

    @property
    def seconds(self) -> float:
        """Length of what was written."""
        return self.frames / self._fps

    @property
    def megabytes(self) -> float:
        """Size of the file so far; the last frames may still be in the encoder."""
        return self._bytes / MEGABYTE

    def write(self, image: np.ndarray) -> None:
        """Add a frame (Y, X, 3) uint8 RGB."""
        import av
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
        frame.pts, frame.time_base = self.frames, 1 / self._stream.codec_context.framerate
        self.frames += 1
        self._mux(frame)

    def close(self) -> None:
        """End the file."""
        self._mux(None)
        self._container.close()

    def _mux(self, frame: Any) -> None:
        packets = self._stream.encode(frame)
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def describe_video(path: Path) -> dict[str, Any]:
    """Describe a video as ``info.json`` does."""
    import av
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {'video.height': stream.height, 'video.width': stream.width,
                'video.codec': stream.codec.canonical_name, 'video.pix_fmt': stream.pix_fmt,
                'video.is_depth_map': False, 'video.fps': int(stream.base_rate or stream.average_rate),
                'video.channels': 1 if 'gray' in stream.pix_fmt else 3, 'has_audio': False}


def read_frames(path: Path, start: float, times: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """Decode an episode's frames one after another, (Y, X, 3) uint8 RGB.

    Args:
        path: of the video.
        start: where the episode begins in it, s.
        times: (N,) of the frames, since then, s, rising; the frame nearest to each is taken.
        fps: frames per second.

    Raises:
        DataError: if the video can't be decoded, or has no frame within half a frame of a time.
    """
    import av
    wanted = deque(np.round((start + np.asarray(times, np.float64)) * fps).astype(np.int64).tolist())
    try:
        with av.open(str(path)) as container:
            for number, frame in _decode(container, wanted[0], fps):
                if number > wanted[0]:
                    break
                image = frame.to_ndarray(format='rgb24')
                while wanted and wanted[0] == number:
                    wanted.popleft()
                    yield image
                if not wanted:
                    return
    except (OSError, av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f'{path}: {error}') from error
    raise DataError(f'{path}: no frame at {wanted[0] / fps:.3f} s')


def _decode(container: Any, first: int, fps: float) -> Iterator[tuple[int, Any]]:
    """Yield number and frame, from the ``first`` one on."""
    stream = container.streams.video[0]
    stream.thread_type = 'AUTO'
    if first > 0:
        container.seek(int(first / fps / stream.time_base), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is None:
            raise ValueError('a frame has no time')
        number = round(float(frame.pts * stream.time_base) * fps)
        if number >= first:
            yield number, frame
