"""Distributions in the plane that generative models are tried on; N points are (N, 2) float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math

import torch
from torch import Tensor

__all__ = ['DENSITIES', 'FLOORS', 'TOYS', 'checkerboard', 'checkerboard_log_prob', 'eight_gaussians',
           'eight_gaussians_log_prob', 'moons', 'moons_log_prob', 'pinwheel', 'spirals']

SHRINK = 1.414  # of the eight Gaussians, as published
SPREAD = 0.5 / SHRINK  # their standard deviation
MOON_NOISE = 0.2
MOON_SHIFT = (-1.0, -0.2)
NODES = 400  # of the integral along a moon; .016 apart, a tenth of the noise


def eight_gaussians(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from eight Gaussians on a circle of radius 4 with standard deviation .5, all divided by 1.414.

    Example:
        >>> eight_gaussians(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """
    centres = _eight_centres()[torch.randint(8, (count,), generator=generator)]
    return centres + SPREAD * torch.randn(count, 2, generator=generator)


def eight_gaussians_log_prob(points: Tensor) -> Tensor:
    """Return the log-density of `eight_gaussians`, in nats: (..., 2) -> (...)."""
    squares = (points[..., None, :] - _eight_centres().to(points)).square().sum(-1)
    return torch.logsumexp(-squares / (2 * SPREAD ** 2), -1) - math.log(8 * 2 * math.pi * SPREAD ** 2)


def checkerboard(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw uniformly from the eight dark squares, 2 wide, of a board from -4 to 4: an area of 32.

    Example:
        >>> checkerboard(1000, torch.Generator().manual_seed(0)).abs().max() <= 4
        tensor(True)
    """
    columns = torch.randint(4, (count,), generator=generator)
    rows = 2 * torch.randint(2, (count,), generator=generator) + columns % 2
    return 2 * (torch.stack([columns, rows], 1) + torch.rand(count, 2, generator=generator)) - 4


def checkerboard_log_prob(points: Tensor) -> Tensor:
    """Return the log-density of `checkerboard`, in nats, which is -infinity off it: (..., 2) -> (...)."""
    squares = ((points + 4) / 2).floor()
    dark = (squares.sum(-1) % 2 == 0) & (squares >= 0).all(-1) & (squares < 4).all(-1)
    return torch.where(dark, -math.log(32.0), -math.inf).to(points)


def moons(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from two half circles of radius 2 that reach into one another, with noise of standard deviation .2.

    They are scikit-learn's ``make_moons(noise=.1)`` with angles drawn uniformly, times 2, shifted to the middle.

    Example:
        >>> moons(5, torch.Generator().manual_seed(0)).dtype
        torch.float32
    """
    angle = math.pi * torch.rand(count, generator=generator)
    lower = torch.randint(2, (count,), generator=generator)
    return _on_moon(angle, lower) + MOON_NOISE * torch.randn(count, 2, generator=generator)


def moons_log_prob(points: Tensor) -> Tensor:
    """Return the log-density of `moons`, in nats, by the midpoint rule along the arcs: (..., 2) -> (...)."""
    angle = math.pi * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    arcs = torch.cat([_on_moon(angle, torch.full((NODES,), lower)) for lower in (0, 1)]).to(points)
    squares = torch.cdist(points.reshape(-1, 2), arcs).square()
    log = torch.logsumexp(-squares / (2 * MOON_NOISE ** 2), -1)
    return (log - math.log(2 * NODES * 2 * math.pi * MOON_NOISE ** 2)).reshape(points.shape[:-1])


def spirals(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from two spirals of one and a half turns: ``n (-cos n, sin n) / 3`` for n up to 3 pi, and its mirror image.

    Each coordinate gets uniform noise up to 1/6 and Gaussian noise of .1 (FFJORD, arXiv 1810.01367).

    Example:
        >>> spirals(7, torch.Generator().manual_seed(0)).shape
        torch.Size([7, 2])
    """
    turn = 3 * math.pi * torch.rand(count, 1, generator=generator).sqrt()
    arm = turn * torch.cat([-turn.cos(), turn.sin()], 1) + 0.5 * torch.rand(count, 2, generator=generator)
    side = 1 - 2 * torch.randint(2, (count, 1), generator=generator)
    return side * arm / 3 + 0.1 * torch.randn(count, 2, generator=generator)


def pinwheel(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from five bent blades, Gaussians of (.3, .1) at radius 1 turned by ``exp(radius) / 4``, all times 2.

    Johnson et al., arXiv 1603.06277, with the settings of FFJORD.

    Example:
        >>> pinwheel(7, torch.Generator().manual_seed(0)).shape
        torch.Size([7, 2])
    """
    blade = torch.randint(5, (count,), generator=generator)
    x, y = (torch.randn(count, 2, generator=generator) * torch.tensor([0.3, 0.1]) + torch.tensor([1.0, 0.0])).unbind(1)
    angle = 2 * math.pi * blade / 5 + 0.25 * x.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([cos * x + sin * y, cos * y - sin * x], 1)


def _eight_centres() -> Tensor:
    angle = torch.arange(8) * math.pi / 4
    return 4 / SHRINK * torch.stack([angle.cos(), angle.sin()], 1)


def _on_moon(angle: Tensor, lower: Tensor) -> Tensor:
    """Return the points at an angle in [0, pi] of the upper (0) or the lower (1) moon."""
    x = torch.where(lower == 1, 1 - angle.cos(), angle.cos())
    y = torch.where(lower == 1, 0.5 - angle.sin(), angle.sin())
    return 2 * torch.stack([x, y], -1) + torch.tensor(MOON_SHIFT, dtype=angle.dtype)


TOYS: Mapping[str, Callable[[int, torch.Generator | None], Tensor]] = {
    'eight_gaussians': eight_gaussians, 'checkerboard': checkerboard, 'moons': moons, 'spirals': spirals,
    'pinwheel': pinwheel}

DENSITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    'eight_gaussians': eight_gaussians_log_prob, 'checkerboard': checkerboard_log_prob, 'moons': moons_log_prob}

# Entropies in nats, which no model's mean of -log p is below: from the densities; the checkerboard's is log(area).
FLOORS: Mapping[str, float] = {'eight_gaussians': 2.832, 'checkerboard': math.log(32), 'moons': 2.395}
