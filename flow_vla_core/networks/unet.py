"""A 1-D U-Net over the actions of a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.networks.time import FASTEST, TimeEmbedding, time_of_chunks
from flow_vla_core.types import Condition

__all__ = ['UNet1d']


class UNet1d(nn.Module):
    """Convolves along the horizon at several scales, with FiLM by time and condition (arXiv 2303.04137).

    A horizon that does not divide by the scales is padded by repeating its last action, and cut again.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: width of the condition's vector.
        widths: channels of each scale, finest first.
        kernel: size of the convolutions, odd.
        fastest: highest frequency of the time embedding.

    Example:
        >>> network = UNet1d(5, 2, 3, widths=(8, 16))
        >>> network(torch.zeros(4, 5, 2), torch.rand(4), Condition(torch.zeros(4, 3))).shape
        torch.Size([4, 5, 2])
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, widths: Sequence[int] = (64, 128),
                 kernel: int = 5, fastest: float = FASTEST) -> None:
        super().__init__()
        width = widths[-1]
        self.scales = 2 ** (len(widths) - 1)
        self.padding = -horizon % self.scales
        self.time = TimeEmbedding(width, fastest)
        self.condition = nn.Linear(condition_dim, width)
        ins, outs = (action_dim, *widths[:-1]), tuple(widths)
        self.down = nn.ModuleList([_Block(i, o, width, kernel) for i, o in zip(ins, outs)])
        self.shrink = nn.ModuleList([nn.Conv1d(o, o, 3, 2, 1) for o in outs[:-1]])
        self.middle = _Block(width, width, width, kernel)
        self.grow = nn.ModuleList([nn.ConvTranspose1d(o, i, 4, 2, 1) for i, o in zip(outs[:-1], outs[1:])][::-1])
        self.up = nn.ModuleList([_Block(2 * o, o, width, kernel) for o in outs[:-1]][::-1])
        self.leave = nn.Conv1d(widths[0], action_dim, 1)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, H, A), t as for `time_of_chunks`, condition -> (B, H, A)."""
        horizon = x.shape[1]
        modulation = functional.silu(self.condition(condition.vector) + self.time(time_of_chunks(t, x)))
        hidden = functional.pad(x.transpose(1, 2), (0, self.padding), mode='replicate')
        passed = []
        for index, block in enumerate(self.down):
            hidden = block(hidden, modulation)
            if index < len(self.shrink):
                passed.append(hidden)
                hidden = self.shrink[index](hidden)
        hidden = self.middle(hidden, modulation)
        for grow, block in zip(self.grow, self.up):
            hidden = block(torch.cat([grow(hidden), passed.pop()], 1), modulation)
        return self.leave(hidden)[..., :horizon].transpose(1, 2)


class _Block(nn.Module):
    """Is a residual block of two convolutions with FiLM between them."""

    def __init__(self, channels: int, width: int, condition: int, kernel: int) -> None:
        super().__init__()
        groups = next(g for g in (8, 4, 2, 1) if width % g == 0)
        self.first = nn.Sequential(nn.Conv1d(channels, width, kernel, padding=kernel // 2), nn.GroupNorm(groups, width),
                                   nn.SiLU())
        self.second = nn.Sequential(nn.Conv1d(width, width, kernel, padding=kernel // 2), nn.GroupNorm(groups, width),
                                    nn.SiLU())
        self.film = nn.Linear(condition, 2 * width)
        self.skip = nn.Conv1d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = self.film(modulation)[..., None].chunk(2, 1)
        return self.skip(x) + self.second(self.first(x) * (1 + scale) + shift)
