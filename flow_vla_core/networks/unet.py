"""A 1-D U-Net over the actions of a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.networks.base import Modulation, VelocityNetwork
from flow_vla_core.networks.time import FASTEST, TimeEmbedding
from flow_vla_core.types import Condition

__all__ = ['UNet1d']


class UNet1d(VelocityNetwork):
    """Convolves along the horizon at several scales, with FiLM by time and condition (arXiv 2303.04137).

    Each block is ``skip(h) + second(shift + (1 + scale) first(h))``, both linear in ``silu(W c + embed(t))``.

    A horizon that does not divide by the scales is padded by repeating its last action, and cut again. Where actions
    have times of their own, so has each place of the finest scale, and neighbours are averaged for the next one.

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

    def prepare(self, times: Tensor, condition: Condition) -> list[Modulation]:
        """(K, B, 1 or H), condition -> for each time and block scale and shift (B, C, 1 or its length)."""
        drive = functional.silu(self.condition(condition.vector)[:, None] + self.time(times))
        if times.shape[2] > 1:
            drive = torch.cat([drive, drive[:, :, -1:].expand(-1, -1, self.padding, -1)], 2)
        scales = [drive]
        for _ in self.shrink:
            scales.append(_halve(scales[-1]))
        drives = (*scales, scales[-1], *scales[-2::-1])
        return Modulation.at_each_time([block.prepare(own) for block, own in zip(self._blocks(), drives)])

    def answer(self, x: Tensor, told: Modulation) -> Tensor:
        """(B, H, A) -> (B, H, A)."""
        horizon, count = x.shape[1], len(self.down)
        hidden = x.transpose(1, 2)
        if self.padding:
            hidden = functional.pad(hidden, (0, self.padding), mode='replicate')
        passed = []
        for index, (block, part) in enumerate(zip(self.down, told.parts)):
            hidden = block(hidden, *part)
            if index < len(self.shrink):
                passed.append(hidden)
                hidden = self.shrink[index](hidden)
        hidden = self.middle(hidden, *told.parts[count])
        for grow, block, part in zip(self.grow, self.up, told.parts[count + 1:]):
            hidden = block(torch.cat([grow(hidden), passed.pop()], 1), *part)
        return self.leave(hidden)[..., :horizon].transpose(1, 2)

    def _blocks(self) -> tuple[_Block, ...]:
        return (*self.down, self.middle, *self.up)


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

    def prepare(self, drive: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.film(drive).transpose(-1, -2).chunk(2, -2)
        return 1 + scale, shift

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.skip(x) + self.second(torch.addcmul(shift, self.first(x), scale))


def _halve(drive: Tensor) -> Tensor:
    """Average neighbours: (K, B, L, W) -> (K, B, L / 2, W); one that stands for all stays."""
    return drive if drive.shape[2] == 1 else drive.unflatten(2, (-1, 2)).mean(3)
