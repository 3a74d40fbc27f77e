"""What a trainer trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flow_vla_core.training.checkpoint import save_weights
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.sampler import BatchSampler, Sampler

__all__ = ['Objective', 'digest']


class Objective(ABC):
    """Declares what is trained and on which examples; how is the trainer's matter.

    Methods that take a module get the one that is trained or its average; both are of the same kind. A step trains on
    the examples that ``sampler`` names; ``load`` fetches them, up to ``ahead`` batches early in a thread of its own;
    ``loss`` gets what ``load`` returned. Examples that change while the training runs need a `LiveSampler`, and an
    ``ahead`` of 0 unless ``load`` copes with numbers that have become old.

    Args:
        module: is trained in place.

    Example:
        >>> class Fit(Objective):
        ...     def __len__(self):
        ...         return 8
        ...     def loss(self, module, examples, generator):
        ...         return (module(examples[:, None] / 8.0) - 1).square().mean()
        ...     def identity(self):
        ...         return {'fit': 1}
        >>> objective = Fit(nn.Linear(1, 1))
        >>> objective.loss(objective.module, torch.arange(8), torch.Generator()).shape
        torch.Size([])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.device = torch.device('cpu')

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples N."""

    @property
    def ahead(self) -> int:
        """Batches that may be fetched early."""
        return 0

    @property
    def weights(self) -> Tensor | None:
        """(N,) how often each example is drawn; None draws each once an epoch."""
        return None

    def sampler(self, config: LoopConfig) -> BatchSampler:
        """Return what says which examples make up the batch of a step."""
        return Sampler(len(self), config.batch_size, config.seed, self.weights)

    def load(self, indices: Tensor, generator: torch.Generator) -> Any:
        """Fetch the examples with the numbers ``indices`` (B,) for `loss`; by default the numbers stand for them."""
        return indices

    @abstractmethod
    def loss(self, module: nn.Module, examples: Any, generator: torch.Generator) -> Tensor:
        """Return the training loss, a scalar, of what `load` returned; the source of randomness is the same."""

    def validate(self, module: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Return figures on examples that are not trained on; none if there are no such examples."""
        return {}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures that `validate` returns."""
        return ()

    def picture(self, path: Path, module: nn.Module) -> None:  # noqa: B027
        """Draw what the module makes of examples that are not trained on, if there are such examples."""

    def after_step(self) -> None:  # noqa: B027
        """Hear that the optimiser has made a step."""

    def to(self, device: torch.device | str) -> None:
        """Move the module, and what else is needed at each step."""
        self.device = torch.device(device)
        self.module.to(self.device)

    def compile(self) -> None:
        """Let torch compile the networks in place; what draws random numbers stays as it is."""
        for name, module in self.module.named_modules():
            if name.split('.')[-1] == 'network':
                module.compile()

    def save(self, folder: Path, module: nn.Module) -> None:
        """Write a trained module so that it can be used; a folder that is there already is replaced."""
        save_weights(folder, module)

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Return what a training must share with one that it goes on from, beside its settings."""

    def describe(self) -> Mapping[str, Any]:
        """Say what is trained on what, for the report."""
        return self.identity()


def digest(*tensors: Tensor | None) -> str:
    """Return a short text that differs for different numbers."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(str(tuple(tensor.shape)).encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
