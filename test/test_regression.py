"""Regression learns the median or the mean of what the expert does, which may be neither of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import Regression, RegressionConfig
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(5, 2, 3)


class Constant(nn.Module):
    """Is a network that answers with a constant and keeps what it was asked."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer, self.calls = nn.Parameter(torch.tensor(answer)), []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x, t))
        return self.answer.expand_as(x)


def condition(count: int, width: int = 3) -> Condition:
    """Return an empty condition."""
    return Condition(torch.zeros(count, width))


@pytest.mark.parametrize(('distance', 'wanted'), [('l1', 1.25), ('l2', 2.125)])
def test_the_loss_is_the_mean_distance(distance: str, wanted: float) -> None:
    actions = torch.tensor([[[1.0, -2.0], [2.0, 0.0]]])  # errors from 0.5: 0.5, 2.5, 1.5, 0.5
    loss = Regression(Constant(0.5), Sizes(2, 2, 3), distance).loss(actions, condition(1))
    assert loss.item() == pytest.approx(wanted if distance == 'l1' else (0.25 + 6.25 + 2.25 + 0.25) / 4)


def test_the_masked_loss_is_the_loss_of_what_counts() -> None:
    generator = Regression(Constant(), SIZES)
    actions, mask = torch.randn(4, 5, 2), torch.arange(5) < torch.tensor([[5], [3], [1], [2]])
    broken = torch.where(mask[..., None], actions, torch.full_like(actions, 1e3))
    torch.testing.assert_close(generator.loss(broken, condition(4), mask), actions[mask].abs().mean())
    assert generator.loss(actions, condition(4), torch.zeros_like(mask)).item() == 0


def test_a_chunk_takes_one_call_whatever_the_steps_and_the_noise() -> None:
    network = Constant(0.5)
    generator = Regression(network, SIZES)
    made = [generator.sample(condition(2), steps=steps, noise=torch.randn(2, 5, 2)) for steps in (1, 7)]
    assert torch.equal(*made) and len(network.calls) == 2
    query, t = network.calls[0]
    assert query.shape == (2, 5, 2) and torch.equal(query[0], query[1]) and (t == 1).all()


@pytest.mark.parametrize(('distance', 'wanted'), [('l1', -1.0), ('l2', -0.4)])
def test_of_two_modes_it_learns_the_median_or_the_mean(distance: str, wanted: float) -> None:
    torch.manual_seed(0)
    targets = ((torch.arange(100) % 10 < 3).float() * 2 - 1)[:, None, None].expand(-1, 2, 1)
    generator = RegressionConfig(distance).build(Sizes(2, 1, 1), NetworkConfig('mlp', 8, 1))
    optimiser = torch.optim.Adam(generator.parameters(), 1e-2)
    for step in range(250):
        optimiser.param_groups[0]['lr'] = 1e-2 * (1 - step / 250)
        optimiser.zero_grad()
        generator.loss(targets, condition(100, 1)).backward()
        optimiser.step()
    with torch.no_grad():
        made = generator.sample(condition(3, 1))
    torch.testing.assert_close(made, torch.full_like(made, wanted), rtol=0, atol=0.03)


def test_an_unknown_distance_is_named() -> None:
    with pytest.raises(ConfigError, match="distance: 'l3'.*l1"):
        RegressionConfig('l3').build(SIZES, NetworkConfig('mlp', 8, 1))
