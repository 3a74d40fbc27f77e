"""Divergence of a vector field, exactly or by a random estimate."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flow_vla_core.errors import InputError, closest

__all__ = ['PROBES', 'draw_probe', 'exact_divergence', 'hutchinson_divergence']

PROBES = ('rademacher', 'gaussian')


def exact_divergence(field: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field at x and ``div f = tr df/dx`` from D vector-Jacobian products: (B, ...), (B,).

    The field is evaluated once. Its elements of the batch must not depend on each other. Under `torch.no_grad` nothing
    that is returned has a gradient; otherwise both have.

    Args:
        field: (B, ...) -> (B, ...).
        x: where.

    Raises:
        InputError: inside `torch.inference_mode`.

    Example:
        >>> with torch.no_grad():
        ...     exact_divergence(lambda x: x ** 2, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[1]
        tensor([ 6., 14.])
    """
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x, value = _evaluate(field, x, with_graph)
        basis = torch.eye(x.shape[1:].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        total = sum((_pull_back(value, x, row.expand_as(x), with_graph) * row).flatten(1).sum(1) for row in basis)
    return (value, total) if with_graph else (value.detach(), total.detach())


def hutchinson_divergence(field: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field at x and the unbiased estimate ``e^T df/dx e`` of its divergence: (B, ...), (B,).

    Hutchinson 1990; for flows arXiv 1810.01367, equation 7. One evaluation and one vector-Jacobian product. Along one
    solution of a differential equation the noise has to stay the same.

    Args:
        field: (B, ...) -> (B, ...).
        x: where.
        noise: of the same shape, with mean 0 and covariance 1; see `draw_probe`.

    Raises:
        InputError: if the noise has another shape, and inside `torch.inference_mode`.

    Example:
        >>> x, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]])
        >>> with torch.no_grad():
        ...     hutchinson_divergence(lambda x: x ** 2, x, noise)[1]
        tensor([6.])
    """
    if noise.shape != x.shape:
        raise InputError(f'noise: shape {tuple(noise.shape)}; allowed: {tuple(x.shape)}')
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        x, value = _evaluate(field, x, with_graph)
        total = (_pull_back(value, x, noise, with_graph) * noise).flatten(1).sum(1)
    return (value, total) if with_graph else (value.detach(), total.detach())


def draw_probe(kind: str, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw noise for `hutchinson_divergence`, of the shape of ``like``.

    Args:
        kind: ``rademacher``, which is exact where the Jacobian is diagonal, or ``gaussian``.
        like: gives shape, type and device.
        generator: source of randomness.

    Raises:
        InputError: for another kind.

    Example:
        >>> draw_probe('rademacher', torch.zeros(2, 3)).abs().sum()
        tensor(6.)
    """
    if kind not in PROBES:
        raise InputError(f'noise of kind {kind!r}; {closest(kind, PROBES)}')
    if kind == 'gaussian':
        return torch.randn(like.shape, generator=generator).to(like)
    return (2 * torch.randint(0, 2, like.shape, generator=generator) - 1).to(like)


def _evaluate(field: Callable[[Tensor], Tensor], x: Tensor, with_graph: bool) -> tuple[Tensor, Tensor]:
    """Make x a tensor that a gradient can reach, one that the caller's graph goes through if there is one."""
    if torch.is_inference_mode_enabled():
        raise InputError('x: nothing can be differentiated in torch.inference_mode; allowed: torch.no_grad')
    x = x if with_graph and x.requires_grad else x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH) if with_graph else nullcontext():  # the other kernels have no second derivative
        return x, field(x)


def _pull_back(value: Tensor, x: Tensor, rows: Tensor, with_graph: bool) -> Tensor:
    """Return ``rows^T df/dx`` (B, ...); zeros for a field that does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    found, = torch.autograd.grad(value, x, rows, create_graph=with_graph, retain_graph=True, allow_unused=True,
                                 materialize_grads=True)
    return found
