"""Couplings against brute force, torchcfm, and what a condition must not see."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchcfm.optimal_transport import OTPlanSampler

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.couplings import (
    COUPLINGS,
    ConditionalOptimalTransport,
    Coupling,
    Independent,
    OptimalTransport,
)
from flow_vla_core.types import Condition

NOTHING = Condition(torch.zeros(1, 1))


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def batch(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Condition]:
    """Return noise, data and conditions of two kinds, whose data lie on two sides."""
    noise = torch.randn(count, *shape, generator=seeded(1), dtype=dtype)
    vector = torch.randint(0, 2, (count, 1), generator=seeded(2)).to(dtype).expand(-1, 3)
    side = (2 * vector[:, 0] - 1).reshape(-1, *[1] * len(shape))
    return noise, 3 * side + torch.randn(count, *shape, generator=seeded(3), dtype=dtype), Condition(vector)


def rows(values: Tensor) -> set[tuple[float, ...]]:
    """Return the elements of a batch, in no order."""
    return {tuple(row.tolist()) for row in values.flatten(1)}


@pytest.mark.parametrize('coupling', [kind() for kind in COUPLINGS.values()], ids=COUPLINGS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_every_noise_is_used_once_and_nothing_is_written_to(coupling: Coupling, dtype: torch.dtype) -> None:
    noise, data, condition = batch(150, 2, 3, dtype=dtype)
    kept = noise.clone(), data.clone()
    paired = coupling.pair(noise, data, condition)
    assert paired.dtype == dtype and rows(paired) == rows(noise)
    assert torch.equal(noise, kept[0]) and torch.equal(data, kept[1])
    assert (paired - data).square().sum() <= (noise - data).square().sum()


def test_the_independent_coupling_changes_nothing() -> None:
    noise, data, condition = batch(7, 5)
    assert torch.equal(Independent().pair(noise, data, condition), noise)


def test_the_assignment_is_the_best_of_all() -> None:
    noise, data, condition = batch(6, 2, 3)
    found = (OptimalTransport().pair(noise, data, condition) - data).square().sum()
    least = min((noise[list(order)] - data).square().sum() for order in permutations(range(6)))
    torch.testing.assert_close(found, least)


def test_the_plan_is_that_of_torchcfm() -> None:
    noise, data, condition = batch(64, 5, 3)
    plan = torch.from_numpy(OTPlanSampler('exact').get_map(noise, data)) * 64
    torch.testing.assert_close(OptimalTransport().pair(noise, data, condition), noise[plan.argmax(0)], rtol=0, atol=0)
    torch.testing.assert_close(plan.amax(0), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize('coupling', [OptimalTransport(), ConditionalOptimalTransport(1.0)])
def test_hidden_actions_do_not_count(coupling: Coupling) -> None:
    noise, data, _ = batch(12, 4, 2)
    mask = torch.arange(4) < torch.randint(1, 5, (12, 1), generator=seeded(4))
    same = Condition(torch.zeros(12, 1))
    broken = torch.where(mask[..., None], data, torch.full_like(data, 1e3))
    assert torch.equal(coupling.pair(noise, broken, same, mask), coupling.pair(noise, data, same, mask))
    assert torch.equal(coupling.pair(noise, data, same, torch.ones_like(mask)), coupling.pair(noise, data, same))
    assert not torch.equal(coupling.pair(noise, data, same, mask), coupling.pair(noise, data, same))


def test_each_of_a_few_conditions_keeps_its_own_noise_and_pairs_it_best() -> None:
    noise, data, condition = batch(100, 2, 3)
    paired = ConditionalOptimalTransport().pair(noise, data, condition)
    for kind in (0, 1):
        own = condition.vector[:, 0] == kind
        assert torch.equal(paired[own], OptimalTransport().pair(noise[own], data[own], NOTHING))


def test_transport_that_ignores_the_condition_shows_it_part_of_the_noise_only() -> None:
    noise, data, condition = batch(400, 1)
    upper = condition.vector[:, 0] == 1
    plain = OptimalTransport().pair(noise, data, condition)[upper]
    aware = ConditionalOptimalTransport().pair(noise, data, condition)[upper]
    assert plain.mean() > 0.7  # half a Gaussian: mean 0.8 in place of 0
    torch.testing.assert_close(aware.mean(), noise[upper].mean())


def test_equal_conditions_are_plain_transport_and_a_small_batch_of_different_ones_stays_as_it_is() -> None:
    noise, data, _ = batch(40, 2, 3)
    aware = ConditionalOptimalTransport()
    same = Condition(torch.ones(40, 2))
    assert torch.equal(aware.pair(noise, data, same), OptimalTransport().pair(noise, data, same))
    different = Condition(torch.arange(40.0)[:, None])
    assert torch.equal(aware.pair(noise, data, different), noise)


def test_the_weight_lets_the_given_share_change_places() -> None:
    """The definition of the paper: the mean of [M + w C <= diag(M)] is the share."""
    noise, data, _ = batch(200, 2, 3, dtype=torch.float64)
    vector = torch.randn(200, 2, generator=seeded(5), dtype=torch.float64)
    cost, apart = torch.cdist(noise.flatten(1), data.flatten(1)) ** 2, torch.cdist(vector, vector) ** 2
    apart.fill_diagonal_(0)
    for share in (0.01, 0.05, 0.2):
        weight = ConditionalOptimalTransport(share)._weight(cost, apart)
        assert weight > 0
        found = (cost + weight * (1 - 1e-9) * apart <= cost.diagonal()).double().mean().item()
        assert found == pytest.approx(share, abs=1 / 200 ** 2 + 1e-9)


def test_the_larger_the_share_the_nearer_the_noise_and_the_further_the_conditions() -> None:
    noise, data, _ = batch(200, 2, dtype=torch.float64)
    vector = torch.randn(200, 1, generator=seeded(5), dtype=torch.float64)
    both = torch.cat([noise, vector], 1)
    costs, moves = [], []
    for share in (0.006, 0.02, 0.1, 1.0):
        paired = ConditionalOptimalTransport(share).pair(both, torch.cat([data, vector], 1), Condition(vector))
        costs.append((paired[:, :2] - data).square().sum().item())
        moves.append((paired[:, 2:] - vector).square().sum().item())
    assert costs == sorted(costs, reverse=True) and moves == sorted(moves)
    assert moves[0] < 0.1 * moves[-1]


def test_one_element_and_duplicates_break_nothing() -> None:
    for kind in COUPLINGS.values():
        one, same = torch.randn(1, 2, 3), torch.zeros(8, 2, 3)
        assert torch.equal(kind().pair(one, torch.ones_like(one), NOTHING), one)
        assert torch.equal(kind().pair(same, same, Condition(torch.zeros(8, 2))), same)


@pytest.mark.parametrize('share', [0.0, -1.0, 1.1, float('nan')])
def test_a_wrong_share_is_named(share: float) -> None:
    with pytest.raises(ConfigError, match=str(share)):
        ConditionalOptimalTransport(share)
