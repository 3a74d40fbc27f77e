"""Rotations, classes and numbers in one generator: the manifold, the classes, and one exact density."""

from __future__ import annotations

import itertools
import math

import pytest
import roma
from scipy import stats
from scipy.spatial.transform import Rotation
import test_families
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.generators import MultimodalFlow, MultimodalFlowConfig
from flow_vla_core.generators.classes import ClassSequence
from flow_vla_core.generators.layout import Layout, PartConfig
from flow_vla_core.generators.manifold import Point, integrate, rotation_from_columns, turn_of_columns
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

TURN, NUMBER, CHOICE = PartConfig('rotation'), PartConfig('continuous', 2), PartConfig('discrete', 3)
EVERYTHING = (CHOICE, NUMBER, TURN, PartConfig('discrete', 2), PartConfig('rotation', 2), PartConfig())
ORDERS = {'euler': 1, 'midpoint': 2, 'heun': 2, 'rk4': 4}


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def uniform_rotations(*shape: int, seed: int = 0) -> Tensor:
    """Draw uniform rotations in float64 by quaternions."""
    return roma.random_rotmat(shape, dtype=torch.float64, generator=seeded(seed))


def rotation_only(rotations: Tensor) -> Point:
    """Make points of SO(3) of (B, 3, 3)."""
    return Point(rotations.new_zeros(len(rotations), 1, 0), rotations[:, None, None])


def hat(turn: Tensor) -> Tensor:
    """Turn (..., 3) into skew-symmetric matrices."""
    zero = torch.zeros_like(turn[..., 0])
    x, y, z = turn.unbind(-1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def make(parts: tuple[PartConfig, ...], horizon: int = 1, spread: float = 0.3, **settings: object) -> MultimodalFlow:
    """Make a generator in float64 whose weights are far from zero."""
    torch.manual_seed(0)
    dim = sum(part.width for part in parts)
    made = MultimodalFlowConfig(parts, **settings).build(Sizes(horizon, dim, 3), NetworkConfig('mlp', 16, 1)).double()
    made.network.time.frequencies.mul_(0.02)  # random weights would shake the field faster than anything learned
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=seeded(1)).double())
    return made.eval()


def told(batch: int) -> Condition:
    """Return one condition, repeated."""
    return Condition(torch.tensor([[0.5, -1.0, 0.3]]).double().expand(batch, -1))


class Spin(nn.Module):
    """Stands in for the network: columns of ``R hat(w(R))``."""

    def __init__(self, turn: object) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, H, 6) -> (B, H, 6)."""
        rotation = rotation_from_columns(x)
        return (rotation @ hat(self.turn(rotation)))[..., :2].mT.flatten(-2)


def along_the_axis(rotation: Tensor) -> Tensor:
    """Return the angular velocity sin(angle) along the axis."""
    skew = (rotation - rotation.mT) / 2
    return torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1)


# the manifold

@pytest.mark.parametrize('dtype, bar', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_geodesics_are_those_of_roma_and_scipy(dtype: torch.dtype, bar: float) -> None:
    first, second = uniform_rotations(200).to(dtype), uniform_rotations(200, seed=1).to(dtype)
    tangent = rotation_only(first).reach(rotation_only(second))
    wanted = (Rotation.from_matrix(first.double()).inv() * Rotation.from_matrix(second.double())).as_rotvec()
    torch.testing.assert_close(tangent[:, 0].double(), torch.from_numpy(wanted), rtol=0, atol=100 * bar)
    assert tangent.norm(dim=-1).max() <= math.pi + 1e-5
    for t in (0.0, 0.3, 1.0):
        there = rotation_only(first).move(t * tangent).rotations[:, 0, 0]
        torch.testing.assert_close(there, roma.rotmat_slerp(first, second, torch.tensor(t, dtype=dtype)),
                                   rtol=0, atol=bar)


def test_a_turned_world_turns_the_path() -> None:
    first, second, world = uniform_rotations(50), uniform_rotations(50, seed=1), uniform_rotations(1, seed=2)
    plain = rotation_only(first).reach(rotation_only(second))
    turned = rotation_only(world @ first).reach(rotation_only(world @ second))
    torch.testing.assert_close(turned, plain)
    torch.testing.assert_close(rotation_only(world @ first).move(0.4 * turned).rotations[:, 0, 0],
                               world @ rotation_only(first).move(0.4 * plain).rotations[:, 0, 0])


@pytest.mark.parametrize('method', ORDERS)
def test_every_solver_keeps_its_order_on_the_manifold(method: str) -> None:
    a, b = torch.tensor([0.7, -1.1, 0.4]).double(), torch.tensor([-0.2, 0.9, 1.3]).double()
    begin = uniform_rotations(1)
    exact = roma.rotvec_to_rotmat(a) @ begin @ roma.rotvec_to_rotmat(b)

    def field(point: Point, t: float) -> Tensor:
        return (point.rotations.mT @ a + b).flatten(-2)

    errors = [(integrate(field, rotation_only(begin), steps, method).rotations - exact).abs().max().item()
              for steps in (16, 32)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.25)


def test_rotations_stay_rotations_in_float32_for_many_steps() -> None:
    def field(point: Point, t: float) -> Tensor:
        return (point.rotations.mT @ torch.tensor([9.0, -7.0, 3.0])).flatten(-2)

    end = integrate(field, rotation_only(uniform_rotations(20).float()), 200, 'midpoint').rotations
    torch.testing.assert_close(end.mT @ end, torch.eye(3).expand_as(end), rtol=0, atol=1e-5)


def test_gaussian_columns_are_uniform_rotations() -> None:
    rotations = rotation_from_columns(torch.randn(4000, 6, generator=seeded()).double())
    angles = (roma.rotvec_to_rotmat(torch.tensor([0.3, 0.2, 1.0]).double()) @ rotations).diagonal(dim1=1, dim2=2).sum(1)
    angles = ((angles - 1) / 2).clamp(-1, 1).acos().numpy()
    assert stats.kstest(angles, lambda angle: (angle - torch.tensor(angle).sin().numpy()) / math.pi).pvalue > 0.01
    assert rotations.mean(0).abs().max() < 4 * math.sqrt(1 / 3 / 4000)


@pytest.mark.parametrize('columns', [[0.0] * 6, [1.0, 2.0, 3.0, -2.0, -4.0, -6.0], [1e-30] + [0.0] * 5])
def test_columns_that_span_no_plane_still_give_a_rotation(columns: list[float]) -> None:
    assert roma.is_rotation_matrix(rotation_from_columns(torch.tensor([columns])), 1e-5)


def test_projection_on_the_tangent_space_is_the_least_squares_one() -> None:
    rotations, velocity = uniform_rotations(20), torch.randn(20, 6, generator=seeded(1)).double()
    basis = torch.stack([(rotations @ hat(axis))[..., :2].mT.flatten(1) for axis in torch.eye(3).double()], -1)
    wanted = torch.linalg.lstsq(basis, velocity[..., None]).solution[..., 0]
    torch.testing.assert_close(turn_of_columns(rotations, velocity), wanted)


# the layout

def test_an_action_of_every_kind_is_taken_apart_and_put_together() -> None:
    layout = Layout(EVERYTHING, 23)
    noise = torch.randn(3, 5, 23, generator=seeded())
    actions = layout.join(*layout.split(noise))
    assert actions[..., 0].unique().tolist() == [-1, 0, 1] and actions[..., 9].unique().tolist() == [-1, 1]
    torch.testing.assert_close(actions[..., [1, 2, 22]], noise[..., [1, 2, 22]], rtol=0, atol=0)
    columns = actions[..., 10:22].unflatten(-1, (2, 2, 3))
    torch.testing.assert_close(columns @ columns.mT, torch.eye(2).expand(3, 5, 2, 2, 2))
    torch.testing.assert_close(layout.join(*layout.split(actions)), actions)
    layout.check(actions)


@pytest.mark.parametrize('parts, message', [
    ((TURN,), 'parts: 6 numbers; allowed: 7 in all'),
    ((CHOICE,) * 7, 'parts: all are discrete'),
])
def test_parts_that_make_no_action_are_named(parts: tuple[PartConfig, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultimodalFlowConfig(parts).build(Sizes(2, 7, 3), NetworkConfig('mlp', 8, 1))


@pytest.mark.parametrize('kind, size, message', [
    ('rotations', 1, "'rotations'; did you mean 'rotation'"), ('discrete', 1, 'size 1; allowed: 2'),
    ('continuous', 0, 'size 0; allowed: 1'),
])
def test_a_part_that_can_not_be_is_named(kind: str, size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PartConfig(kind, size)


@pytest.mark.parametrize('setting', [{'solver': 'midpiont'}, {'time': 'betta'}, {'draws': 0}])
def test_settings_out_of_range_are_named(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f'generator.{next(iter(setting))}'):
        make((NUMBER,), **setting)


def test_the_policy_is_told_which_numbers_are_rotations() -> None:
    config = MultimodalFlowConfig(EVERYTHING)
    assert config.kept(23) == (*range(3, 9), *range(10, 22))
    assert MultimodalFlowConfig().kept(4) == ()


def test_rotations_that_were_normalised_are_refused() -> None:
    generator = make((NUMBER, TURN))
    with pytest.raises(InputError, match='must not be normalised'):
        generator.loss(torch.full((2, 1, 8), 0.5).double(), told(2))


# the classes

@pytest.fixture(scope='module')
def head() -> ClassSequence:
    """Make a sequence of 3 steps of 2 and 3 classes with weights far from zero."""
    torch.manual_seed(0)
    made = ClassSequence(3, 3, (2, 3), 8).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made.eval()


def every_sequence() -> Tensor:
    """List all chunks of 3 steps of 2 and 3 classes: (216, 3, 2)."""
    steps = list(itertools.product(range(2), range(3)))
    return torch.tensor(list(itertools.product(steps, repeat=3)))


def test_probabilities_of_all_sequences_add_up_to_one(head: ClassSequence) -> None:
    log_prob = head.log_prob(every_sequence(), told(216).vector)
    assert log_prob.shape == (216, 3)
    assert log_prob.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_sequences_come_as_often_as_their_probability_says(head: ClassSequence) -> None:
    count = 20_000
    drawn = head.sample(torch.rand(count, 3, 2, generator=seeded()).double(), told(count).vector)
    index = (drawn * torch.tensor([3, 1])).sum(-1) @ torch.tensor([36, 6, 1])
    expected = head.log_prob(every_sequence(), told(216).vector).sum(1).exp() * count
    found = torch.bincount(index, minlength=216)
    assert stats.chisquare(found.numpy(), expected.detach().numpy()).pvalue > 0.01


def test_a_class_does_not_see_what_comes_after_it(head: ClassSequence) -> None:
    classes = torch.tensor([[[0, 1], [1, 2], [0, 0]]])
    plain = head.log_prob(classes, told(1).vector)
    classes[0, 2] = torch.tensor([1, 2])
    changed = head.log_prob(classes, told(1).vector)
    assert torch.equal(plain[:, :2], changed[:, :2]) and not torch.equal(plain[:, 2], changed[:, 2])


def test_classes_that_are_known_stay_and_lead_the_others(head: ClassSequence) -> None:
    uniform = torch.rand(2000, 3, 2, generator=seeded()).double()
    known = torch.tensor([1, 2]).expand(2000, 2, 2)
    drawn = head.sample(uniform, told(2000).vector, known)
    assert torch.equal(drawn[:, :2], known)
    every = torch.tensor([[[1, 2], [1, 2], [a, b]] for a in range(2) for b in range(3)])
    share = head.log_prob(every, told(6).vector)[:, 2].exp()
    found = torch.bincount(drawn[:, 2, 0] * 3 + drawn[:, 2, 1], minlength=6) / 2000
    assert (found - share).abs().max() < 4 * math.sqrt(0.25 / 2000)


# the density

def density(generator: MultimodalFlow, actions: Tensor) -> Tensor:
    """Return log-densities under one condition, without gradient."""
    with torch.no_grad():
        return generator.log_prob(actions, told(len(actions)))


def columns_of(rotations: Tensor) -> Tensor:
    """(B, 3, 3) -> chunks (B, 1, 6)."""
    return rotations[..., :2].mT.flatten(-2)[:, None]


@pytest.mark.parametrize('turn', [torch.zeros_like, lambda rotation: torch.ones_like(rotation)],
                         ids=['at rest', 'same turn everywhere'])
def test_a_field_that_only_shifts_keeps_rotations_uniform(turn: object) -> None:
    generator = make((TURN,))
    generator.network = Spin(lambda rotation: turn(rotation[..., 0]))
    found = density(generator, columns_of(uniform_rotations(9)))
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-12)


def test_a_field_along_the_axis_has_the_density_and_the_gradient_of_its_closed_form() -> None:
    """The angle follows d angle / dt = g sin(angle), so tan(angle / 2) grows by exp(g)."""
    generator, gain = make((TURN,)), torch.tensor(0.8).double().requires_grad_()
    generator.network = Spin(lambda rotation: gain * along_the_axis(rotation))
    after = torch.linspace(0.2, 3.0, 9).double()
    turned = nn.functional.normalize(torch.randn(9, 3, generator=seeded()).double(), dim=-1) * after[:, None]
    before = 2 * ((after / 2).tan() * (-gain).exp()).atan()
    wanted = ((1 - before.cos()) / (1 - after.cos()) * before.sin() / after.sin()).log()
    found = generator.log_prob(columns_of(roma.rotvec_to_rotmat(turned)), told(9))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), gain), torch.autograd.grad(wanted.sum(), gain),
                               rtol=0, atol=1e-3)
    noise = columns_of(roma.rotvec_to_rotmat(turned * (before / after)[:, None]))
    torch.testing.assert_close(generator.sample(told(9), noise=noise.detach(), steps=64),
                               columns_of(roma.rotvec_to_rotmat(turned)), rtol=0, atol=1e-4)


def anywhere(rotation: Tensor) -> Tensor:
    """Return an angular velocity that depends on all of a rotation."""
    weights = 0.5 * torch.randn(9, 3, generator=seeded(4)).double()
    return (rotation.flatten(-2) @ weights).sin()


def test_density_integrates_to_one_over_uniform_rotations() -> None:
    generator, count = make((TURN,)), 1000
    generator.network = Spin(anywhere)
    weights = density(generator, columns_of(uniform_rotations(count))).exp()
    assert weights.std() > 0.5
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(count)


def test_samples_have_the_density_that_log_prob_says() -> None:
    generator, count = make((TURN,), solver='rk4', steps=8), 1000
    generator.network = Spin(anywhere)
    with torch.no_grad():
        made = generator.sample(told(count), generator=seeded())
    volume = (-density(generator, made)).exp()
    assert abs(volume.mean() - 1) < 4 * volume.std() / math.sqrt(count)


def test_density_of_numbers_and_classes_integrates_to_one() -> None:
    generator = make((PartConfig(), CHOICE), spread=0.2)
    grid = torch.linspace(-9, 9, 361).double()
    chunks = torch.cartesian_prod(grid, torch.tensor([-1.0, 0.0, 1.0]).double())[:, None]
    total = density(generator, chunks).exp().sum() * (grid[1] - grid[0])
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_log_prob_is_the_sum_of_classes_numbers_and_rotations() -> None:
    generator = make(EVERYTHING, horizon=2)
    for parameter in generator.network.parameters():
        nn.init.zeros_(parameter)
    noise = torch.randn(3, 2, 23, generator=seeded()).double()
    point, classes = generator.layout.split(noise)
    wanted = generator.classes.log_prob(classes, told(3).vector).sum(1) + \
        torch.distributions.Normal(0, 1).log_prob(noise[..., [1, 2, 22]]).sum((1, 2))
    torch.testing.assert_close(density(generator, generator.layout.join(point, classes)), wanted)


# as a generator

@pytest.mark.parametrize('network', test_families.NETWORKS)
def test_a_family_with_rotations_reaches_every_parameter(network: str) -> None:
    test_families.test_shapes_and_that_a_gradient_reaches_every_parameter('multimodal', network, Sizes(5, 11, 7, 13))


def test_samples_are_rotations_and_classes_and_begin_with_the_prefix() -> None:
    generator = make(EVERYTHING, horizon=4, steps=3).float()
    given = Condition(told(6).vector.float())
    made = generator.sample(given, generator=seeded())
    generator.layout.check(made)
    columns = made[..., 3:9].unflatten(-1, (2, 3))
    torch.testing.assert_close(columns @ columns.mT, torch.eye(2).expand(6, 4, 2, 2), rtol=0, atol=1e-5)
    assert set(made[..., 0].unique().tolist()) <= {-1.0, 0.0, 1.0}
    prefix = generator.sample(given, generator=seeded(1))[:, :2]
    followed = generator.sample(given, prefix=prefix, generator=seeded())
    assert torch.equal(followed[:, :2], prefix) and not torch.equal(followed[:, 2:], made[:, 2:])


def test_half_precision_of_the_network_does_not_bend_rotations() -> None:
    generator = make((NUMBER, TURN), horizon=2).float()
    given = Condition(told(4).vector.float())
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        made = generator.sample(given, generator=seeded())
        assert generator.loss(made, given).isfinite()
    columns = made[..., 2:].unflatten(-1, (2, 3))
    assert made.dtype == torch.float32
    torch.testing.assert_close(columns @ columns.mT, torch.eye(2).expand(4, 2, 2, 2), rtol=0, atol=1e-5)


def test_it_learns_two_turns_and_the_class_that_belongs_to_each() -> None:
    torch.manual_seed(0)
    generator = MultimodalFlowConfig((TURN, PartConfig('discrete', 2)), draws=1).build(
        Sizes(1, 7, 1), NetworkConfig('mlp', 32, 2))
    optimiser, random = torch.optim.Adam(generator.parameters(), 5e-3), seeded()

    def batch(count: int) -> Tensor:
        side = 2 * torch.randint(0, 2, (count, 1), generator=random) - 1
        turn = 0.5 * math.pi * side * torch.tensor([0, 0, 1]) + 0.1 * torch.randn(count, 3, generator=random)
        return torch.cat([columns_of(roma.rotvec_to_rotmat(turn)), side[:, None].float()], -1)

    for _ in range(200):
        optimiser.zero_grad()
        generator.loss(batch(128), Condition(torch.ones(128, 1)), generator=random).backward()
        optimiser.step()
    with torch.no_grad():
        made = generator.sample(Condition(torch.ones(1000, 1)), generator=random)
    turns = roma.rotmat_to_rotvec(rotation_from_columns(made[:, 0, :6]))
    wanted = torch.tensor([0.0, 0.0, 0.5 * math.pi]) * made[:, :, 6]
    assert 0.4 < (made[..., 6] > 0).float().mean() < 0.6
    assert ((turns - wanted).norm(dim=-1) < 0.6).float().mean() > 0.95
