"""A small residual network for one camera, told by the words where to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ['ImageEncoder', 'SpatialSoftmax']


class SpatialSoftmax(nn.Module):
    """Turns each feature map a into the expected place of its softmax, ``sum p softmax(a)_p``, p in [-1, 1]^2.

    Levine et al., arXiv 1504.00702.

    Args:
        channels: of the input C.
        points: number of maps K.

    Example:
        >>> SpatialSoftmax(3, 4)(torch.zeros(5, 3, 7, 9)).abs().max() < 1e-6  # an even map has its middle as mean
        tensor(True)
    """

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, points, 1)
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) -> (B, 2 K)."""
        _, _, rows, columns = x.shape
        weights = (self.maps(x).flatten(2).float() * self.sharpness).softmax(-1).unflatten(2, (rows, columns))
        across = weights.sum(2) @ torch.linspace(-1, 1, columns, device=x.device)
        down = weights.sum(3) @ torch.linspace(-1, 1, rows, device=x.device)
        return torch.cat([across, down], 1)


class ImageEncoder(nn.Module):
    """Encodes one camera: strided stem, two residual blocks with FiLM by the words, spatial softmax at both scales.

    GroupNorm, not BatchNorm, so that averaged weights stay right.

    Args:
        channels: of the image C.
        language_dim: width of the words' vector.
        widths: channels of stem, first and second block, multiples of 8.
        points: maps of the spatial softmax at the coarse scale; half as many at the fine one.
        features: size of the result D.

    Example:
        >>> image = torch.zeros(5, 3, 32, 32, dtype=torch.uint8)
        >>> ImageEncoder(3, language_dim=6, features=10)(image, torch.zeros(5, 6)).shape
        torch.Size([5, 10])
    """

    def __init__(self, channels: int, language_dim: int, widths: Sequence[int] = (32, 32, 64), points: int = 32,
                 features: int = 128) -> None:
        super().__init__()
        stem, fine, coarse = widths
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 8, 4, 2, bias=False), nn.GroupNorm(8, stem), nn.SiLU())
        self.fine = _Block(stem, fine, 1, language_dim)
        self.coarse = _Block(fine, coarse, 2, language_dim)
        self.fine_points = SpatialSoftmax(fine, points // 2)
        self.coarse_points = SpatialSoftmax(coarse, points)
        self.join = nn.Sequential(nn.Linear(3 * points + coarse, features), nn.LayerNorm(features), nn.SiLU())

    def forward(self, image: Tensor, language: Tensor) -> Tensor:
        """(B, C, Y, X) uint8, (B, L) -> (B, D)."""
        x = (image.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.stem(x), language)
        coarse = self.coarse(fine, language)
        mean = coarse.mean((2, 3)).float()
        return self.join(torch.cat([self.coarse_points(coarse), self.fine_points(fine), mean], 1))


class _Block(nn.Module):
    """Is a residual block whose features the words scale and shift (FiLM, arXiv 1709.07871)."""

    def __init__(self, channels: int, width: int, stride: int, language_dim: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.GroupNorm(8, width),
                                   nn.SiLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width))
        self.film = nn.Linear(language_dim, 2 * width)
        self.skip = nn.Conv2d(channels, width, 1, stride, bias=False) if (channels, stride) != (width, 1) \
            else nn.Identity()
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, language: Tensor) -> Tensor:
        scale, shift = self.film(language)[:, :, None, None].chunk(2, 1)
        return functional.silu(self.second(self.first(x)) * (1 + scale) + shift + self.skip(x))
