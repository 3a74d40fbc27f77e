"""What every velocity network has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flow_vla_core.networks.time import time_of_actions
from flow_vla_core.types import Condition

__all__ = ['Modulation', 'VelocityNetwork']


@dataclass(frozen=True)
class Modulation:
    """Holds what a network makes of one time and the condition before it sees a chunk.

    Args:
        parts: for each block, what scales, shifts and gates it, and what it attends to; every tensor begins with B.

    Example:
        >>> import torch
        >>> scales = torch.zeros(3, 5, 8)  # of 3 times
        >>> len(Modulation.at_each_time([[scales]]))
        3
    """

    parts: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def at_each_time(cls, blocks: Sequence[Sequence[Tensor]],
                     always: Sequence[Sequence[Tensor]] = ()) -> list[Modulation]:
        """Take apart what was made for K times at once.

        Args:
            blocks: for each block, tensors (K, B, ...).
            always: for each block, tensors (B, ...) that do not depend on time.
        """
        always = always or [()] * len(blocks)
        each = [zip(*(part.unbind() for part in block)) for block in blocks]
        return [cls(tuple((*parts, *rest) for parts, rest in zip(now, always))) for now in zip(*each)]


class VelocityNetwork(nn.Module, ABC):
    """Declares a network ``v(x, t, condition)`` that can work out what does not depend on x beforehand.

    A chunk takes several evaluations with the same condition at times that are known: `prepare` does that part of all
    of them in one pass, and the call then gets a `Modulation` in place of the condition.

    Example:
        >>> import torch
        >>> from flow_vla_core.networks import ResidualMLP
        >>> network, x, t = ResidualMLP(4, 2, 3, width=8, depth=1), torch.zeros(5, 4, 2), torch.full((5,), 0.5)
        >>> condition = Condition(torch.zeros(5, 3))
        >>> ready, = network.prepare(t[None, :, None], condition)
        >>> bool((network(x, t, ready) == network(x, t, condition)).all())
        True
    """

    def forward(self, x: Tensor, t: Tensor, told: Condition | Modulation) -> Tensor:
        """Return the velocity (B, H, A).

        Args:
            x: (B, H, A).
            t: as for `time_of_actions`.
            told: the condition, or what `prepare` made of it for this time.

        Raises:
            InputError: for a time or a condition of another shape.
        """
        if isinstance(told, Condition):
            told, = self.prepare(time_of_actions(t, x)[None], told)
        return self.answer(x, told)

    @abstractmethod
    def prepare(self, times: Tensor, condition: Condition) -> list[Modulation]:
        """Work out what K times and a condition mean for the network.

        Args:
            times: (K, B, 1), or (K, B, H) where each action has a time of its own; (K, 1, 1) or (K, 1, H) where all
                chunks have the same.
            condition: of B elements.
        """

    @abstractmethod
    def answer(self, x: Tensor, told: Modulation) -> Tensor:
        """Return the velocity (B, H, A) of x (B, H, A)."""
