"""The flow over plans above the flow over actions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import HierarchicalFlow, HierarchicalFlowConfig
from flow_vla_core.generators.plans import PlanDecoder, PlanEncoder
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(7, 2, 3)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def make(sizes: Sizes = SIZES, network: NetworkConfig = NetworkConfig('mlp', 16, 1),
         **settings: object) -> HierarchicalFlow:
    """Make a generator whose weights are not zero."""
    torch.manual_seed(0)
    made = HierarchicalFlowConfig(**settings).build(sizes, network)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    return made.eval()


def chunks(batch: int, sizes: Sizes = SIZES) -> tuple[Tensor, Condition]:
    """Draw chunks and conditions."""
    return (torch.randn(batch, sizes.horizon, sizes.action_dim, generator=seeded(2)),
            Condition(torch.randn(batch, sizes.condition_dim, generator=seeded(3))))


def test_plans_lie_on_the_sphere_where_gaussian_noise_is() -> None:
    generator, (actions, _) = make(waypoints=5, plan_width=3), chunks(6)
    plan = generator.plan(10 * actions)
    assert plan.shape == (6, 5, 3)
    torch.testing.assert_close(plan.flatten(1).norm(dim=1), torch.full((6,), 15 ** 0.5))
    assert torch.isfinite(PlanEncoder(SIZES, 2, 2, 8)(torch.zeros(2, 7, 2), torch.zeros(2, 7, dtype=torch.bool))).all()


def test_what_a_mask_hides_is_not_in_the_plan() -> None:
    generator, (actions, condition) = make(), chunks(4)
    mask = torch.arange(7).expand(4, 7) < 5
    changed = torch.where(mask[..., None], actions, torch.full_like(actions, 100.0))
    assert torch.equal(generator.plan(actions, mask), generator.plan(changed, mask))
    assert not torch.allclose(generator.plan(actions, mask), generator.plan(actions))
    assert torch.equal(generator.loss(actions, condition, mask, seeded()),
                       generator.loss(changed, condition, mask, seeded()))


def test_a_chunk_that_is_hidden_whole_teaches_nothing() -> None:
    generator, (actions, condition) = make(), chunks(4)
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1] = False
    generator.loss(actions, condition.with_vector(condition.vector.requires_grad_()), mask, seeded()).backward()
    reached = condition.vector.grad.abs().sum(1) > 0
    assert reached.tolist() == [True, False, True, True]


def test_the_decoder_begins_with_linear_interpolation_between_waypoints() -> None:
    decoder = PlanDecoder(7, 3, 2, 8)
    line = torch.tensor([0.0, 3.0, 6.0])
    torch.testing.assert_close(decoder.weights @ line, torch.arange(7.0))
    torch.testing.assert_close(PlanDecoder(1, 3, 2, 8).weights, torch.tensor([[1.0, 0.0, 0.0]]))


def test_every_action_follows_the_plan_and_its_own_noise_alone() -> None:
    generator, (noise, condition) = make(), chunks(4)
    plan = torch.randn(4, *generator.plan_shape, generator=seeded(5))
    made = generator.act(plan, condition, noise)
    assert made.shape == noise.shape and not torch.allclose(made, generator.act(-plan, condition, noise))
    changed = noise.clone()
    changed[:, 3] += 1
    same = (made == generator.act(plan, condition, changed)).all(-1)
    assert same.tolist() == [[step != 3 for step in range(7)]] * 4


def test_the_plan_draws_from_the_generator_and_the_actions_from_the_noise() -> None:
    generator, (noise, condition) = make(), chunks(4)
    made = generator.sample(condition, noise=noise, generator=seeded())
    assert torch.equal(made, generator.sample(condition, noise=noise, generator=seeded()))
    assert not torch.allclose(made, generator.sample(condition, noise=noise, generator=seeded(1)))
    assert not torch.allclose(made, generator.sample(condition, noise=-noise, generator=seeded()))


@pytest.mark.parametrize('width', [8, 24])
@pytest.mark.parametrize('kind', ['mlp', 'unet', 'transformer'])
def test_one_width_goes_through_all_parts(kind: str, width: int) -> None:
    sizes = Sizes(5, 3, 7, 11)
    generator = HierarchicalFlowConfig(waypoints=3, plan_width=2).build(sizes, NetworkConfig(kind, width, 2, 4))
    actions, condition = chunks(2, sizes)
    condition = Condition(condition.vector, torch.randn(2, 3, 11, generator=seeded(4)))
    assert generator.decoder.place.shape == (5, width)
    assert torch.isfinite(generator.loss(actions, condition, generator=seeded()))
    assert generator.sample(condition, generator=seeded()).shape == actions.shape


@pytest.mark.parametrize('setting', [{'solver': 'eulr'}, {'time': 'unifrom'}, {'draws': 0}, {'plan_noise': -1.0},
                                     {'waypoints': 0}])
def test_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f'generator.{next(iter(setting))}'):
        make(**setting)


def test_the_upper_level_has_no_say_in_the_plans_and_the_lower_one_has() -> None:
    generator, (actions, condition) = make(), chunks(4)
    generator.actor.requires_grad_(False)
    generator.loss(actions, condition, generator=seeded()).backward()
    assert generator.encoder.layers[0].weight.grad.abs().sum() > 0
    wanted = generator.encoder.layers[0].weight.grad.clone()
    generator.zero_grad()
    with torch.no_grad():
        for parameter in generator.planner.parameters():
            parameter.mul_(2)
    generator.loss(actions, condition, generator=seeded()).backward()
    torch.testing.assert_close(generator.encoder.layers[0].weight.grad, wanted)


@pytest.fixture(scope='module')
def trained() -> HierarchicalFlow:
    """Train on chunks that are all near one number, -1 or 1, whatever the condition."""
    torch.manual_seed(0)
    generator = HierarchicalFlowConfig(waypoints=2, plan_width=2).build(SIZES, NetworkConfig('mlp', 32, 2))
    optimiser, random = torch.optim.Adam(generator.parameters(), 5e-3), seeded()
    for _ in range(200):
        optimiser.zero_grad()
        generator.loss(sides(64, random), Condition(torch.zeros(64, 3)), generator=random).backward()
        optimiser.step()
    return generator.eval()


def sides(count: int, generator: torch.Generator) -> Tensor:
    """Draw chunks near -1 and chunks near 1."""
    side = 2.0 * torch.randint(0, 2, (count, 1, 1), generator=generator) - 1
    return side + 0.1 * torch.randn(count, 7, 2, generator=generator)


def test_actions_follow_the_plan_that_was_read_off_them(trained: HierarchicalFlow) -> None:
    actions = sides(200, seeded(7))
    with torch.no_grad():
        made = trained.act(trained.plan(actions), Condition(torch.zeros(200, 3)), torch.randn(200, 7, 2))
    assert ((made.mean((1, 2)) > 0) == (actions.mean((1, 2)) > 0)).float().mean() > 0.98


def test_all_actions_of_a_sample_belong_to_one_plan(trained: HierarchicalFlow) -> None:
    with torch.no_grad():
        made = trained.sample(Condition(torch.zeros(500, 3)), generator=seeded(7))
    right = (made > 0).flatten(1).float().mean(1)
    assert ((right < 0.1) | (right > 0.9)).float().mean() > 0.9
    assert 0.3 < (right > 0.5).float().mean() < 0.7
    torch.testing.assert_close(made.abs().mean(), torch.tensor(1.0), rtol=0, atol=0.15)


def test_a_prefix_chooses_the_plan(trained: HierarchicalFlow) -> None:
    prefix = torch.cat([torch.full((100, 2, 2), -1.0), torch.full((100, 2, 2), 1.0)])
    with torch.no_grad():
        made = trained.sample(Condition(torch.zeros(200, 3)), prefix=prefix, generator=seeded(7))
    assert torch.equal(made[:, :2], prefix)
    assert ((made[:, 2:].mean((1, 2)) > 0) == (prefix.mean((1, 2)) > 0)).float().mean() > 0.97
