"""Toy distributions: densities that integrate to 1, samples that belong to them, and the floors."""

from __future__ import annotations

from functools import cache
import math

import numpy as np
import pytest
import torch

from flow_vla_core.evaluation.toys import DENSITIES, FLOORS, TOYS

COUNT = 100_000
CELL = 0.1


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def grid() -> torch.Tensor:
    """Return the middles (N, 2) of cells that cover all that matters; no border of the checkerboard cuts one."""
    middles = torch.arange(-6 + CELL / 2, 6, CELL, dtype=torch.float64)
    return torch.stack(torch.meshgrid(middles, middles, indexing='ij'), -1).reshape(-1, 2)


@cache
def log_density_on_grid(toy: str) -> torch.Tensor:
    """Evaluate a density on the grid."""
    return log_density(toy, grid())


def log_density(toy: str, points: torch.Tensor) -> torch.Tensor:
    """Evaluate a density in pieces."""
    return torch.cat([DENSITIES[toy](piece) for piece in points.split(5000)])


@pytest.mark.parametrize('toy', TOYS)
def test_points_come_from_the_generator_that_is_given(toy: str) -> None:
    state = torch.get_rng_state()
    points = TOYS[toy](100, seeded())
    assert points.shape == (100, 2) and points.dtype == torch.float32 and torch.isfinite(points).all()
    assert torch.equal(points, TOYS[toy](100, seeded()))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(points, TOYS[toy](100, seeded(1)))


@pytest.mark.parametrize('toy', DENSITIES)
def test_density_integrates_to_one_and_its_entropy_is_the_floor(toy: str) -> None:
    log = log_density_on_grid(toy)
    density = log.exp()
    assert density.sum().item() * CELL ** 2 == pytest.approx(1, abs=1e-5)
    entropy = -torch.where(density > 0, density * log, 0).sum().item() * CELL ** 2
    assert entropy == pytest.approx(FLOORS[toy], abs=0.002)


@pytest.mark.parametrize('toy', DENSITIES)
def test_samples_have_the_density(toy: str) -> None:
    """The mean of -log p over them is the floor, and coarse cells hold as many of them as the density says."""
    points = TOYS[toy](5_000, seeded())
    surprise = -log_density(toy, points)
    assert surprise.mean().item() == pytest.approx(FLOORS[toy], abs=4 * surprise.std().item() / 5_000 ** 0.5 + 0.001)
    cells = grid()
    edges = np.linspace(-6, 6, 13)
    wanted, *_ = np.histogram2d(*cells.T.numpy(), edges, weights=log_density_on_grid(toy).exp().numpy() * CELL ** 2)
    found, *_ = np.histogram2d(*TOYS[toy](COUNT, seeded(1)).T.numpy(), edges)
    np.testing.assert_allclose(found / COUNT, wanted, atol=5 * (wanted.max() / COUNT) ** 0.5)


def test_density_keeps_shape_and_dtype() -> None:
    for density in DENSITIES.values():
        assert density(torch.zeros(2, 3, 2, dtype=torch.float64)).shape == (2, 3)
        assert density(torch.zeros(2, 2, dtype=torch.float64)).dtype == torch.float64
        assert density(torch.zeros(2)).shape == ()


def test_off_the_checkerboard_nothing_is_dense() -> None:
    points = torch.tensor([[-3.0, -3.0], [-1.0, -3.0], [-1.0, -1.0], [5.0, 5.0], [-5.0, -5.0]])
    found = DENSITIES['checkerboard'](points)
    assert found.tolist() == pytest.approx([-math.log(32), -math.inf, -math.log(32), -math.inf, -math.inf])


def test_spirals_are_two_arms_of_one_shape() -> None:
    points = TOYS['spirals'](COUNT, seeded())
    radius = points.norm(dim=1)
    assert points.mean(0).abs().max() < 0.03
    assert radius.median().item() == pytest.approx(math.pi * 0.5 ** 0.5, abs=0.1)
    ends = points[radius > 2.7]  # angles from 2.6 pi to 3 pi: one arm above and right of the middle, one opposite
    assert (ends.prod(1) > 0).float().mean() > 0.9
    assert (ends[:, 0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert radius.max() < math.pi + 1


def test_pinwheel_has_five_blades_alike() -> None:
    points = TOYS['pinwheel'](COUNT, seeded()).double()
    x, y = points.T / 2
    turn = torch.atan2(y, x) + 0.25 * (x ** 2 + y ** 2).sqrt().exp()  # blades lie along one direction after this
    waves = torch.stack([torch.exp(1j * times * turn).mean().abs() for times in (1, 2, 3, 4, 5)])
    assert waves[:4].max() < 0.02 and waves[4] > 0.5
    assert (points.norm(dim=1) / 2).mean().item() == pytest.approx(1, abs=0.03)
