"""A task with two right answers, where the mean of both is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.distances import wasserstein2
from flow_vla_core.networks import Sizes
from flow_vla_core.types import Condition

__all__ = ['Bimodal', 'BimodalScore']

Draw = Callable[[Condition, torch.Generator], Tensor]


@dataclass(frozen=True)
class BimodalScore:
    """Holds how near chunks are to the expert's; all are means over observations.

    Args:
        w2: Wasserstein distance to the expert's chunks for the same observation.
        between: share of chunks that run into the obstacle.
        mode_error: absolute error of the share of chunks that pass on the left.
        error: root mean square distance from the nearer of the two ideal paths, per number.

    Example:
        >>> BimodalScore(w2=0.7, between=0.04, mode_error=0.02, error=0.1).between
        0.04
    """

    w2: float
    between: float
    mode_error: float
    error: float


@dataclass(frozen=True)
class Bimodal:
    """Makes chunks that go past an obstacle on the left or on the right; the observation sets how likely each is.

    With ``s = (i + 1/2) / H`` the chunk for an observation (goal g, place of the obstacle o, balance b, each uniform
    in [-1, 1]) is ``x = 2 s - 1``, ``y = g s / 2 + (o / 5 + m) sin(pi s)`` and noise on every number, where m is plus
    ``clearance`` (left) with the probability ``(1 + 0.8 b) / 2`` and minus ``clearance`` (right) otherwise. A chunk is
    between the modes if its bump, fitted by least squares, is nearer to the obstacle than half the clearance.

    Args:
        horizon: H.
        clearance: distance of both ways from the obstacle.
        noise: standard deviation of the expert's noise.

    Raises:
        ConfigError: for a size that is not above 0.

    Example:
        >>> actions, condition = Bimodal().sample(5, torch.Generator().manual_seed(0))
        >>> actions.shape, condition.vector.shape
        (torch.Size([5, 16, 2]), torch.Size([5, 3]))
        >>> Bimodal().share_between(actions, condition)
        0.0
    """

    horizon: int = 16
    clearance: float = 0.65
    noise: float = 0.08

    def __post_init__(self) -> None:
        for name in ('horizon', 'clearance', 'noise'):
            if not getattr(self, name) > 0:
                raise ConfigError(f'{name}: {getattr(self, name)!r}; allowed: above 0')

    @property
    def sizes(self) -> Sizes:
        """Sizes of chunk and condition."""
        return Sizes(self.horizon, 2, 3)

    def observe(self, count: int, generator: torch.Generator | None = None) -> Condition:
        """Draw observations (N, 3): goal, obstacle and balance."""
        return Condition(2 * torch.rand(count, 3, generator=generator) - 1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Condition]:
        """Draw what the expert does for as many new observations: chunks (N, H, 2) and the observations."""
        condition = self.observe(count, generator)
        return self.expert(condition, generator), condition

    def expert(self, condition: Condition, generator: torch.Generator | None = None) -> Tensor:
        """Draw what the expert does for given observations: (N, H, 2)."""
        left = torch.rand(len(condition), generator=generator).to(condition.vector) < self.left_probability(condition)
        side = torch.where(left, self.clearance, -self.clearance).to(condition.vector)
        noise = torch.randn(len(condition), self.horizon, 2, generator=generator)
        return self.path(condition, side) + self.noise * noise.to(condition.vector)

    def left_probability(self, condition: Condition) -> Tensor:
        """Return how likely the expert passes on the left: (N,), between .1 and .9."""
        return (1 + 0.8 * condition.vector[:, 2]) / 2

    def path(self, condition: Condition, side: Tensor) -> Tensor:
        """Return the chunks (N, H, 2) without noise that pass the obstacle at a distance (N,), left being positive."""
        goal, obstacle, _ = condition.vector.unbind(1)
        along, bump = self._shape(condition.vector)
        y = 0.5 * goal[:, None] * along + (0.2 * obstacle + side)[:, None] * bump
        return torch.stack([(2 * along - 1).expand_as(y), y], -1)

    def distance(self, actions: Tensor, condition: Condition) -> Tensor:
        """Return at which distance chunks (N, H, 2) pass the obstacle, left being positive: (N,)."""
        straight = self.path(condition, torch.zeros_like(condition.vector[:, 0]))
        _, bump = self._shape(actions)
        return (actions - straight)[..., 1] @ bump / bump.square().sum()

    def share_between(self, actions: Tensor, condition: Condition) -> float:
        """Return the share of chunks (N, H, 2) that run into the obstacle."""
        return (self.distance(actions, condition).abs() < self.clearance / 2).double().mean().item()

    def score(self, draw: Draw, observations: int = 16, samples: int = 1024, seed: int = 0) -> BimodalScore:
        """Compare chunks with the expert's.

        Args:
            draw: ``draw(condition, generator)`` makes one chunk (N, H, 2) for each of N observations.
            observations: how many different ones.
            samples: chunks for each of them.
            seed: of the observations and of the expert's and the model's randomness.
        """
        generator = torch.Generator().manual_seed(seed)
        condition = self.observe(observations, generator).expand(samples)
        expert, made = self.expert(condition, generator), draw(condition, generator)
        pairs = zip(made.flatten(1).split(samples), expert.flatten(1).split(samples))
        distances = torch.tensor([float(wasserstein2(mine, theirs)) for mine, theirs in pairs])
        passed = self.distance(made, condition)
        left = (passed > 0).double().reshape(-1, samples).mean(1)
        ideal = self.path(condition, self.clearance * torch.where(passed > 0, 1.0, -1.0).to(made))
        return BimodalScore(distances.mean().item(), self.share_between(made, condition),
                            (left - self.left_probability(condition)[::samples]).abs().mean().item(),
                            (made - ideal).square().mean().sqrt().item())

    def _shape(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far along the path each action is, and the bump, both (H,)."""
        along = (torch.arange(self.horizon).to(like) + 0.5) / self.horizon
        return along, torch.sin(torch.pi * along)
