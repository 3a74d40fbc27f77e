"""Averaged weights, which act better than the last ones."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ['Average']


class Average:
    """Keeps an exponential moving average of a module: ``average += (1 - d) (weights - average)``.

    The decay is ``d = min(decay, (1 + n) / (10 + n))`` after n updates, so the first weights are soon forgotten.
    Buffers are copied.

    Args:
        module: whose weights are averaged.
        decay: from 0 to 1.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> average = Average(module, decay=0.99)
        >>> before = module.weight.item()
        >>> _ = nn.init.constant_(module.weight, before + 1)
        >>> average.update(module)
        >>> round(average.module.weight.item() - before, 4)
        0.9
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the weights of one more step in."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), module.buffers()):
            mine.copy_(theirs)
        self.updates += 1
