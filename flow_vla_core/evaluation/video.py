"""Videos of what the cameras saw, with the instruction and the outcome written on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ['VideoWriter', 'compose', 'write_gif']

GROUND = (24, 24, 28)
BAR = 40  # rows of the bar below the pictures, at scale 2
COLOURS: Mapping[str, tuple[int, int, int]] = {
    '': (235, 235, 235), 'success': (120, 220, 130), 'failure': (240, 120, 110)}


def compose(views: Sequence[np.ndarray], caption: str, outcome: str = '', scale: int = 2) -> np.ndarray:
    """Put views side by side above a bar with the caption on the left and the outcome on the right.

    Args:
        views: (Y, X, 3) uint8 each, of one height.
        caption: the instruction and what else to say.
        outcome: ``success``, ``failure`` or empty while it is open.
        scale: enlarges the views this many times.

    Returns:
        (Y, X, 3) uint8 with even sides, as video codecs ask for.
    """
    row = Image.fromarray(np.concatenate(views, axis=1))
    row = row.resize((row.width * scale, row.height * scale), Image.Resampling.BICUBIC)
    height = BAR * scale // 2
    frame = Image.new('RGB', (row.width + row.width % 2, row.height + height + (row.height + height) % 2), GROUND)
    frame.paste(row, (0, 0))
    frame.paste(_bar(row.width, height, caption, outcome), (0, row.height))
    return np.asarray(frame)


@lru_cache(maxsize=8)
def _bar(width: int, height: int, caption: str, outcome: str) -> Image.Image:
    bar = Image.new('RGB', (width, height), GROUND)
    draw = ImageDraw.Draw(bar)
    font = ImageFont.load_default(height * 0.5)
    draw.text((height // 4, height // 2), caption, COLOURS[''], font, anchor='lm')
    draw.text((width - height // 4, height // 2), outcome, COLOURS[outcome], font, anchor='rm')
    return bar


class VideoWriter:
    """Writes frames into an H.264 file; use it as a context manager.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        import av
        self._container = av.open(str(path), 'w')
        self._rate = Fraction(rate).limit_denominator(1000)
        self._stream = None
        self._time = 0  # of the next frame, in periods of the rate

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, frame: np.ndarray, duration: int = 1) -> None:
        """Append a frame (Y, X, 3) uint8, of the first one's size, that stands for so many periods of the rate."""
        import av
        if self._stream is None:
            options = {'preset': 'veryfast', 'crf': '23'}
            self._stream = self._container.add_stream('libx264', self._rate, options=options)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = 'yuv420p'
        picture = av.VideoFrame.from_ndarray(frame, 'rgb24')
        picture.pts, picture.time_base = self._time, 1 / self._rate
        self._time += duration
        self._container.mux(self._stream.encode(picture))


def write_gif(path: Path, frames: Sequence[np.ndarray], seconds_per_frame: float, max_bytes: int) -> int:
    """Write an endless GIF, with as few frames left out as makes it small enough; return how many it has.

    Args:
        path: ends in ``.gif``.
        frames: (Y, X, 3) uint8, of one size; may hold none, and then no file is written.
        seconds_per_frame: how long each one stands; those that stay stand for those that were left out.
        max_bytes: allowed size of the file.
    """
    kept = [Image.fromarray(frame).quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames]
    stride = 1
    while kept:
        images = kept[::stride]
        duration = round(seconds_per_frame * stride * 1000)
        images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)
        size = path.stat().st_size
        if size <= max_bytes or len(images) == 1:
            return len(images)
        stride = max(stride + 1, math.floor(stride * size / max_bytes))
    return 0
