"""A network as the field of a differential equation, with all that does not depend on the chunk worked out once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_vla_core.networks import VelocityNetwork
from flow_vla_core.types import Condition

__all__ = ['PreparedField']


class PreparedField:
    """Evaluates a network at a number t: ``(x (B, H, A), t) -> dx/dt (B, H, A)``.

    Args:
        network: velocity (x, t, condition).
        condition: of B elements.
        known: (H,) bool, which actions are clean, at the time 1; None if none is.

    Example:
        >>> from flow_vla_core.networks import ResidualMLP
        >>> noise, condition = torch.zeros(5, 4, 2), Condition(torch.zeros(5, 3))
        >>> field = PreparedField(ResidualMLP(4, 2, 3, width=8, depth=1), condition).prepare((0.0, 0.5), noise)
        >>> field(noise, 0.5).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, network: nn.Module, condition: Condition, known: Tensor | None = None) -> None:
        self._network, self._condition, self._known, self._told = network, condition, known, {}

    def prepare(self, times: Sequence[float], like: Tensor) -> PreparedField:
        """Work out in one pass what depends on times and condition alone, if the network can; return the same field.

        Args:
            times: at which it will be asked; at others it works that out when it is asked.
            like: (any, H, A), gives horizon, type and device of the chunks.
        """
        if times and isinstance(self._network, VelocityNetwork):
            each = [self._times(t, like[:1]).expand(len(self._condition), -1) for t in times]
            self._told = dict(zip(times, self._network.prepare(torch.stack(each), self._condition)))
        return self

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """(B, H, A), t -> (B, H, A)."""
        times = self._times(t, x)
        times = times[:, 0] if self._known is None else times.expand(len(x), -1)
        return self._network(x, times, self._told.get(t, self._condition)).to(x.dtype)

    def _times(self, t: float, x: Tensor) -> Tensor:
        """Return the time of each chunk (B, 1), or of each action of any (1, H)."""
        times = torch.full((len(x), 1), t, dtype=x.dtype, device=x.device)
        return times if self._known is None else torch.where(self._known, 1.0, times[:1])
