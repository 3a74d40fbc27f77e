"""A residual MLP over the flattened chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.networks.base import Modulation, VelocityNetwork
from flow_vla_core.networks.time import FASTEST, TimeEmbedding
from flow_vla_core.types import Condition

__all__ = ['ResidualMLP']


class ResidualMLP(VelocityNetwork):
    """Sees the whole chunk as one vector; time and condition modulate every block (adaLN, arXiv 2212.09748).

    Each block is ``h + (1 + gate) layers(shift + (1 + scale) norm(h))``, all three linear in ``silu(W c + embed(t))``.

    Where actions have times of their own, the mean of the embedded times stands for them.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: width of the condition's vector.
        width: of the hidden layers.
        depth: number of blocks.
        fastest: highest frequency of the time embedding.

    Example:
        >>> network = ResidualMLP(4, 2, 3, width=8, depth=1)
        >>> network(torch.zeros(5, 4, 2), torch.rand(5), Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int = 256, depth: int = 4,
                 fastest: float = FASTEST) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, fastest)
        self.condition = nn.Linear(condition_dim, width)
        self.enter = nn.Linear(horizon * action_dim, width)
        self.blocks = nn.ModuleList([_Block(width) for _ in range(depth)])
        self.leave = nn.Linear(width, horizon * action_dim)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def prepare(self, times: Tensor, condition: Condition) -> list[Modulation]:
        """(K, B, 1 or H), condition -> for each time and block shift, scale and gate (B, W)."""
        drive = functional.silu(self.condition(condition.vector) + self.time(times).mean(2))
        return Modulation.at_each_time([block.prepare(drive) for block in self.blocks])

    def answer(self, x: Tensor, told: Modulation) -> Tensor:
        """(B, H, A) -> (B, H, A)."""
        hidden = self.enter(x.flatten(1))
        for block, part in zip(self.blocks, told.parts):
            hidden = block(hidden, *part)
        return self.leave(hidden).reshape(x.shape)


class _Block(nn.Module):
    """Is one residual block with adaptive layer normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def prepare(self, drive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate = self.modulate(drive).chunk(3, -1)
        return shift, 1 + scale, 1 + gate

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(x, gate, self.layers(torch.addcmul(shift, self.norm(x), scale)))
