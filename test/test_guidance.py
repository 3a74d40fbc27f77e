"""Classifier-free guidance: the convention, the null condition, and how often the network is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.generators import FlowMatching, FlowMatchingConfig
from flow_vla_core.generators.guidance import NullCondition
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(horizon=5, action_dim=3, condition_dim=7, token_dim=11)
NETWORKS = {'mlp': NetworkConfig('mlp', 8, 1), 'unet': NetworkConfig('unet', 8, 2),
            'transformer': NetworkConfig('transformer', 8, 1, 2)}


class Told(nn.Module):
    """Is a velocity network that answers with what it is told, and keeps how much that was."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Condition] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append(condition)
        return (condition.vector.sum(1) + condition.tokens.sum((1, 2)))[:, None, None] * (x + t[:, None, None])


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def condition(count: int) -> Condition:
    """Return a condition with three tokens."""
    random = seeded(5)
    return Condition(torch.randn(count, 7, generator=random), torch.randn(count, 3, 11, generator=random))


def told(weight: float) -> FlowMatching:
    """Return flow matching around `Told`."""
    torch.manual_seed(0)
    return FlowMatching(Told(), SIZES, steps=1, drop=0.5, guidance=weight)


@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_0_and_1_are_the_plain_answers_in_one_pass(weight: float) -> None:
    generator, asked, noise = told(weight), condition(2), torch.randn(2, 5, 3)
    wanted = asked if weight else generator.null.like(asked)
    made = generator.sample(asked, noise=noise)
    assert len(generator.network.calls) == 1 and len(generator.network.calls[0]) == 2
    assert torch.equal(made, noise + generator.network(noise, torch.zeros(2), wanted))


@pytest.mark.parametrize('weight', [0.5, 2.0, 3.5])
def test_any_other_weight_goes_from_the_free_answer_towards_and_past_the_wanted_one(weight: float) -> None:
    generator, asked, noise = told(weight), condition(2), torch.randn(2, 5, 3)
    made = generator.sample(asked, noise=noise)
    assert len(generator.network.calls) == 1 and len(generator.network.calls[0]) == 4
    wanted = generator.network(noise, torch.zeros(2), asked)
    free = generator.network(noise, torch.zeros(2), generator.null.like(asked))
    torch.testing.assert_close(made, noise + free + weight * (wanted - free))
    torch.testing.assert_close(generator.velocity(noise, torch.zeros(2), asked), made - noise)


def test_the_null_condition_has_the_form_of_the_one_that_it_stands_for() -> None:
    null, asked = NullCondition(SIZES), condition(4)
    stands = null.like(asked)
    assert stands.vector.shape == (4, 7) and stands.tokens.shape == (4, 3, 11)
    assert (stands.vector == null.vector).all() and (stands.tokens == null.token).all()
    assert NullCondition(Sizes(5, 3, 7)).like(Condition(asked.vector)).tokens is None


def test_the_share_of_conditions_that_is_dropped_is_the_one_that_was_asked_for() -> None:
    null, asked = NullCondition(SIZES), condition(20_000)
    heard = null.drop(asked, 0.3, seeded(1))
    away = (heard.vector == null.vector).all(1)
    assert away.double().mean().item() == pytest.approx(0.3, abs=0.015)
    assert torch.equal((heard.tokens == null.token).all(2).all(1), away)
    assert torch.equal(heard.vector[~away], asked.vector[~away])
    assert torch.equal(heard.tokens[~away], asked.tokens[~away])
    again = null.drop(asked, 0.3, seeded(1))
    assert torch.equal(again.vector, heard.vector)


def test_training_hears_the_null_condition_and_each_draw_on_its_own() -> None:
    generator = told(2.0)
    generator.loss(torch.randn(50, 5, 3), condition(50), generator=seeded())
    heard = generator.network.calls[0]
    away = (heard.vector == generator.null.vector).all(1).reshape(50, generator.draws)
    assert 0.3 < away.double().mean() < 0.7
    assert (away.any(1) & ~away.all(1)).any()


@pytest.mark.parametrize('network', NETWORKS)
def test_every_part_of_the_null_condition_that_the_network_hears_is_learned(network: str) -> None:
    sizes = SIZES if network == 'transformer' else Sizes(5, 3, 7)
    generator = FlowMatchingConfig(drop=0.5, guidance=2.0).build(sizes, NETWORKS[network])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    generator.loss(torch.randn(16, 5, 3), condition(16), generator=seeded()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in generator.parameters())
    assert {'null.vector'} <= set(generator.state_dict())
    assert ('null.token' in generator.state_dict()) == (network == 'transformer')
    made = generator.sample(condition(4), generator=seeded(2))
    assert made.shape == (4, 5, 3) and torch.isfinite(made).all()


def test_without_drop_there_is_nothing_more_to_save() -> None:
    generator = FlowMatchingConfig().build(SIZES, NETWORKS['mlp'])
    assert set(generator.state_dict()) == {f'network.{name}' for name in generator.network.state_dict()}


def test_guidance_moves_samples_from_all_data_to_those_of_the_condition_and_beyond() -> None:
    torch.manual_seed(0)
    generator = FlowMatchingConfig(steps=10, time='uniform', draws=1, drop=0.3).build(
        Sizes(1, 1, 1), NetworkConfig('mlp', 32, 1))
    optimiser, random = torch.optim.Adam(generator.parameters(), 5e-3), seeded(0)
    for _ in range(300):
        side = 2.0 * torch.randint(0, 2, (128, 1), generator=random) - 1
        loss = generator.loss(side[..., None] + 0.5 * torch.randn(128, 1, 1, generator=random), Condition(side),
                              generator=random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    means = {}
    for generator.guidance in (0.0, 1.0, 3.0):
        with torch.no_grad():
            means[generator.guidance] = generator.sample(Condition(torch.ones(1000, 1)), generator=random).mean().item()
    assert means[0.0] == pytest.approx(0, abs=0.2)
    assert means[1.0] == pytest.approx(1, abs=0.15)
    assert means[3.0] > means[1.0] + 0.1
