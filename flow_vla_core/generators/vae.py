"""A conditional variational auto-encoder of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.generators.base import FamilyConfig, Generator, begin_with, masked_mean
from flow_vla_core.generators.regression import DISTANCES
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['PRIORS', 'ActionVAE', 'ActionVAEConfig', 'gaussian_divergence']

PRIORS = ('sample', 'mean')


def gaussian_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), in nats: (..., L) -> (...).

    Kingma and Welling, arXiv 1312.6114, appendix B.

    Example:
        >>> gaussian_divergence(torch.tensor([3.0, 0.0]), torch.zeros(2))
        tensor(4.5000)
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


@dataclass(frozen=True)
class ActionVAEConfig(FamilyConfig):
    """Sets up `ActionVAE`, whose arguments these are.

    Example:
        >>> ActionVAEConfig(prior='mean').latent
        32
    """

    family: str = field(default='vae', init=False)
    latent: int = 32
    weight: float = 0.01
    distance: str = 'l1'
    prior: str = 'sample'

    def build(self, sizes: Sizes, network: NetworkConfig) -> ActionVAE:
        """Make it with two networks, one that reads chunks and one that makes them."""
        return ActionVAE(network.build(sizes), network.build(sizes), sizes, latent=self.latent, weight=self.weight,
                         distance=self.distance, prior=self.prior)


class ActionVAE(Generator):
    """Says by a latent z what the condition leaves open: ``chunk = f(z, condition)``, with z drawn from N(0, 1).

    The conditional auto-encoder of ACT, arXiv 2304.13705: in training z comes from an encoder that sees the chunk, and
    the loss is the distance of the decoded chunk plus ``weight`` times `gaussian_divergence`. ACT itself answers with
    the mean of the prior, which makes one chunk of each condition. Steps change nothing.

    The latent is read off the noise that a sample begins from: its first L numbers. Therefore L is at most H A.

    Args:
        encoder: reads chunks with t = 1; of the same kind as a velocity network.
        decoder: makes chunks; called with a learned chunk, t = 1 and the latent added to the condition.
        sizes: of chunk and condition.
        latent: size L of z; taken down to H A, the size of a chunk, where it is above.
        weight: of the divergence (a sum over z) against the distance (a mean over the chunk).
        distance: ``l1`` or ``l2``.
        prior: whether a sample draws z (``sample``) or takes its ``mean``.

    Raises:
        ConfigError: for an unknown distance or prior, an empty latent or a negative weight.

    Example:
        >>> generator = ActionVAEConfig(latent=4).build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.sample(Condition(torch.zeros(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, sizes: Sizes, *, latent: int = 32,
                 weight: float = 0.01, distance: str = 'l1', prior: str = 'sample') -> None:
        super().__init__(sizes)
        for key, value, allowed in (('distance', distance, DISTANCES), ('prior', prior, PRIORS)):
            if value not in allowed:
                raise ConfigError(f'generator.{key}: {value!r}; {closest(value, allowed)}')
        if latent < 1 or weight < 0:
            raise ConfigError(f'generator.latent: {latent}, weight: {weight}; allowed: 1 or more, 0 or more')
        numbers = sizes.horizon * sizes.action_dim
        self.latent, self.weight, self.distance, self.prior = min(latent, numbers), weight, distance, prior
        self.encoder, self.decoder = encoder, decoder
        self.describe = nn.Linear(numbers, 2 * self.latent)
        self.tell = nn.Linear(self.latent, sizes.condition_dim)
        self.query = nn.Parameter(torch.randn(sizes.horizon, sizes.action_dim))

    def posterior(self, actions: Tensor, condition: Condition, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of z, given chunks (B, H, A): (B, L) each.

        Args:
            actions: (B, H, A).
            condition: of the same B.
            mask: (B, H) bool; actions for which it is false are not read.
        """
        seen = actions if mask is None else actions * mask[..., None]
        read = self.encoder(seen, _end(seen), condition).to(actions.dtype)
        return self.describe((seen + read).flatten(1)).chunk(2, -1)

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        mean, log_variance = self.posterior(actions, condition, mask)
        latent = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        distance = DISTANCES[self.distance](self._decode(latent, condition) - actions)
        return masked_mean(distance, mask) + self.weight * gaussian_divergence(mean, log_variance).mean()

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        latent = noise.flatten(1)[:, :self.latent]
        return begin_with(prefix, self._decode(torch.zeros_like(latent) if self.prior == 'mean' else latent, condition))

    def _decode(self, latent: Tensor, condition: Condition) -> Tensor:
        """(B, L), condition -> (B, H, A)."""
        query = self.query.expand(len(latent), -1, -1)
        told = condition.with_vector(condition.vector + self.tell(latent))
        return self.decoder(query, _end(query), told).to(query.dtype)


def _end(chunk: Tensor) -> Tensor:
    return torch.ones(len(chunk), dtype=chunk.dtype, device=chunk.device)
