"""Small pictures out of image messages of any kind, spread evenly over a stream of unknown length."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from flow_vla_core.contract import Camera
from flow_vla_core.errors import DataError
from flow_vla_core.messages import CHANNELS, decode_image

__all__ = ['EvenlySpaced', 'image_shape', 'shrink']

HEIGHT = 96  # rows of a thumbnail at most


class EvenlySpaced:
    """Chooses samples evenly from a stream whose length nobody knows, and never holds more than ``2 * count``.

    Args:
        count: how many are wanted; between ``count`` and ``2 * count`` are kept of a long stream.

    Example:
        >>> chooser = EvenlySpaced(2)
        >>> for k in range(9):
        ...     if chooser.wants():
        ...         chooser.keep(k)
        >>> chooser.kept
        [0, 4, 8]
    """

    def __init__(self, count: int) -> None:
        self._count, self._stride, self._seen = count, 1, 0
        self.kept: list[Any] = []

    def wants(self) -> bool:
        """Say whether the next sample is to be kept; call it once for each of them."""
        wanted = self._count > 0 and self._seen % self._stride == 0
        self._seen += 1
        return wanted

    def keep(self, sample: Any) -> None:
        """Take a sample that was wanted."""
        self.kept.append(sample)
        if len(self.kept) >= 2 * self._count:
            self.kept = self.kept[::2]
            self._stride *= 2

    def chosen(self) -> list[Any]:
        """Return ``count`` samples at most, first and last among them."""
        if len(self.kept) <= self._count:
            return list(self.kept)
        return [self.kept[k] for k in np.linspace(0, len(self.kept) - 1, self._count).round().astype(int)]


def image_shape(message: Any) -> tuple[str, tuple[int, int] | None]:
    """Return encoding (or format), and rows and columns (None where nothing here can tell) of a message.

    Raises:
        DataError: if the bytes are no picture.
    """
    if not hasattr(message, 'format'):
        return message.encoding, (message.height, message.width)
    picture = _open(message)
    return message.format, None if picture is None else (picture.height, picture.width)


def shrink(message: Any, height: int = HEIGHT) -> np.ndarray | None:
    """Decode to (Y, X, 1 or 3) uint8 of ``height`` rows at most; None for an encoding that is no picture.

    Raises:
        DataError: if the bytes do not fit what the message says of itself.
    """
    if hasattr(message, 'format'):
        return _decompress(message, height)
    if message.encoding not in CHANNELS or not message.height or not message.width:
        return None
    camera = Camera(name='thumbnail', topic='thumbnail', encoding=message.encoding, max_age=1.0, max_skew=1.0,
                    resolution=(message.height, message.width), size=_smaller(message.height, message.width, height))
    return decode_image(message, camera)


def _smaller(rows: int, columns: int, height: int) -> tuple[int, int]:
    rows, columns = max(rows, 1), max(columns, 1)
    return (rows, columns) if rows <= height else (height, max(1, round(columns * height / rows)))


def _decompress(message: Any, height: int) -> np.ndarray:
    picture = _open(message)
    try:
        picture.draft('RGB', (4 * height, 4 * height))
        rows, columns = _smaller(picture.height, picture.width, height)
        return np.asarray(picture.convert('RGB').resize((columns, rows), 4))
    except Exception as error:  # bytes from anywhere make the decoder raise anything
        raise DataError(f'damaged {message.format!r} picture: {error}') from error


def _open(message: Any) -> Any:
    """Read the head of a JPEG or PNG."""
    from PIL import Image
    try:
        return Image.open(BytesIO(bytes(message.data)), formats=('JPEG', 'PNG'))
    except Exception as error:  # as above
        raise DataError(f'neither JPEG nor PNG ({message.format!r})') from error
