"""A density flow over the whole chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.flows import FLOWS, NormalizingFlow
from flow_vla_core.flows.base import log_normal
from flow_vla_core.generators.base import FamilyConfig, LikelihoodGenerator, begin_with
from flow_vla_core.generators.candidates import CANDIDATES, more_noise, nearest_beginning
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['LikelihoodFlow', 'LikelihoodFlowConfig']


@dataclass(frozen=True)
class LikelihoodFlowConfig(FamilyConfig):
    """Sets up `LikelihoodFlow`.

    The network's width and depth are those of the flow's own networks; its kind does not matter.

    Args:
        flow: one of `flow_vla_core.flows.FLOWS`.
        jitter: as for `LikelihoodFlow`.

    Example:
        >>> config = LikelihoodFlowConfig('real_nvp')
        >>> config.build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)).flow.dim
        8
    """

    family: str = field(default='likelihood', init=False)
    flow: str = 'glow'
    jitter: float = 0.01

    def build(self, sizes: Sizes, network: NetworkConfig) -> LikelihoodFlow:
        """Make it with a flow over H A numbers."""
        if self.flow not in FLOWS:
            raise ConfigError(f'generator.flow: {self.flow!r}; {closest(self.flow, FLOWS)}')
        builder, widths = FLOWS[self.flow], (network.width,) * network.depth
        settings = {'hidden': widths} if 'hidden' in signature(builder).parameters else {}
        return LikelihoodFlow(builder(sizes.horizon * sizes.action_dim, network.width, **settings), sizes, self.jitter)

    @classmethod
    def dummy(cls, sizes: Sizes) -> LikelihoodFlowConfig:
        """Return the settings of the smallest flow."""
        return cls('real_nvp')


class LikelihoodFlow(LikelihoodGenerator):
    """Learns the density of whole chunks by maximum likelihood: the loss is ``-log p(chunk | condition) / (H A)``.

    Rezende and Mohamed, arXiv 1505.05770. A density flow (`flow_vla_core.flows`) is a bijection between chunk and
    noise, so one pass of it makes a sample out of the noise that is given, and ``log_prob`` is exact. Steps change
    nothing. The flow sees the condition's vector, which sums up its tokens, through a small network.

    Actions that don't count are replaced by Gaussian noise of known density, and the flow is told which: what is left
    of the likelihood is that of the others. Noise on the actions, ``jitter``, keeps the density of a number that never
    varies finite. A flow can't be asked how a chunk goes on: of 16 samples, that which begins most like the prefix is
    taken.

    Args:
        flow: over H A numbers.
        sizes: of chunk and condition.
        jitter: standard deviation of noise on the actions in training, in normalised units.

    Raises:
        ConfigError: for a negative jitter, or a flow over another number of dimensions.

    Example:
        >>> generator = LikelihoodFlowConfig('maf').build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> condition = Condition(torch.zeros(5, 3))
        >>> generator.log_prob(torch.zeros(5, 4, 2), condition).shape
        torch.Size([5])
    """

    def __init__(self, flow: NormalizingFlow, sizes: Sizes, jitter: float = 0.01) -> None:
        super().__init__(sizes)
        if jitter < 0:
            raise ConfigError(f'generator.jitter: {jitter}; allowed: 0 or more')
        if flow.dim != sizes.horizon * sizes.action_dim:
            raise ConfigError(f'a flow over {flow.dim} numbers; allowed: {sizes.horizon} x {sizes.action_dim}')
        self.flow, self.jitter = flow, jitter
        width = flow.context_dim
        self.context = nn.Sequential(nn.Linear(sizes.condition_dim + sizes.horizon, width), nn.SiLU(),
                                     nn.Linear(width, width))

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        mask = actions.new_ones(actions.shape[:2], dtype=torch.bool) if mask is None else mask
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        filled = torch.where(mask[..., None], actions + self.jitter * noise, noise)
        added = (log_normal(noise) * ~mask).sum(1)
        surprise = added + self.flow.nll(filled.flatten(1), self._context(condition, mask), generator)
        return surprise.sum() / (mask.sum() * self.sizes.action_dim).clamp(min=1)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        if prefix is None:
            return self._make(condition, noise)
        several = self._make(condition.expand(CANDIDATES), more_noise(noise, CANDIDATES, generator))
        return begin_with(prefix, nearest_beginning(prefix, several))

    def _make(self, condition: Condition, noise: Tensor) -> Tensor:
        """Send noise (B, H, A) through the flow."""
        return self.flow.transform.generate(noise.flatten(1), self._context(condition)).reshape(noise.shape)

    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        return self.flow(self._context(condition)).log_prob(actions.flatten(1))

    def _context(self, condition: Condition, mask: Tensor | None = None) -> Tensor:
        """Embed the condition, and which actions count: (B, width)."""
        vector = condition.vector
        counted = vector.new_ones(len(vector), self.sizes.horizon) if mask is None else mask.to(vector)
        return self.context(torch.cat([vector, counted], -1)).to(vector.dtype)
