"""How a new chunk takes up the plan in force."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flow_vla_core.errors import InputError
from flow_vla_core.generators import Continuing, Generator, Guide, prefix_weights
from flow_vla_core.types import Condition, Continuation

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['MODES', 'Free', 'Guided', 'Mode', 'Prefixed', 'pad']


class Mode(ABC):
    """Declares how a chunk goes on from what is left of the plan in force.

    Args:
        beta: bound of the guidance, for modes that guide.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    @abstractmethod
    def serves(self, generator: Generator) -> bool:
        """Tell whether the family can do it."""

    @abstractmethod
    def is_fixed(self, generator: Generator) -> bool:
        """Tell whether a chunk takes the same operations whatever the numbers are, and no gradient."""

    @abstractmethod
    def firm(self, continuation: Continuation, horizon: int) -> Tensor:
        """Return how firmly each action of the plan in force is held to, 0 to 1: (H,) float32.

        Raises:
            InputError: for a delay or a length that makes no sense.
        """

    @abstractmethod
    def decode(self, policy: FlowVLA, condition: Condition, noise: Tensor, steps: int, left: Tensor, firm: Tensor,
               generator: torch.Generator) -> Tensor:
        """Make chunks (N, H, A) that go on from ``left`` (1, H, A) where ``firm`` (H,) is above 0."""


class Free(Mode):
    """Leaves the plan in force out of account."""

    def serves(self, generator: Generator) -> bool:
        """Serve every family."""
        return True

    def is_fixed(self, generator: Generator) -> bool:
        """Ask the family."""
        return generator.is_fixed

    def firm(self, continuation: Continuation, horizon: int) -> Tensor:
        """Hold to nothing."""
        return torch.zeros(horizon)

    def decode(self, policy: FlowVLA, condition: Condition, noise: Tensor, steps: int, left: Tensor, firm: Tensor,
               generator: torch.Generator) -> Tensor:
        """Sample."""
        return policy.decode(condition, noise=noise, steps=steps, generator=generator)


class Guided(Mode):
    """Steers the field towards the plan in force: real-time chunking (arXiv 2506.07339).

    The bound of the guidance is at most the number of steps: where the Jacobian is the identity, one step then goes to
    the plan in force and not past it.
    """

    def serves(self, generator: Generator) -> bool:
        """Serve families that integrate a field."""
        return generator.guidable

    def is_fixed(self, generator: Generator) -> bool:
        """Take gradients."""
        return False

    def firm(self, continuation: Continuation, horizon: int) -> Tensor:
        """Hold to what will have been executed, and less and less to what was planned after it."""
        weights = prefix_weights(horizon, continuation.delay, continuation.execute).float()
        weights[len(continuation.actions):] = 0
        return weights

    def decode(self, policy: FlowVLA, condition: Condition, noise: Tensor, steps: int, left: Tensor, firm: Tensor,
               generator: torch.Generator) -> Tensor:
        """Sample with guidance."""
        guide = Guide(left.expand(len(noise), -1, -1), firm, min(self.beta, steps))
        return policy.decode(condition, noise=noise, steps=steps, guide=guide, generator=generator)


class Prefixed(Mode):
    """Begins with the actions that will have been executed: real-time chunking as trained for (arXiv 2512.05964)."""

    def serves(self, generator: Generator) -> bool:
        """Serve every family."""
        return True

    def is_fixed(self, generator: Generator) -> bool:
        """Ask the family, which must not need the length of the prefix beforehand."""
        return generator.is_fixed and isinstance(generator, Continuing)

    def firm(self, continuation: Continuation, horizon: int) -> Tensor:
        """Hold to the first d actions and to nothing else."""
        if not 0 <= continuation.delay < horizon:
            raise InputError(f'delay: {continuation.delay}; allowed: 0 to {horizon - 1}')
        if continuation.delay > len(continuation.actions):
            raise InputError(f'delay: {continuation.delay}; allowed: at most the {len(continuation.actions)} actions '
                             'that are left')
        return (torch.arange(horizon) < continuation.delay).float()

    def decode(self, policy: FlowVLA, condition: Condition, noise: Tensor, steps: int, left: Tensor, firm: Tensor,
               generator: torch.Generator) -> Tensor:
        """Sample what follows; families that need the length of the prefix beforehand look it up."""
        known, begun = firm > 0, left.expand(len(noise), -1, -1)
        if isinstance(policy.generator, Continuing):
            made = policy.generator.go_on(condition, noise, steps, policy.normalise_actions(begun), known)
            return policy.normalise_actions.inverse(made)
        return policy.decode(condition, noise=noise, steps=steps, prefix=begun[:, :int(known.sum())],
                             generator=generator)


MODES: Mapping[str, type[Mode]] = {'none': Free, 'guided': Guided, 'prefix': Prefixed}


def pad(actions: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Bring what is left of a plan (n, A) to (1, H, A); what is added does not count.

    Args:
        actions: n from 1 to H.
        shape: (any, H, A).

    Raises:
        InputError: for another shape, NaN or infinity.

    Example:
        >>> pad(np.ones((2, 3)), (1, 5, 3)).shape
        torch.Size([1, 5, 3])
    """
    _, horizon, width = shape
    if actions.ndim != 2 or not 0 < len(actions) <= horizon or actions.shape[1] != width:
        raise InputError(f'continuation: shape {actions.shape}; allowed: (1 to {horizon}, {width})')
    if not np.isfinite(actions).all():
        raise InputError('continuation: holds NaN or infinity')
    left = torch.zeros(1, horizon, width)
    left[0, :len(actions)] = torch.from_numpy(np.ascontiguousarray(actions, np.float32))
    return left
