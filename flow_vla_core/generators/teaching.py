"""What students take from a trained generator: weights, pairs of noise and chunk, the velocity."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.base import Generator
from flow_vla_core.generators.paths import StraightPath
from flow_vla_core.types import Condition

__all__ = ['adopt', 'draw_pairs', 'velocity_of']


@torch.no_grad()
def adopt(network: nn.Module, teacher: nn.Module | None) -> bool:
    """Begin with the weights of a network of the same kind; return whether it is one.

    A matrix that has more columns here gets the teacher's and zeros beyond them, so that what is new has no effect yet.

    Args:
        network: takes the weights over.
        teacher: has them; nothing happens if it is of another kind or size.

    Example:
        >>> narrow, wide = nn.Linear(2, 3), nn.Linear(4, 3)
        >>> adopt(wide, narrow), bool((wide.weight[:, 2:] == 0).all())
        (True, True)
        >>> adopt(nn.Linear(2, 5), narrow)
        False
    """
    mine = network.state_dict()
    theirs = {} if teacher is None else teacher.state_dict()
    if mine.keys() != theirs.keys() or not all(_fits(mine[name], theirs[name]) for name in mine):
        return False
    for name, values in mine.items():
        wide = values.ndim == 2
        values.zero_()
        (values[:, :theirs[name].shape[1]] if wide else values).copy_(theirs[name])
    return True


@torch.no_grad()
def draw_pairs(teacher: Generator, condition: Condition, steps: int,
               generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw noise and the chunks that a teacher makes of it: (B, H, A) each.

    Args:
        teacher: trained.
        condition: of B elements.
        steps: the teacher's effort.
        generator: source of randomness.
    """
    shape = (len(condition), teacher.sizes.horizon, teacher.sizes.action_dim)
    noise = torch.randn(shape, generator=generator).to(condition.vector)
    return noise, teacher.sample(condition, noise=noise, steps=steps, generator=generator)


def velocity_of(teacher: Generator) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """Return the velocity (x, t, condition) of a generator that follows one on the straight path from noise to chunk.

    Raises:
        ConfigError: if it follows none, or one on another path.
    """
    path = getattr(teacher, 'path', StraightPath())
    if not hasattr(teacher, 'velocity') or not isinstance(path, StraightPath):
        raise ConfigError(f'{type(teacher).__name__} has no velocity on the straight path to learn from; allowed: '
                          'flow_matching with path straight, or rectified')
    return teacher.velocity


def _fits(mine: Tensor, theirs: Tensor) -> bool:
    return mine.shape == theirs.shape or (mine.ndim == theirs.ndim == 2 and mine.shape[0] == theirs.shape[0]
                                          and mine.shape[1] > theirs.shape[1])
