"""All that a training needs to go on exactly where it was, as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn

from flow_vla_core.errors import CheckpointError
from flow_vla_core.training.average import Average
from flow_vla_core.training.checkpoint import new_folder, recover_folder

__all__ = ['TrainingState']

TENSORS, NUMBERS = 'state.safetensors', 'state.json'


@dataclass(frozen=True)
class TrainingState:
    """Gathers what changes during a training.

    Args:
        module: being trained.
        average: of its weights.
        optimiser: of those parameters that have a gradient.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> parts = Average(module, 0.9), torch.optim.AdamW(module.parameters())
        >>> state = TrainingState(module, *parts)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state.save(Path(folder) / 'resume', {'step': 3})
        ...     state.load(Path(folder) / 'resume')
        {'step': 3}
    """

    module: nn.Module
    average: Average
    optimiser: torch.optim.Optimizer

    def save(self, folder: Path, numbers: dict[str, Any]) -> None:
        """Write everything and ``numbers``; a folder that is there already is replaced in one step."""
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._tensors().items()}
        with new_folder(folder) as fresh:
            save_file(tensors, fresh / TENSORS)
            (fresh / NUMBERS).write_text(json.dumps({**numbers, 'averaged': self.average.updates}))

    def load(self, folder: Path) -> dict[str, Any]:
        """Take over what `save` wrote and return its ``numbers``.

        Raises:
            CheckpointError: if a file is missing or damaged, or is of another module.
        """
        recover_folder(folder)
        try:
            numbers = json.loads((folder / NUMBERS).read_text())
            tensors = load_file(folder / TENSORS)
            self._restore(tensors)
            self.average.updates = int(numbers.pop('averaged'))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f'{folder}: cannot go on from here: {error}') from error
        except (ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(f'{folder}: damaged, or of another module: {error}') from error
        return numbers

    def _tensors(self) -> dict[str, Tensor]:
        found = {f'module/{name}': tensor for name, tensor in self.module.state_dict().items()}
        found |= {f'average/{name}': tensor for name, tensor in self.average.module.state_dict().items()}
        for name, parameter in self._trained():
            for key, value in self.optimiser.state[parameter].items():
                found[f'optimiser/{name}/{key}'] = value
        return found

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.module.load_state_dict(_below(tensors, 'module/'))
        self.average.module.load_state_dict(_below(tensors, 'average/'))
        for name, parameter in self._trained():
            held = _below(tensors, f'optimiser/{name}/')
            self.optimiser.state[parameter] = {key: _like(value, parameter) for key, value in held.items()}

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.module.named_parameters() if parameter.requires_grad)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Give a moment the memory layout of its parameter, which the fused optimiser counts on."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.to(parameter.device)
