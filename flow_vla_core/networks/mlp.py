"""A residual MLP over the flattened chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.networks.time import FASTEST, TimeEmbedding, time_of_chunks
from flow_vla_core.types import Condition

__all__ = ['ResidualMLP']


class ResidualMLP(nn.Module):
    """Sees the whole chunk as one vector; time and condition modulate every block (adaLN, arXiv 2212.09748).

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

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, H, A), t as for `time_of_chunks`, condition -> (B, H, A)."""
        batch, horizon, dim = x.shape
        modulation = functional.silu(self.condition(condition.vector) + self.time(time_of_chunks(t, x)))
        hidden = self.enter(x.reshape(batch, horizon * dim))
        for block in self.blocks:
            hidden = block(hidden, modulation)
        return self.leave(hidden).reshape(batch, horizon, dim)


class _Block(nn.Module):
    """Is one residual block with adaptive layer normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = torch.chunk(self.modulate(modulation), 3, -1)
        return x + (1 + gate) * self.layers(self.norm(x) * (1 + scale) + shift)
