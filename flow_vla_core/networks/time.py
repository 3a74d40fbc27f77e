"""Flow time, and its embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flow_vla_core.errors import InputError

__all__ = ['TimeEmbedding', 'time_of_actions']

SLOWEST, FASTEST = 0.5, 200.0  # rad per unit of flow time


def time_of_actions(t: Tensor, x: Tensor) -> Tensor:
    """Bring t of shape (), (B,), (B, 1) or (B, H) to (B, 1), one for all actions of a chunk, or (B, H).

    Args:
        t: flow time.
        x: (B, H, A) that it belongs to.

    Raises:
        InputError: for another shape.

    Example:
        >>> time_of_actions(torch.tensor(0.5), torch.zeros(3, 4, 2)).shape
        torch.Size([3, 1])
    """
    batch, horizon, _ = x.shape
    if t.shape in ((), (batch,)):
        return t.expand(batch)[:, None]
    if t.shape not in ((batch, 1), (batch, horizon)):
        raise InputError(f't: shape {tuple(t.shape)}; allowed: (), ({batch},), ({batch}, 1) or ({batch}, {horizon})')
    return t


class TimeEmbedding(nn.Module):
    """Embeds t in [0, 1] by ``sin(w_i t), cos(w_i t)`` and a small network, w geometric from 0.5 to ``fastest``.

    As in arXiv 1706.03762, section 3.5, with frequencies for an interval of length 1 in place of token numbers.

    Args:
        width: size of the embedding D, any number above 0.
        fastest: highest frequency, rad per unit of flow time.
        frequencies: number of frequencies.

    Example:
        >>> TimeEmbedding(7)(torch.rand(5)).shape
        torch.Size([5, 7])
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
