"""Distances between point sets, against POT, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import ot
import pytest
from scipy import stats
import torch
from torch import Tensor

from flow_vla_core.errors import InputError
from flow_vla_core.evaluation.distances import energy_distance, sliced_wasserstein, wasserstein2


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wasserstein_equals_pot() -> None:
    x, y = draw(40, 3), 1 + 0.5 * draw(40, 3, seed=1)
    even = np.full(40, 1 / 40)
    wanted = ot.emd2(even, even, ot.dist(x.numpy(), y.numpy())) ** 0.5
    assert wasserstein2(x, y) == pytest.approx(wanted, rel=1e-9)
    assert wasserstein2(x.float(), y.float()) == pytest.approx(wanted, rel=1e-5)


def test_distances_of_a_set_to_itself_and_to_a_shifted_one() -> None:
    x, shift = draw(50, 2), torch.tensor([3.0, 4.0], dtype=torch.float64)
    mixed = x[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    for distance in (wasserstein2, sliced_wasserstein, energy_distance):
        assert distance(x, mixed) == pytest.approx(0, abs=1e-12)
    assert wasserstein2(x, mixed + shift) == pytest.approx(5)
    found = sliced_wasserstein(x, mixed + shift, 20000, torch.Generator().manual_seed(1))
    assert found == pytest.approx(5 / 2 ** 0.5, rel=0.02)  # E (s . e)^2 = |s|^2 / D


@pytest.mark.parametrize(('count', 'other'), [(30, 30), (30, 45), (7, 31), (1, 5)])
def test_on_a_line_they_are_those_of_quantiles(count: int, other: int) -> None:
    x, y = draw(count, 1), 2 * draw(other, 1, seed=1)
    wanted = ot.wasserstein_1d(x[:, 0].numpy(), y[:, 0].numpy(), p=2) ** 0.5
    assert sliced_wasserstein(x, y, 3) == pytest.approx(wanted, rel=1e-9)
    assert sliced_wasserstein(y, x, 3) == pytest.approx(wanted, rel=1e-9)
    wanted = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(wanted, rel=1e-9)
    if count == other:
        assert wasserstein2(x, y) == pytest.approx(sliced_wasserstein(x, y, 3), rel=1e-9)


def test_slices_equal_pot_on_the_same_directions() -> None:
    x, y, count = draw(40, 3), 1 + 0.5 * draw(25, 3, seed=1), 16
    directions = torch.randn(3, count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).numpy()
    wanted = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions, p=2)
    assert sliced_wasserstein(x, y, count, torch.Generator().manual_seed(2)) == pytest.approx(wanted, rel=1e-9)


def test_bad_sets_are_named() -> None:
    x = draw(4, 2)
    for distance in (wasserstein2, sliced_wasserstein, energy_distance):
        for wrong in (draw(4, 3), draw(4), draw(0, 2), draw(4, 2, 1)):
            with pytest.raises(InputError, match='shapes'):
                distance(x, wrong)
        with pytest.raises(InputError, match='second set holds NaN'):
            distance(x, x * float('nan'))
    with pytest.raises(InputError, match='allowed: twice'):
        wasserstein2(x, draw(5, 2))
    with pytest.raises(InputError, match='0 projections'):
        sliced_wasserstein(x, x, 0)
