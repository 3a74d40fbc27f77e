"""Embedding of flow time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ['TimeEmbedding']

SLOWEST, FASTEST = 0.5, 200.0  # rad per unit of flow time


class TimeEmbedding(nn.Module):
    """Embeds t in [0, 1] by sines and cosines of geometrically spaced frequencies and a small network.

    Args:
        width: size of the embedding D, any number above 0.
        fastest: highest frequency, rad per unit of flow time.
        frequencies: number of frequencies.
    """

    def __init__(self, width: int, fastest: float = FASTEST, frequencies: int = 32) -> None:
        super().__init__()
        steps = torch.linspace(math.log(SLOWEST), math.log(fastest), frequencies)
        self.register_buffer('frequencies', steps.exp(), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        angles = t[..., None] * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))
