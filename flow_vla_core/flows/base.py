"""Bijections with log-determinants, and the distributions that they make out of a Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
import math

import torch
from torch import Tensor, nn

from flow_vla_core.checks import all_finite
from flow_vla_core.errors import ConfigError, InputError

__all__ = ['Composition', 'FlowDistribution', 'Inverted', 'NormalizingFlow', 'Transform', 'log_normal']


class Transform(nn.Module, ABC):
    """Declares a bijection of R^D, which may depend on a context: data x to noise z, and back.

    Shapes: x and z (..., D), context (..., C) with the same leading shape, log-determinants (...).

    Args:
        dim: D.
        context_dim: C; 0 for none.

    Raises:
        ConfigError: for a size that is not allowed.

    Example:
        >>> class Doubling(Transform):
        ...     def forward(self, x, context=None):
        ...         return 2 * x, x.new_full(x.shape[:-1], self.dim * math.log(2))
        ...     def inverse(self, z, context=None):
        ...         return z / 2, z.new_full(z.shape[:-1], -self.dim * math.log(2))
        >>> Doubling(2)(torch.ones(1, 2))
        (tensor([[2., 2.]]), tensor([1.3863]))
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        if dim < 1 or context_dim < 0:
            raise ConfigError(f'a transform of {dim} dimensions and a context of {context_dim}; allowed: 1 or more, '
                              '0 or more')
        self.dim, self.context_dim = dim, context_dim

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return z and ``log |det dz/dx|``."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x and ``log |det dx/dz|``."""

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return x alone; transforms whose log-determinant is dear leave it out here."""
        return self.inverse(z, context)[0]


class Inverted(Transform):
    """Swaps the two directions of a transform: ``z = f^-1(x), log |det dz/dx| = -log |det f'(z)|``.

    For instance inverse autoregressive flows out of masked ones (Kingma et al., arXiv 1606.04934).

    Args:
        transform: to be swapped.

    Example:
        >>> from flow_vla_core.flows import Planar
        >>> planar, x = Planar(2), torch.ones(1, 2)
        >>> torch.equal(Inverted(planar).inverse(x)[0], planar(x)[0])
        True
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__(transform.dim, transform.context_dim)
        self.transform = transform

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go the other's way back."""
        return self.transform.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go the other's way there."""
        return self.transform(z, context)


class Composition(Transform):
    """Applies transforms one after another, ``z = f_n(.. f_1(x))``; their log-determinants add up.

    Rezende and Mohamed, arXiv 1505.05770, equations 6 and 7.

    Args:
        transforms: of the same sizes, the one next to the data first.

    Raises:
        ConfigError: if there are none, or their sizes differ.

    Example:
        >>> from flow_vla_core.flows import Planar, Radial
        >>> z, log_det = Composition([Planar(2), Radial(2)])(torch.ones(5, 2))
        >>> log_det.shape
        torch.Size([5])
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        sizes = {(transform.dim, transform.context_dim) for transform in transforms}
        if len(sizes) != 1:
            raise ConfigError(f'transforms of (dim, context_dim) {sorted(sizes)}; allowed: one and the same')
        super().__init__(*sizes.pop())
        self.transforms = nn.ModuleList(transforms)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        total = x.new_zeros(x.shape[:-1])
        for transform in self.transforms:
            x, log_det = transform(x, context)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        total = z.new_zeros(z.shape[:-1])
        for transform in reversed(self.transforms):
            z, log_det = transform.inverse(z, context)
            total = total + log_det
        return z, total

    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """From noise to data, without log-determinants."""
        for transform in reversed(self.transforms):
            z = transform.generate(z, context)
        return z


class NormalizingFlow(nn.Module):
    """Makes a distribution out of a standard Gaussian: ``log p(x | c) = log N(z) + log |det dz/dx|, z = f(x, c)``.

    Rezende and Mohamed, arXiv 1505.05770.

    Args:
        transforms: as for `Composition`.

    Raises:
        ConfigError: if there are none, or their sizes differ.

    Example:
        >>> from flow_vla_core.flows import Planar
        >>> flow = NormalizingFlow([Planar(2, context_dim=3), Planar(2, context_dim=3)])
        >>> flow(torch.zeros(3)).sample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, transforms: Sequence[Transform]) -> None:
        super().__init__()
        self.transform = Composition(transforms)

    @property
    def dim(self) -> int:
        """Number of dimensions D."""
        return self.transform.dim

    @property
    def context_dim(self) -> int:
        """Width of the context C; 0 if there is none."""
        return self.transform.context_dim

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Return the distribution for a context (..., C).

        Raises:
            InputError: if the context lacks, is not wanted, or is of another width or not finite.
        """
        if (context is None) != (self.context_dim == 0):
            raise InputError(f'context: {"none" if context is None else "given"}; this flow has {self.context_dim} '
                             'dimensions of it')
        if context is not None:
            _check('context', context, self.context_dim)
        return FlowDistribution(self.transform, context)

    def nll(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return what training minimises, in nats: (..., D) -> (...), ``-log p(x | c)`` or an unbiased estimate of it.

        Args:
            x: data.
            context: (..., C), as for `forward`.
            generator: source of randomness, for flows that estimate.
        """
        return -self(context).log_prob(x)


class FlowDistribution:
    """Is the distribution of a flow for one context, or for a batch of them.

    Args:
        transform: data to noise.
        context: (..., C), or None.

    Example:
        >>> from flow_vla_core.flows import Planar
        >>> distribution = FlowDistribution(Planar(2))
        >>> x, log_prob = distribution.sample_and_log_prob((5,))
        >>> torch.allclose(log_prob, distribution.log_prob(x), atol=1e-5)
        True
    """

    def __init__(self, transform: Transform, context: Tensor | None = None) -> None:
        self.transform, self.context = transform, context

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, in nats: (..., D) -> (...); x and context broadcast.

        Raises:
            InputError: for another width, or for NaN or infinity.
        """
        z, log_det = self.transform(*self.broadcast(x))
        return log_normal(z) + log_det

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw without gradient: (*shape, *batch, D), where ``batch`` is the leading shape of the context."""
        with torch.no_grad():
            return self.rsample(shape, generator)

    def rsample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Draw with the gradient to weights and context."""
        return self.transform.generate(*self.broadcast(self._draw(shape, generator)))

    def sample_and_log_prob(self, shape: Sequence[int] = (),
                            generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw with gradient, and return the log-densities (*shape, *batch) of what was drawn."""
        z = self._draw(shape, generator)
        x, log_det = self.transform.inverse(*self.broadcast(z))
        return x, log_normal(z) - log_det

    def broadcast(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return points (..., D) and context with the same leading shape.

        Raises:
            InputError: if the points have another width, are not finite, or do not fit the context.
        """
        _check('x', x, self.transform.dim)
        if self.context is None:
            return x, None
        try:
            shape = torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
        except RuntimeError as error:
            raise InputError(f'x {tuple(x.shape)} and context {tuple(self.context.shape)} do not fit') from error
        return x.expand(*shape, x.shape[-1]), self.context.expand(*shape, self.context.shape[-1])

    def _draw(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        batch = () if self.context is None else self.context.shape[:-1]
        like = next(self.transform.parameters()) if self.context is None else self.context
        return torch.randn(*shape, *batch, self.transform.dim, generator=generator).to(like)


def log_normal(z: Tensor) -> Tensor:
    """Return the log-density of the standard Gaussian, in nats: (..., D) -> (...)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def _check(name: str, values: Tensor, width: int) -> None:
    if values.ndim < 1 or values.shape[-1] != width:
        raise InputError(f'{name}: shape {tuple(values.shape)}; allowed: (..., {width})')
    if not all_finite(values):
        raise InputError(f'{name}: holds NaN or infinity')
