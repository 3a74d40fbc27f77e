"""Normalisation with its inverse, and image augmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.errors import CheckpointError

__all__ = ['SCALES', 'Normaliser', 'Statistics', 'random_shift']

SCALES = ('standard', 'quantile')
SMALLEST_SCALE = 1e-6  # a dimension that varies less is constant and keeps the scale 1


@dataclass(frozen=True)
class Statistics:
    """Describes the numbers of one vector over a dataset; every field has one number for each dimension (D,).

    Quantiles are exact, over all frames.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        """Describe (N, D)."""
        values = np.asarray(values, np.float64)
        low, high = np.quantile(values, [0.01, 0.99], axis=0)
        rows = (values.mean(0), values.std(0), low, high, values.min(0), values.max(0))
        return cls(*(tuple(row.tolist()) for row in rows))

    @staticmethod
    def save(path: Path, groups: Mapping[str, Statistics]) -> None:
        """Write several as JSON."""
        path.write_text(json.dumps({name: group.__dict__ for name, group in groups.items()}, indent=1))

    @staticmethod
    def load(path: Path) -> dict[str, Statistics]:
        """Read what `save` wrote. Raise `CheckpointError` if the file does not hold it."""
        try:
            values: dict[str, dict[str, Any]] = json.loads(path.read_text())
            return {name: Statistics(**{key: tuple(numbers) for key, numbers in group.items()})
                    for name, group in values.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f'{path}: holds no statistics: {error}') from error


class Normaliser(nn.Module):
    """Maps (..., D) to numbers around [-1, 1]: ``(x - offset) / scale``.

    Args:
        offset: (D,).
        scale: (D,); a dimension that does not vary gets 1.
    """

    def __init__(self, offset: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        scales = torch.tensor(scale, dtype=torch.float32)
        self.register_buffer('offset', torch.tensor(offset, dtype=torch.float32))
        self.register_buffer('scale', torch.where(scales > SMALLEST_SCALE, scales, torch.ones_like(scales)))

    @classmethod
    def standard(cls, statistics: Statistics) -> Normaliser:
        """Map the mean to 0 and the standard deviation to 1."""
        return cls(statistics.mean, statistics.std)

    @classmethod
    def quantile(cls, statistics: Statistics) -> Normaliser:
        """Map the 1 % and 99 % quantiles to -1 and 1 (openpi)."""
        low, high = np.array(statistics.q01), np.array(statistics.q99)
        return cls(((low + high) / 2).tolist(), ((high - low) / 2).tolist())

    @classmethod
    def of(cls, statistics: Statistics, scale: str) -> Normaliser:
        """Make the one of `SCALES` that is named."""
        return cls.quantile(statistics) if scale == 'quantile' else cls.standard(statistics)

    def forward(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (values - self.offset) / self.scale

    def inverse(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return values * self.scale + self.offset


def random_shift(images: Tensor, pixels: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by up to so many pixels in each direction, its border repeated (DrQ, arXiv 2004.13649).

    Args:
        images: (B, T, C, Y, X); the frames of one element move together.
        pixels: largest shift; 0 returns the images.
        generator: source of randomness.
    """
    if pixels == 0:
        return images
    batch, frames, channels, rows, columns = images.shape
    shifts = torch.randint(0, 2 * pixels + 1, (batch, 2), generator=generator).tolist()
    wide = functional.pad(images.reshape(batch, frames * channels, rows, columns).float(),
                          (pixels,) * 4, mode='replicate').to(images.dtype)
    moved = [picture[:, y:y + rows, x:x + columns] for picture, (y, x) in zip(wide, shifts)]
    return torch.stack(moved).reshape(images.shape)
