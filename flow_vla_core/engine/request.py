"""What a runner is asked: tensors whose shapes are the same for every chunk of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['Request']


@dataclass(frozen=True)
class Request:
    """Holds one observation, the noise to begin from and what is left of the plan in force.

    Args:
        images: camera name -> (1, T, C, Y, X) uint8.
        state: (1, T, S) float32 in the contract's units.
        language: (1, L) float32, the encoded words.
        noise: (N, H, A) float32, one for each chunk that is made.
        left: (1, H, A) float32 in the contract's units, the plan in force from the new chunk's first step on.
        firm: (H,) float32, how firmly each of ``left`` is held to; what is 0 does not count.

    Example:
        >>> blank = torch.zeros(1, 4, 2)
        >>> request = Request({}, torch.zeros(1, 1, 3), torch.zeros(1, 8), blank, blank, torch.zeros(4))
        >>> len(request.tensors())
        5
    """

    images: Mapping[str, Tensor]
    state: Tensor
    language: Tensor
    noise: Tensor
    left: Tensor
    firm: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all tensors, images first, in an order that does not change."""
        return (*self.images.values(), self.state, self.language, self.noise, self.left, self.firm)

    def map(self, change: Callable[[Tensor], Tensor]) -> Request:
        """Return the same with every tensor changed."""
        return Request({name: change(image) for name, image in self.images.items()},
                       *(change(part) for part in self.tensors()[len(self.images):]))

    def to(self, device: torch.device) -> Request:
        """Return a copy on another device."""
        return self.map(lambda part: part.to(device))
