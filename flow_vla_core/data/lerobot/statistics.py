"""Statistics of features in lerobot's form: exact ones, from sums and sorted values, of images from histograms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ['ImageStatistics', 'NumberStatistics', 'QUANTILES']

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
LEVELS = np.arange(256)


@dataclass(frozen=True)
class NumberStatistics:
    """Holds the values of a feature that is not an image.

    Args:
        values: (N, D), of any type of number.

    Example:
        >>> statistics = NumberStatistics(np.array([[1.0], [2.0], [3.0]])).summary()
        >>> statistics['mean'], statistics['q50'], statistics['count']
        (array([2.]), array([2.]), array([3]))
    """

    values: np.ndarray

    @staticmethod
    def merge(parts: Sequence[NumberStatistics]) -> NumberStatistics:
        """Put those of several episodes together."""
        return NumberStatistics(np.concatenate([part.values for part in parts]))

    def summary(self) -> dict[str, np.ndarray]:
        """Return min, max, mean, std and quantiles, (D,) float64, and count, (1,)."""
        values = self.values.astype(np.float64)
        if self.values.dtype == np.int64:  # nanoseconds since 1970 do not fit into float64
            ends = {'min': self.values.min(0), 'max': self.values.max(0)}
        else:
            ends = {'min': values.min(0), 'max': values.max(0)}
        quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
        return {**ends, 'mean': values.mean(0), 'std': values.std(0), 'count': np.array([len(values)]),
                **dict(zip(QUANTILES, quantiles))}


@dataclass(frozen=True)
class ImageStatistics:
    """Holds how often each level occurs in the images of a camera.

    Args:
        counts: (C, 256) int64.
        frames: number of images.

    Example:
        >>> black_and_white = np.zeros((2, 4, 4, 3), np.uint8)
        >>> black_and_white[1] = 255
        >>> ImageStatistics.of(black_and_white).summary()['mean'].ravel()
        array([0.5, 0.5, 0.5])
    """

    counts: np.ndarray
    frames: int

    @classmethod
    def of(cls, images: np.ndarray) -> ImageStatistics:
        """Count those of (N, Y, X, C) uint8; N may be 0."""
        counts = [np.bincount(images[..., channel].reshape(-1), minlength=256) for channel in range(images.shape[-1])]
        return cls(np.stack(counts), len(images))

    @staticmethod
    def merge(parts: Sequence[ImageStatistics]) -> ImageStatistics:
        """Put those of several episodes, or parts of one, together."""
        return ImageStatistics(sum(part.counts for part in parts), sum(part.frames for part in parts))

    def summary(self) -> dict[str, np.ndarray]:
        """Return min, max, mean, std and quantiles on a scale from 0 to 1, (C, 1, 1) float64, and count, (1,)."""
        levels = LEVELS / 255
        share = self.counts / self.counts.sum(1, keepdims=True)
        mean = share @ levels
        std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
        seen = self.counts > 0
        values = {'min': seen.argmax(1) / 255, 'max': (255 - seen[:, ::-1].argmax(1)) / 255, 'mean': mean, 'std': std}
        reached = np.cumsum(share, 1)
        for name, quantile in QUANTILES.items():
            values[name] = (reached >= quantile - 1e-12).argmax(1) / 255
        return {**{name: value[:, None, None] for name, value in values.items()}, 'count': np.array([self.frames])}
