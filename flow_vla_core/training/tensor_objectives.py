"""Objectives whose examples are tensors: chunks with their conditions, points with their contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from flow_vla_core.errors import InputError
from flow_vla_core.flows.base import NormalizingFlow
from flow_vla_core.generators import Generator
from flow_vla_core.training.objective import Objective, digest
from flow_vla_core.types import Condition

__all__ = ['ChunkObjective', 'DensityObjective']


class ChunkObjective(Objective):
    """Trains a generator on normalised chunks whose conditions are known and stay as they are.

    Args:
        generator: is trained in place.
        actions: (N, H, A), normalised.
        conditions: of the same N.
        mask: (N, H) bool, false for actions that don't count.

    Raises:
        InputError: for shapes that do not fit the generator, or for NaN or infinity.

    Example:
        >>> from flow_vla_core.generators import RegressionConfig
        >>> from flow_vla_core.networks import NetworkConfig, Sizes
        >>> from flow_vla_core.training.config import LoopConfig
        >>> from flow_vla_core.training.trainer import FlowTrainer
        >>> generator = RegressionConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> objective = ChunkObjective(generator, torch.randn(50, 4, 2), Condition(torch.randn(50, 3)))
        >>> trainer = FlowTrainer(objective, LoopConfig(steps=3, batch_size=8))
        >>> trainer.run()
        >>> trainer.average.module.sample(Condition(torch.randn(5, 3))).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, generator: Generator, actions: Tensor, conditions: Condition,
                 mask: Tensor | None = None) -> None:
        super().__init__(generator)
        count, sizes = len(conditions), generator.sizes
        _check('actions', actions, (count, sizes.horizon, sizes.action_dim))
        _check('conditions', conditions.vector, (count, sizes.condition_dim))
        if mask is not None:
            _check('mask', mask, (count, sizes.horizon))
        self.actions, self.conditions, self.mask = actions, conditions, mask

    def __len__(self) -> int:
        return len(self.actions)

    def loss(self, module: nn.Module, examples: Tensor, generator: torch.Generator) -> Tensor:
        """Return the generator's loss."""
        indices = examples.to(self.device)
        mask = None if self.mask is None else self.mask[indices]
        return module.loss(self.actions[indices], self.conditions[indices], mask, generator)

    def after_step(self) -> None:
        """Tell the generator."""
        self.module.after_step()

    def to(self, device: torch.device | str) -> None:
        """Move generator and examples."""
        super().to(device)
        self.actions, self.conditions = self.actions.to(device), self.conditions.to(device)
        self.mask = None if self.mask is None else self.mask.to(device)

    def identity(self) -> Mapping[str, Any]:
        """Name the generator, its sizes and its examples."""
        return {'generator': type(self.module).__name__, 'sizes': asdict(self.module.sizes), 'examples': len(self),
                'data': digest(self.actions, self.conditions.vector, self.conditions.tokens, self.mask)}


class DensityObjective(Objective):
    """Trains a density flow on points: the mean of ``-log p(x | c)``, in nats.

    Args:
        flow: is trained in place.
        samples: (N, D).
        context: (N, C), or None for a flow without.

    Raises:
        InputError: for shapes that do not fit the flow, or for NaN or infinity.

    Example:
        >>> from flow_vla_core.flows import RealNVP
        >>> from flow_vla_core.training.config import LoopConfig
        >>> from flow_vla_core.training.trainer import FlowTrainer
        >>> trainer = FlowTrainer(DensityObjective(RealNVP(2), torch.randn(50, 2)), LoopConfig(steps=3, batch_size=8))
        >>> trainer.run()
        >>> trainer.average.module().sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, flow: NormalizingFlow, samples: Tensor, context: Tensor | None = None) -> None:
        super().__init__(flow)
        _check('samples', samples, (len(samples), flow.dim))
        if (context is None) != (flow.context_dim == 0):
            raise InputError(f'context: {"none" if context is None else "given"}; this flow has {flow.context_dim} '
                             'dimensions of it')
        if context is not None:
            _check('context', context, (len(samples), flow.context_dim))
        self.samples, self.context = samples, context

    def __len__(self) -> int:
        return len(self.samples)

    def loss(self, module: nn.Module, examples: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean negative log-likelihood, in nats, or the flow's own estimate of it."""
        indices = examples.to(self.device)
        context = None if self.context is None else self.context[indices]
        return module.nll(self.samples[indices], context, generator).mean()

    def to(self, device: torch.device | str) -> None:
        """Move flow and examples."""
        super().to(device)
        self.samples = self.samples.to(device)
        self.context = None if self.context is None else self.context.to(device)

    def identity(self) -> Mapping[str, Any]:
        """Name the flow, its sizes and its examples."""
        return {'flow': type(self.module).__name__, 'sizes': [self.module.dim, self.module.context_dim],
                'examples': len(self), 'data': digest(self.samples, self.context)}


def _check(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise InputError(f'{name}: shape {tuple(values.shape)}; allowed: {shape}')
    if not torch.isfinite(values).all():
        raise InputError(f'{name}: hold NaN or infinity')
