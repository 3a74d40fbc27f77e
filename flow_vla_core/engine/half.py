"""A velocity network in half precision, where that changes chunks little."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flow_vla_core.networks import Modulation, VelocityNetwork
from flow_vla_core.types import Condition

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['HalfNetwork', 'deviation', 'halved']


class HalfNetwork(VelocityNetwork):
    """Evaluates a network in bfloat16; time and condition are worked out in full precision, once for a chunk.

    Args:
        network: in full precision.

    Example:
        >>> from flow_vla_core.networks import ResidualMLP
        >>> half = HalfNetwork(ResidualMLP(4, 2, 3, width=8, depth=1))
        >>> half(torch.zeros(5, 4, 2), torch.zeros(5), Condition(torch.zeros(5, 3))).dtype
        torch.float32
    """

    def __init__(self, network: VelocityNetwork) -> None:
        super().__init__()
        self.exact, self.rounded = network, copy.deepcopy(network).bfloat16()

    def prepare(self, times: Tensor, condition: Condition) -> list[Modulation]:
        """Round what the network prepares."""
        return [Modulation(tuple(tuple(part.bfloat16() for part in block) for block in ready.parts))
                for ready in self.exact.prepare(times, condition)]

    def answer(self, x: Tensor, told: Modulation) -> Tensor:
        """Round x, and answer in the precision that it came in."""
        return self.rounded.answer(x.bfloat16(), told).to(x.dtype)


def halved(policy: FlowVLA) -> FlowVLA | None:
    """Return a copy of a policy with its velocity network in half precision; None if it has no such network."""
    if not isinstance(getattr(policy.generator, 'network', None), VelocityNetwork):
        return None
    other = copy.deepcopy(policy)
    other.generator.network = HalfNetwork(other.generator.network)
    return other.eval().requires_grad_(False)


@torch.no_grad()
def deviation(policy: FlowVLA, other: FlowVLA, count: int = 16) -> float:
    """Return the largest difference between actions of two policies, by the action's spread in the training data.

    Args:
        policy: on any device.
        other: on the same, with the same sizes.
        count: random observations that both answer, from the same noise.
    """
    batch, noise = policy.fake_batch(count, torch.Generator().manual_seed(0))
    device = next(policy.parameters()).device
    first, second = (each.sample(batch.to(device), noise=noise.to(device), generator=torch.Generator().manual_seed(0))
                     for each in (policy, other))
    return ((first - second) / policy.normalise_actions.scale).abs().max().item()
