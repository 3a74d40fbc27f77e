"""The processes that train together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
import json
import os
from typing import Any

import torch
from torch import Tensor, distributed, nn

from flow_vla_core.errors import ConfigError, TrainingError

__all__ = ['World']

PATIENCE = timedelta(hours=24)  # one process may decode bags for the others; torchrun ends all if one dies
BACKENDS = {'cpu': 'gloo', 'cuda': 'nccl'}


class World:
    """Stands for the processes that train together; the first one leads: it alone writes.

    Args:
        rank: number of this process.
        size: how many there are.
        device: where the tensors lie that they send one another.

    Example:
        >>> world = World()
        >>> world.leads, world.share({'loss': 0.5})
        (True, {'loss': 0.5})
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | str = 'cpu') -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)

    @classmethod
    @contextmanager
    def joined(cls, kind: str = 'cpu') -> Iterator[World]:
        """Join the processes that torchrun started, and leave them at the end; without torchrun there is only this one.

        Args:
            kind: of device, ``cpu`` or ``cuda``; each process of a machine takes a CUDA device of its own.
        """
        if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
            yield cls(device=kind)
            return
        device = torch.device(kind, int(os.environ.get('LOCAL_RANK', 0)) if kind == 'cuda' else None)
        if kind == 'cuda':
            torch.cuda.set_device(device)
        distributed.init_process_group(BACKENDS[kind], timeout=PATIENCE)
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size(), device)
        finally:
            distributed.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            distributed.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do something before all others: what it leaves on the disk they need not do again."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def check_shards(self, shards: int) -> None:
        """Raise `ConfigError` if a batch is cut into fewer shards than there are processes."""
        if shards < self.size:
            raise ConfigError(f'accumulate: {shards}; {self.size} processes need as many parts of a batch at least: '
                              f'--accumulate {self.size}')

    def check_alike(self, values: Mapping[str, Any]) -> None:
        """Raise `TrainingError`, which names the key, if values differ from the first process's."""
        mine = {key: json.dumps(value) for key, value in values.items()}
        theirs = self.share(mine)
        if different := [key for key in mine if mine[key] != theirs.get(key)]:
            raise TrainingError(f'process {self.rank} differs from the first one in {", ".join(different)}: do all '
                                'machines see the same bags?')

    def share(self, value: Any) -> Any:
        """Return the first process's value, which JSON can hold, in all."""
        if self.size == 1:
            return value
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(text)], device=self.device)
        distributed.broadcast(length, 0)
        text = text if self.leads else torch.empty(int(length), dtype=torch.uint8, device=self.device)
        distributed.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    @torch.no_grad()
    def spread(self, module: nn.Module) -> None:
        """Give all the first process's weights and buffers."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                raw = tensor.flatten().clone().view(torch.uint8)
                distributed.broadcast(raw, 0)
                tensor.copy_(raw.view(tensor.dtype).view(tensor.shape))

    @torch.no_grad()
    def add_up(self, parameters: Sequence[nn.Parameter], figures: Tensor) -> Tensor:
        """Sum the gradients of all processes, in place, and some figures (N,), in one message; return the figures.

        A parameter without a gradient counts as 0; it stays without one if no process has one.
        """
        if self.size == 1:
            return figures
        held = torch.tensor([parameter.grad is not None for parameter in parameters], device=self.device)
        parts = [(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters]
        flat = torch.cat([*parts, held.float(), figures.to(self.device)])
        distributed.all_reduce(flat)
        *sums, held, figures = flat.split([*(len(part) for part in parts), len(parts), len(figures)])
        for parameter, gradient, is_held in zip(parameters, sums, held.tolist()):
            if is_held:
                parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad.copy_(gradient.view(parameter.shape))
        return figures
