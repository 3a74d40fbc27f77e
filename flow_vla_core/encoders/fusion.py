"""Everything that was observed, in one condition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flow_vla_core.types import Condition

__all__ = ['Fusion', 'StateEncoder']


class StateEncoder(nn.Module):
    """Encodes the normalised state of all T observations with a small MLP.

    Args:
        state_dim: S.
        history: T.
        width: of the result D.

    Example:
        >>> StateEncoder(state_dim=3, history=2, width=8)(torch.zeros(5, 2, 3)).shape
        torch.Size([5, 8])
    """

    def __init__(self, state_dim: int, history: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(state_dim * history, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, state: Tensor) -> Tensor:
        """(B, T, S) -> (B, D)."""
        return self.layers(state.flatten(1))


class Fusion(nn.Module):
    """Joins the encoded parts of an observation into one vector, and keeps each as a token where that is asked for.

    Args:
        widths: name of each part -> its size, in order.
        width: of the condition D.
        tokens: whether to make tokens (B, number of parts, D) as well; each part has a layer of its own for that, so
            that a token tells which part it is.

    Example:
        >>> fusion = Fusion({'camera': 6, 'state': 4}, width=8, tokens=True)
        >>> condition = fusion({'camera': torch.zeros(5, 6), 'state': torch.zeros(5, 4)})
        >>> condition.vector.shape, condition.tokens.shape
        (torch.Size([5, 8]), torch.Size([5, 2, 8]))
    """

    def __init__(self, widths: Mapping[str, int], width: int = 256, tokens: bool = False) -> None:
        super().__init__()
        self.names = tuple(widths)
        self.join = nn.Sequential(nn.Linear(sum(widths.values()), width), nn.SiLU(), nn.Linear(width, width))
        self.tokens = nn.ModuleList([nn.Linear(size, width) for size in widths.values()]) if tokens else None

    def forward(self, parts: Mapping[str, Tensor]) -> Condition:
        """(B, size) for each part -> a condition of width D."""
        ordered = [parts[name] for name in self.names]
        vector = self.join(torch.cat(ordered, 1))
        if self.tokens is None:
            return Condition(vector)
        return Condition(vector, torch.stack([layer(part) for layer, part in zip(self.tokens, ordered)], 1))
