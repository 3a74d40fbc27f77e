"""Average velocities over a span of flow time, and how chunks are made with them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from flow_vla_core.generators.base import begin_with
from flow_vla_core.generators.paths import StraightPath
from flow_vla_core.generators.prepared import PreparedField
from flow_vla_core.generators.realtime import Guide, steer
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.networks.time import FASTEST, TimeEmbedding
from flow_vla_core.solvers import solve, visited
from flow_vla_core.types import Condition

__all__ = ['SpanNetwork', 'at', 'follow', 'leap']

WIDTH = 32  # of the embedding of the span


class SpanNetwork(nn.Module):
    """Predicts the average velocity over a span: ``u(x_t, t, d) = (x_{t+d} - x_t) / d``; d = 0 is the velocity itself.

    The embedded span stands beside the condition's vector, so any velocity network serves.

    Args:
        sizes: of chunk and condition.
        config: of the velocity network.
        fastest: highest frequency of both time embeddings, rad per unit of flow time.

    Example:
        >>> network = SpanNetwork(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> network(torch.zeros(5, 4, 2), torch.zeros(5), torch.ones(5), Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, sizes: Sizes, config: NetworkConfig, fastest: float = FASTEST) -> None:
        super().__init__()
        self.span = TimeEmbedding(WIDTH, fastest)
        self.network = config.build(replace(sizes, condition_dim=sizes.condition_dim + WIDTH), fastest=fastest)

    def forward(self, x: Tensor, t: Tensor, span: Tensor, condition: Condition) -> Tensor:
        """(B, H, A), (B,), (B,), condition -> (B, H, A)."""
        vector = torch.cat([condition.vector, self.span(span).to(condition.vector)], -1)
        return self.network(x, t, condition.with_vector(vector)).to(x.dtype)


def at(time: float, x: Tensor) -> Tensor:
    """Return the same time for every element of the batch: (B,).

    Example:
        >>> at(0.5, torch.zeros(3, 4, 2))
        tensor([0.5000, 0.5000, 0.5000])
    """
    return torch.full((len(x),), time, dtype=x.dtype, device=x.device)


def follow(network: nn.Module, noise: Tensor, condition: Condition, steps: int, solver: str = 'euler',
           prefix: Tensor | None = None, guide: Guide | None = None) -> Tensor:
    """Integrate a velocity network from noise (t = 0) to a chunk (t = 1): (B, H, A).

    A prefix moves on its own straight path, where the network sees it.

    Args:
        network: velocity (x, t, condition).
        noise: (B, H, A).
        condition: of the same B.
        steps: solver steps.
        solver: one of `flow_vla_core.solvers.SOLVERS`.
        prefix: (B, D, A), or None.
        guide: what steers the velocity, see `steer`; or None.

    Example:
        >>> zero = lambda x, t, condition: torch.zeros_like(x)
        >>> follow(zero, torch.ones(1, 2, 1), Condition(torch.zeros(1, 1)), 3, prefix=torch.full((1, 1, 1), 5.0))
        tensor([[[5.],
                 [1.]]])
    """
    field = PreparedField(network, condition).prepare(visited(steps, solver), noise)
    if guide is not None:
        return solve(steer(field, guide, StraightPath()), noise, steps, solver)
    known = None if prefix is None else prefix - noise[:, :prefix.shape[1]]
    return begin_with(prefix, solve(lambda x, t: begin_with(known, field(x, t)), noise, steps, solver))


def leap(network: nn.Module, noise: Tensor, condition: Condition, steps: int, prefix: Tensor | None = None) -> Tensor:
    """Take noise to a chunk in equal leaps ``x <- x + d u(x, t, d)``, d = 1 / steps: (B, H, A).

    Args:
        network: average velocity (x, t, d, condition), as `SpanNetwork`.
        noise: (B, H, A).
        condition: of the same B.
        steps: number of leaps.
        prefix: as for `follow`.

    Example:
        >>> whole = lambda x, t, span, condition: 1 / span[:, None, None].expand_as(x)
        >>> leap(whole, torch.zeros(1, 1, 2), Condition(torch.zeros(1, 1)), 4)
        tensor([[[4., 4.]]])
    """
    span = at(1 / steps, noise)
    return follow(lambda x, t, condition: network(x, t, span, condition), noise, condition, steps, prefix=prefix)
