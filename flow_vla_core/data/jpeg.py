"""Turns serialized raw images into serialized JPEG ones, as image_transport does."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from flow_vla_core.data.typestore import typestore

__all__ = ['COMPRESSED_IMAGE', 'IMAGE', 'compress_image', 'compressed_topic']

IMAGE, COMPRESSED_IMAGE = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1}


def compressed_topic(topic: str) -> str:
    """Return the name that image_transport gives to the JPEG images of a topic."""
    return f'{topic}/compressed'


def compress_image(data: bytes, quality: int) -> bytes | None:
    """Return a serialized CompressedImage with the same header, or None for an image that JPEG can't hold.

    Args:
        data: a serialized sensor_msgs/Image.
        quality: of the JPEG, 1 to 100.
    """
    from PIL import Image
    store = typestore()
    raw = store.deserialize_cdr(data, IMAGE)
    pixels = _pixels(raw)
    if pixels is None:
        return None
    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, 'JPEG', quality=quality)
    inside = 'mono8' if raw.encoding == 'mono8' else 'bgr8'
    message = store.types[COMPRESSED_IMAGE](
        header=raw.header, format=f'{raw.encoding}; jpeg compressed {inside}',
        data=np.frombuffer(encoded.getvalue(), np.uint8))
    return bytes(store.serialize_cdr(message, COMPRESSED_IMAGE))


def _pixels(raw: Any) -> np.ndarray | None:
    """Return (Y, X, 3) RGB or (Y, X) grey uint8, or None for another encoding or a size that does not fit."""
    channels = CHANNELS.get(raw.encoding, 0)
    if not channels or raw.step < raw.width * channels or len(raw.data) != raw.height * raw.step or not len(raw.data):
        return None
    rows = raw.data.reshape(raw.height, raw.step)[:, :raw.width * channels]
    if channels == 1:
        return np.ascontiguousarray(rows)
    pixels = rows.reshape(raw.height, raw.width, channels)
    return np.ascontiguousarray(pixels[..., ::-1] if raw.encoding == 'bgr8' else pixels)
