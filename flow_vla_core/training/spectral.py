"""A bound on the spectral norm of the layers."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ['SpectralBound', 'bound_spectral_norms', 'folded', 'follow_weights']

Module = TypeVar('Module', bound=nn.Module)

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
SMALLEST = 1e-12  # a product below it says nothing about a direction


class SpectralBound(nn.Module):
    """Scales a matrix down to a spectral norm of at most ``bound``: ``W / max(1, sigma(W) / bound)``.

    The largest singular value sigma comes from power iterations, which go on from step to step of a training (arXiv
    1802.05957, algorithm 1); a matrix below the bound stays as it is (arXiv 1804.04368, equation 6), so layers may
    begin at zero. A kernel (O, I, ...) counts as a matrix (O, I * ...).

    Args:
        weight: that it is to be applied to.
        bound: largest norm.
        iterations: power iterations at the beginning.

    Example:
        >>> weight = torch.diag(torch.tensor([4.0, 1.0]))
        >>> SpectralBound(weight, 2.0)(weight)
        tensor([[2.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    def __init__(self, weight: Tensor, bound: float, iterations: int = 30) -> None:
        super().__init__()
        self.bound = bound
        matrix = weight.detach().flatten(1)
        random = torch.Generator().manual_seed(0)
        for name, size in zip(('left', 'right'), matrix.shape):
            start = torch.randn(size, generator=random).to(matrix)
            self.register_buffer(name, start / start.norm())
        self.follow(matrix, iterations)

    def forward(self, weight: Tensor) -> Tensor:
        """(O, ...) -> (O, ...)."""
        norm = (self.left[:, None] * weight.flatten(1) * self.right).sum()  # no product that autocast would round
        return weight / (norm / self.bound).clamp(min=1)

    @torch.no_grad()
    def follow(self, weight: Tensor, iterations: int = 1) -> None:
        """Do power iterations with a weight (O, ...) that has changed."""
        matrix = weight.flatten(1)
        for _ in range(iterations):
            _turn(self.right, matrix.T @ self.left)
            _turn(self.left, matrix @ self.right)


def bound_spectral_norms(module: nn.Module, bound: float) -> None:
    """Put `SpectralBound` on every linear layer and convolution of a module, in place."""
    for layer in [part for part in module.modules() if isinstance(part, LAYERS)]:
        parametrize.register_parametrization(layer, 'weight', SpectralBound(layer.weight, bound))


def follow_weights(module: nn.Module) -> None:
    """Let every bound in a module see the weight that it is applied to; due after each step of the optimiser."""
    for layer in module.modules():
        if parametrize.is_parametrized(layer):
            for part in layer.parametrizations.weight:
                part.follow(layer.parametrizations.weight.original)


def folded(module: Module) -> Module:
    """Return a module with ordinary weights that computes the same; a module without bounds is returned itself."""
    if not any(parametrize.is_parametrized(part) for part in module.modules()):
        return module
    module = copy.deepcopy(module)
    for layer in [part for part in module.modules() if parametrize.is_parametrized(part)]:
        weight = layer.weight.detach()
        layer.__class__ = parametrize.type_before_parametrizations(layer)  # torch's own removal would spoil the
        del layer.parametrizations                                         # original, whose class the copy shares
        layer.weight = nn.Parameter(weight)
    return module


def _turn(vector: Tensor, product: Tensor) -> None:
    """Give a unit vector the direction of a product, in place, if that has one."""
    norm = product.norm()
    vector.copy_(torch.where(norm > SMALLEST, product / norm, vector))
