"""A network as the field of a differential equation, with all that does not depend on the chunk worked out once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flow_vla_core.networks import Modulation, VelocityNetwork
from flow_vla_core.types import Condition

__all__ = ['PreparedField']

AT_ONCE = 256  # rows (times by chunks) of one pass: few chunks share one, many stay in the processor's cache


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
        self._network, self._condition, self._known = network, condition, known
        self._with_gradient = torch.is_grad_enabled()  # what is prepared serves evaluations inside `pull`, too
        self._times: dict[float, Tensor] = {}
        self._told: dict[float, Modulation] = {}

    def prepare(self, times: Sequence[float], like: Tensor) -> PreparedField:
        """Say at which times it will be asked, in order; return the same field.

        What depends on times and condition alone is then worked out, if the network can, for several times in one
        pass, shortly before the first of them is asked for. At other times it is worked out when it is asked.

        Args:
            times: t of each evaluation.
            like: (any, H, A), gives type and device of the chunks.
        """
        filled = {t: torch.full((1,), t, dtype=like.dtype, device=like.device) for t in times}
        self._times = filled if self._known is None else {t: torch.where(self._known, 1.0, time)
                                                          for t, time in filled.items()}
        return self

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """(B, H, A), t -> (B, H, A)."""
        if t not in self._times:
            self.prepare((t,), x)
        if t not in self._told and isinstance(self._network, VelocityNetwork):
            self._tell(t)
        times = self._times[t].expand(len(x)) if self._known is None else self._times[t].expand(len(x), -1)
        return self._network(x, times, self._told.get(t, self._condition)).to(x.dtype)

    def _tell(self, t: float) -> None:
        """Let the network work out what it can for this time and some that follow, in place of earlier ones."""
        times = list(self._times)
        first = times.index(t)
        now = times[first:first + max(1, AT_ONCE // max(1, len(self._condition)))]
        rows = torch.stack([self._times[each] for each in now])[:, None]
        with torch.set_grad_enabled(self._with_gradient):
            self._told = dict(zip(now, self._network.prepare(rows, self._condition)))
