"""Real-time chunking: weights, the true Jacobian, families that are steered, and prefixes that were learned."""

from __future__ import annotations

from collections.abc import Callable
import math

from core_samples import make_policy, shake, small_contract
import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.generators import (
    FAMILIES,
    DiffusionConfig,
    FlowMatching,
    FlowMatchingConfig,
    Generator,
    Guide,
    RectifiedFlowConfig,
    Refined,
    ScoreConfig,
    prefix_weights,
)
from flow_vla_core.generators.paths import PATHS, Path, StraightPath, VariancePreservingPath
from flow_vla_core.generators.realtime import guidance_weight, pull, steer
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(6, 2, 3)
NETWORKS = {'mlp': NetworkConfig('mlp', 8, 1), 'unet': NetworkConfig('unet', 8, 2),
            'transformer': NetworkConfig('transformer', 8, 1, 2)}
GUIDABLE = {'flow matching': FlowMatchingConfig(steps=3), 'rectified': RectifiedFlowConfig(steps=3),
            'score': ScoreConfig(steps=3), 'diffusion': DiffusionConfig(steps=3, training_steps=10),
            'other path': FlowMatchingConfig(steps=3, path='variance_preserving', solver='heun'),
            'adaptive': FlowMatchingConfig(solver='bosh3', tolerance=0.05)}
PATHS_OF = {**{name: kind() for name, kind in PATHS.items()}, 'straight, 0.1 left': StraightPath(0.1),
            'begins later': VariancePreservingPath(0.2)}


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def made(config: object, network: str = 'mlp', sizes: Sizes = SIZES) -> Generator:
    """Build a generator whose weights are nowhere zero."""
    torch.manual_seed(0)
    generator = config.build(sizes, NETWORKS[network])
    shake(generator)
    return generator.double().eval()


def asked(count: int = 2) -> Condition:
    """Return a condition."""
    return Condition(draw(count, 3, seed=7))


# Weights: published vectors (docs: reference code of arXiv 2506.07339)


@pytest.mark.parametrize(('schedule', 'wanted'), [
    ('linear', [1, 1, .8, .6, .4, .2, 0, 0, 0, 0]), ('exponential', [1, 1, .571, .287, .114, .026, 0, 0, 0, 0]),
    ('ones', [1] * 6 + [0] * 4), ('zeros', [1] * 2 + [0] * 8)])
def test_weights_are_the_published_ones(schedule: str, wanted: list[float]) -> None:
    found = prefix_weights(10, delay=2, execute=4, schedule=schedule)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=5e-4, rtol=0)


def test_strength_is_the_published_one() -> None:
    found = [guidance_weight(1 - k / 10, k / 10, 1.0, 10.0) for k in range(10)]
    assert found == pytest.approx([10, 9.11, 4.25, 2.76, 2.17, 2.0, 2.17, 2.76, 4.25, 9.11], abs=5e-3)
    assert guidance_weight(0.0, 1.0, 1.0, 3.0) == 3.0


@pytest.mark.parametrize(('delay', 'execute'), [(-1, 2), (5, 6), (0, 0), (7, 4)])
def test_a_delay_beyond_what_the_old_plan_covers_is_refused(delay: int, execute: int) -> None:
    with pytest.raises(InputError, match=f'delay: {delay}, execute: {execute}.*10'):
        prefix_weights(10, delay, execute)


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(ConfigError, match="'linaer'.*linear"):
        prefix_weights(10, 1, 2, 'linaer')


@pytest.mark.parametrize('change', [
    lambda a, w: Guide(a[0], w), lambda a, w: Guide(a, w[:2]), lambda a, w: Guide(a[:, :0], w),
    lambda a, w: Guide(a, w, -1.0), lambda a, w: Guide(a, w, math.nan)])
def test_a_guide_without_sense_is_refused(change: Callable[[Tensor, Tensor], Guide]) -> None:
    with pytest.raises(InputError, match='guide'):
        change(draw(1, 3, 2), torch.ones(6))


# Paths: what the velocity says about the end


@pytest.mark.parametrize('path', PATHS_OF.values(), ids=PATHS_OF)
def test_the_data_are_found_from_point_and_velocity(path: Path) -> None:
    noise, data = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    for t in (0.0, 0.3, 0.9, 1.0):
        torch.testing.assert_close(path.clean(path.mix(noise, data, t), path.velocity(noise, data, t), t), data)


@pytest.mark.parametrize('path', PATHS_OF.values(), ids=PATHS_OF)
def test_shares_are_those_of_the_mixture_and_of_its_rate(path: Path) -> None:
    t, step, one = 0.4, 1e-6, torch.ones(1, 1, dtype=torch.float64)
    a, b, turn = path.shares(t)
    torch.testing.assert_close(path.mix(one, 0 * one, t).item(), a)
    torch.testing.assert_close(path.mix(0 * one, one, t).item(), b)
    (a_before, b_before, _), (a_after, b_after, _) = path.shares(t - step), path.shares(t + step)
    slopes = (a_after - a_before) / (2 * step), (b_after - b_before) / (2 * step)
    assert turn == pytest.approx(a * slopes[1] - b * slopes[0], rel=1e-6)


# The true Jacobian


def written_out(network: nn.Module, x: Tensor, t: float, condition: Condition, guide: Guide) -> Tensor:
    """Return the guided velocity from the whole Jacobian of each chunk's estimate, after the paper's equations."""
    horizon, rows = x.shape[1], []
    weights = torch.zeros(horizon, dtype=x.dtype)
    weights[:guide.actions.shape[1]] = guide.weights[:guide.actions.shape[1]].to(x)
    target = torch.zeros_like(x)
    target[:, :guide.actions.shape[1]] = guide.actions
    for index in range(len(x)):
        alone = condition[index:index + 1]

        def estimate(flat: Tensor, alone: Condition = alone) -> Tensor:
            chunk = flat.reshape(1, *x.shape[1:])
            return (chunk + (1 - t) * network(chunk, torch.full((1,), t, dtype=x.dtype), alone)).flatten()

        jacobian = torch.func.jacrev(estimate)(x[index].flatten())
        clean = estimate(x[index].flatten()).reshape(x.shape[1:])
        error = (weights[:, None] * (target[index] - clean)).flatten()
        square = (1 - t) ** 2 / (t ** 2 + (1 - t) ** 2)
        strength = guide.beta if t == 0 else min(guide.beta, (1 - t) / (t * square))
        velocity = network(x[index:index + 1], torch.full((1,), t, dtype=x.dtype), alone)[0]
        rows.append(velocity + strength * (jacobian.T @ error).reshape(x.shape[1:]))
    return torch.stack(rows).detach()


@pytest.mark.parametrize('t', [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_guidance_is_that_of_the_written_out_jacobian(network: str, t: float, dtype: torch.dtype,
                                                      tolerance: float) -> None:
    generator = made(FlowMatchingConfig(), network).to(dtype)
    x, condition = draw(2, 6, 2, dtype=dtype), Condition(asked().vector.to(dtype))
    guide = Guide(draw(2, 4, 2, seed=1, dtype=dtype), prefix_weights(6, 1, 2), 5.0)
    with torch.no_grad():
        field = generator.field(condition)
        found = steer(field, guide, StraightPath())(x, t)
    wanted = written_out(generator.network, x, t, condition, guide)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)
    identity = field(x, t) + min(5.0, 5.0 if t == 0 else guidance_weight(1 - t, t, 1.0, 5.0)) * guide.error(
        x + (1 - t) * field(x, t))
    assert (found - identity).abs().max() > 1e3 * tolerance, 'an identity in place of the Jacobian must show'


def test_guidance_of_a_linear_field_has_a_closed_form() -> None:
    matrix, x = draw(4, 4, seed=3), draw(1, 2, 2)
    target, t = draw(1, 2, 2, seed=4), 0.25

    def field(x: Tensor, t: float) -> Tensor:
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    found = steer(field, Guide(target, torch.ones(2), 1.5), StraightPath())(x, t)
    jacobian = torch.eye(4, dtype=torch.float64) + (1 - t) * matrix
    wanted = matrix @ x.flatten() + 1.5 * jacobian.T @ (target.flatten() - jacobian @ x.flatten())
    torch.testing.assert_close(found.flatten(), wanted)


def test_what_the_old_plan_does_not_reach_pulls_at_nothing() -> None:
    guide, clean = Guide(draw(1, 2, 2), torch.ones(6)), draw(1, 6, 2, seed=1)
    error = guide.error(clean)
    torch.testing.assert_close(error[:, :2], guide.actions - clean[:, :2])
    assert (error[:, 2:] == 0).all()


def test_guidance_never_does_nothing_in_silence() -> None:
    generator, guide = made(FlowMatchingConfig()), Guide(draw(2, 4, 2), prefix_weights(6, 1, 2))
    with torch.inference_mode(), pytest.raises(InputError, match='inference_mode.*no_grad'):
        generator.sample(asked(), guide=guide)
    with torch.inference_mode():
        noise = draw(2, 6, 2)
    with pytest.raises(InputError, match='inference_mode.*no_grad'):
        generator.sample(asked(), noise=noise, guide=guide)


def test_nothing_that_is_returned_has_a_gradient() -> None:
    x, guide = draw(1, 3, 1), Guide(draw(1, 3, 1), torch.ones(3))
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    value, correction = pull(lambda x: (weight * x, weight * x), x, guide)
    assert not value.requires_grad and not correction.requires_grad and not x.requires_grad


# Families


@pytest.mark.parametrize('config', GUIDABLE.values(), ids=GUIDABLE)
def test_a_family_that_can_be_steered_goes_on_from_the_old_plan(config: object) -> None:
    generator, condition, noise = made(config, 'unet'), asked(20), draw(20, 6, 2)
    left = draw(20, 4, 2, seed=5)
    with torch.no_grad():
        free = generator.sample(condition, noise=noise, generator=seeded())
        led = generator.sample(condition, noise=noise, guide=Guide(left, prefix_weights(6, 2, 2), 5.0),
                               generator=seeded())
        still = generator.sample(condition, noise=noise, guide=Guide(left, prefix_weights(6, 2, 2), 0.0),
                                 generator=seeded())
    far, near = ((chunk[:, :2] - left[:, :2]).square().mean() for chunk in (free, led))
    assert near < 0.35 * far
    torch.testing.assert_close(still, free)


@pytest.mark.parametrize('family', sorted({*FAMILIES} - {'flow_matching', 'rectified', 'score', 'diffusion'}))
def test_other_families_say_what_to_use(family: str) -> None:
    generator = FAMILIES[family].dummy(SIZES).build(SIZES, NETWORKS['mlp'])
    assert not generator.guidable
    with pytest.raises(ConfigError, match=f'{type(generator).__name__} .*prefix'):
        generator.sample(Condition(torch.zeros(1, 3)), guide=Guide(torch.zeros(1, 2, 2), torch.ones(6)))


def test_the_reverse_sde_is_not_steered() -> None:
    assert not made(ScoreConfig(sampler='sde')).guidable and made(ScoreConfig()).guidable


def test_a_refiner_corrects_what_was_led() -> None:
    base = made(FlowMatchingConfig())
    refined = Refined(base, made(FlowMatchingConfig()).network).double()
    guide, noise = Guide(draw(2, 4, 2, seed=5), prefix_weights(6, 1, 2)), draw(2, 6, 2)
    with torch.no_grad():
        led = base.sample(asked(), noise=noise, guide=guide)
        wanted = led + refined.network(led, torch.ones(2, dtype=torch.float64), asked())
        torch.testing.assert_close(refined.sample(asked(), noise=noise, guide=guide), wanted)
    assert refined.guidable and not Refined(FAMILIES['meanflow']().build(SIZES, NETWORKS['mlp']), base).guidable


def test_guides_of_another_shape_and_prefixes_beside_them_are_refused() -> None:
    generator, weights = made(FlowMatchingConfig()), torch.ones(9)
    for actions in (draw(3, 2, 2), draw(2, 2, 1), draw(2, 7, 2)):
        with pytest.raises(InputError, match='guide: shape'):
            generator.sample(asked(), guide=Guide(actions, weights))
    with pytest.raises(InputError, match='one of them'):
        generator.sample(asked(), guide=Guide(draw(2, 2, 2), weights), prefix=draw(2, 1, 2))


def test_classifier_free_guidance_is_part_of_what_is_differentiated() -> None:
    generator = made(FlowMatchingConfig(drop=0.2, guidance=2.5))
    x, condition, guide = draw(2, 6, 2), asked(), Guide(draw(2, 6, 2, seed=2), prefix_weights(6, 2, 2))

    def blended(x: Tensor, t: Tensor, told: Condition) -> Tensor:
        free = generator.network(x, t, generator.null.like(told))
        return free + 2.5 * (generator.network(x, t, told) - free)

    with torch.no_grad():
        found = steer(generator.field(condition), guide, StraightPath())(x, 0.3)
    torch.testing.assert_close(found, written_out(blended, x, 0.3, condition, guide))


def test_the_policy_takes_guides_in_the_contracts_units() -> None:
    policy, left = make_policy(small_contract()), 3 * draw(2, 3, 4, seed=2, dtype=torch.float32)
    batch, noise = policy.fake_batch(2, seeded())
    weights = prefix_weights(4, 1, 1)
    with torch.no_grad():
        found = policy.sample(batch, noise=noise, guide=Guide(left, weights))
        wanted = policy.generator.sample(policy.encode(batch), noise=noise,
                                         guide=Guide(policy.normalise_actions(left), weights))
    torch.testing.assert_close(found, policy.normalise_actions.inverse(wanted))


# Prefixes that were learned


class Heard(nn.Module):
    """Is a velocity network that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls.append((x, t))
        return x * condition.vector[:, :1, None] + 1


def learning(prefix_steps: int = 3, **settings: object) -> FlowMatching:
    """Return flow matching around `Heard`."""
    return FlowMatching(Heard(), SIZES, prefix_steps=prefix_steps, draws=1, time='uniform', **settings).double()


@pytest.mark.parametrize('path', PATHS)
def test_training_gives_a_random_prefix_clean_at_time_1_and_counts_the_rest(path: str) -> None:
    generator, actions = learning(path=PATHS[path]()), draw(4000, 6, 2)
    mask = torch.arange(6).expand(4000, 6) < 5
    loss = generator.loss(actions, asked(4000), mask, generator=seeded())
    (x, t), = generator.network.calls
    known = (t == 1) & (x == actions).all(2)
    count = known.sum(1)
    assert torch.equal(known, torch.arange(6) < count[:, None]), 'the known ones come first'
    assert all(abs((count == each).double().mean().item() - 0.25) < 0.03 for each in range(4))
    assert (t[:, 3:] == t[:, 5:]).all() and t[:, 5].max() < 1
    generator.network.calls.clear()
    torch.manual_seed(0)
    noise = torch.randn(actions.shape, generator=seeded()).double()
    target = generator.path.velocity(noise, actions, t)
    error = (generator.network(x, t, asked(4000)) - target).square()
    counted = mask & ~known
    torch.testing.assert_close(loss, error[counted].mean())


def test_given_actions_are_moved_by_one_offset_for_each_chunk_and_dimension_and_targets_are_not() -> None:
    generator, actions = learning(prefix_noise=0.5), draw(4000, 6, 2)
    loss = generator.loss(actions, asked(4000), generator=seeded())
    (x, t), = generator.network.calls
    known, noise = t == 1, torch.randn(actions.shape, generator=seeded()).double()
    offset = torch.where(known[..., None], x - actions, torch.nan)
    first = offset[:, :1].expand_as(offset)
    torch.testing.assert_close(offset[known], first[known])
    given = offset[known[:, 0], 0]
    assert given.std(0).sub(0.5).abs().max() < 0.03 and given.mean(0).abs().max() < 0.03
    assert given.T.corrcoef()[0, 1].abs() < 0.06
    free = (~known)[..., None].expand_as(x)
    torch.testing.assert_close(x[free], generator.path.mix(noise, actions, t)[free])
    error = (x * asked(4000).vector[:, :1, None] + 1 - generator.path.velocity(noise, actions, t)).square()
    torch.testing.assert_close(loss, error[free].mean())


def test_a_policy_that_learned_with_offsets_looks_instead_of_reading_off_its_own_actions() -> None:
    found = {}
    for noise in (0.0, 0.5):
        torch.manual_seed(0)
        generator = FlowMatchingConfig(steps=4, draws=1, time='uniform', prefix_steps=3, prefix_noise=noise).build(
            Sizes(6, 1, 1), NetworkConfig('mlp', 32, 1))
        optimiser, random = torch.optim.Adam(generator.parameters(), 3e-3), seeded()
        for _ in range(400):  # what is seen tells the goal, inexactly; the expert's actions tell it exactly
            goal = torch.randn(256, 1, generator=random)
            seen = Condition(goal + 0.1 * torch.randn(256, 1, generator=random))
            loss = generator.loss(goal[:, None].expand(256, 6, 1), seen, generator=random)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            wrong = torch.ones(500, 2, 1)  # on the way to 1, while the goal is at 0
            found[noise] = generator.eval().sample(Condition(torch.zeros(500, 1)), prefix=wrong, generator=random)
    assert found[0.0][:, 3:].mean() > 0.7
    assert found[0.5][:, 3:].mean() < 0.3


def test_validation_is_that_of_a_policy_without_prefixes() -> None:
    plain, other = learning(0).eval(), learning(3).eval()
    actions = draw(50, 6, 2)
    losses = [each.loss(actions, asked(50), generator=seeded()) for each in (plain, other)]
    assert torch.equal(*losses) and other.network.calls[0][1].shape == (50,)
    trained = learning(0).train()
    assert torch.equal(trained.loss(actions, asked(50), generator=seeded()), losses[0])


@pytest.mark.parametrize('solver', ['euler', 'midpoint', 'bosh3'])
def test_a_learned_prefix_is_clean_at_time_1_in_every_evaluation(solver: str) -> None:
    generator, prefix = learning(solver=solver, tolerance=1e-3).eval(), draw(2, 2, 2, seed=3)
    with torch.no_grad():
        chunk = generator.sample(asked(), noise=draw(2, 6, 2), prefix=prefix, steps=3)
    assert torch.equal(chunk[:, :2], prefix) and len(generator.network.calls) >= 3
    for x, t in generator.network.calls:
        assert torch.equal(x[:, :2], prefix) and (t[:, :2] == 1).all()
        assert (t[:, 2:] == t[:, 2:3]).all() and t[:, 2].max() <= 1
    assert generator.network.calls[0][1][0, 2] == 0


@pytest.mark.parametrize('network', NETWORKS)
def test_all_networks_learn_to_go_on_from_a_prefix(network: str) -> None:
    torch.manual_seed(0)
    sizes = Sizes(6, 1, 1)
    generator = FlowMatchingConfig(steps=4, draws=1, time='uniform', prefix_steps=3).build(
        sizes, NetworkConfig(network, 16, 1, 2))
    optimiser, random = torch.optim.Adam(generator.parameters(), 1e-2), seeded()
    condition = Condition(torch.zeros(128, 1))
    for _ in range(120):  # chunks of either sign, of which nothing else tells
        chunks = (2.0 * torch.randint(0, 2, (128, 1, 1), generator=random) - 1).expand(128, 6, 1)
        loss = generator.loss(chunks, condition, generator=random)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    side = (2.0 * torch.randint(0, 2, (128, 1, 1), generator=random) - 1)
    with torch.no_grad():
        chunk = generator.eval().sample(condition, prefix=side.expand(128, 2, 1), generator=random)
        free = generator.sample(condition, generator=random)
    assert (chunk[:, 2:].mean((1, 2)) * side[:, 0, 0] > 0.5).double().mean() > 0.95
    assert 0.25 < (free.mean((1, 2)) > 0).double().mean() < 0.75


def test_a_negative_offset_is_refused() -> None:
    with pytest.raises(ConfigError, match='generator.prefix_noise: -0.1.*0 or more'):
        FlowMatchingConfig(prefix_steps=2, prefix_noise=-0.1).build(SIZES, NETWORKS['mlp'])


@pytest.mark.parametrize('steps', [-1, 6])
def test_a_prefix_has_to_leave_something(steps: int) -> None:
    with pytest.raises(ConfigError, match=f'generator.prefix_steps: {steps}.*below 6'):
        FlowMatchingConfig(prefix_steps=steps).build(SIZES, NETWORKS['mlp'])
