"""Properties of every registered family, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
import copy

import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.generators import FAMILIES, FlowMatchingConfig, Generator, LikelihoodGenerator, Student
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

PRIMES = Sizes(horizon=5, action_dim=3, condition_dim=7, token_dim=11)
EQUAL = Sizes(4, 4, 4, 4)
WIDTH, BATCH = 8, 2
IGNORE_NOISE = {'regression'}  # answer each condition with one chunk
NETWORKS = {'mlp': NetworkConfig('mlp', WIDTH, 1), 'unet': NetworkConfig('unet', WIDTH, 2),
            'transformer': NetworkConfig('transformer', WIDTH, 1, 2)}

families = pytest.mark.parametrize('family', FAMILIES)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def build(family: str, sizes: Sizes = PRIMES, network: str = 'mlp', trained: bool = True) -> Generator:
    """Make a small generator; its weights are shaken so that nothing is zero, and a student gets a teacher."""
    torch.manual_seed(0)
    made = FAMILIES[family].dummy(sizes).build(sizes, NETWORKS[network])
    if isinstance(made, Student):
        teacher = FlowMatchingConfig().build(sizes, NETWORKS[network])
        made.learn_from(_shake(teacher))
    return _shake(made) if trained or isinstance(made, Student) else made  # as its teacher it has nothing to learn


def _shake(module: Generator) -> Generator:
    random = seeded(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return module


def inputs(family: str, sizes: Sizes = PRIMES, batch: int = BATCH,
           dtype: torch.dtype = torch.float32) -> tuple[Tensor, Condition]:
    """Make chunks that the family can learn, and a condition."""
    random = seeded(2)
    actions = FAMILIES[family].fake_actions(sizes, batch, random).to(dtype)
    condition = Condition(torch.randn(batch, sizes.condition_dim, generator=random).to(dtype),
                          torch.randn(batch, 3, sizes.token_dim, generator=random).to(dtype))
    return actions, condition


@families
@pytest.mark.parametrize('network', NETWORKS)
@pytest.mark.parametrize('sizes', [PRIMES, EQUAL], ids=['primes', 'equal'])
def test_shapes_and_that_a_gradient_reaches_every_parameter(family: str, network: str, sizes: Sizes) -> None:
    generator = build(family, sizes, network).train()
    reached: set[str] = set()
    for seed in range(4):  # a part may be left out by the luck of one draw
        actions, condition = inputs(family, sizes, 16)
        generator.zero_grad()
        loss = generator.loss(actions, condition, generator=seeded(seed))
        assert loss.shape == () and torch.isfinite(loss)
        loss.backward()
        reached |= {name for name, p in generator.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    wanted = {name for name, p in generator.named_parameters() if p.requires_grad}
    assert not wanted - reached
    made = generator.eval().sample(condition)
    assert made.shape == actions.shape and torch.isfinite(made).all()


@families
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_dtype_of_the_weights_is_that_of_loss_and_samples(family: str, dtype: torch.dtype) -> None:
    generator = build(family).to(dtype)
    actions, condition = inputs(family, dtype=dtype)
    assert generator.loss(actions, condition).dtype == dtype
    assert generator.sample(condition).dtype == dtype


@families
def test_randomness_comes_from_the_generator_that_is_given_and_inputs_stay_as_they_are(family: str) -> None:
    generator = build(family)
    actions, condition = inputs(family)
    noise = torch.randn(actions.shape, generator=seeded(4))
    before = [value.clone() for value in (actions, condition.vector, condition.tokens, noise)]
    state = torch.get_rng_state()
    for run in (lambda: generator.loss(actions, condition, generator=seeded(3)),
                lambda: generator.sample(condition, generator=seeded(3)),
                lambda: generator.sample(condition, noise=noise, generator=seeded(3))):
        torch.testing.assert_close(run(), run(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    for value, kept in zip((actions, condition.vector, condition.tokens, noise), before):
        assert torch.equal(value, kept)


@families
@pytest.mark.parametrize('network', NETWORKS)
def test_noise_and_condition_matter_each_for_its_own_element(family: str, network: str) -> None:
    generator = build(family, network=network).eval()
    actions, condition = inputs(family, batch=3)
    noise = torch.randn(actions.shape, generator=seeded(4))
    made = generator.sample(condition, noise=noise, generator=seeded(5))
    changed = condition.with_vector(condition.vector + torch.tensor([0.0, 1.0, 0.0])[:, None])
    different = generator.sample(changed, noise=noise, generator=seeded(5))
    assert not torch.allclose(made[1], different[1])
    torch.testing.assert_close(made[[0, 2]], different[[0, 2]])
    other = generator.sample(condition, noise=noise.flip(0) + 1, generator=seeded(5))
    assert torch.equal(made, other) == (family in IGNORE_NOISE)


@families
def test_a_batch_of_one_gives_what_it_gives_in_a_larger_one(family: str) -> None:
    generator = build(family).eval().double()
    actions, condition = inputs(family, batch=1, dtype=torch.float64)
    noise = torch.randn(actions.shape, generator=seeded(4)).double()
    made = generator.sample(condition, noise=noise, generator=seeded(5))
    assert made.shape == actions.shape
    assert generator.loss(actions, condition).shape == ()


@families
def test_saved_weights_make_the_same_chunks(family: str, tmp_path: object) -> None:
    generator = build(family).eval()
    actions, condition = inputs(family)
    noise = torch.randn(actions.shape, generator=seeded(4))
    save_file(generator.state_dict(), tmp_path / 'weights.safetensors')
    other = FAMILIES[family].dummy(PRIMES).build(PRIMES, NETWORKS['mlp']).eval()
    other.load_state_dict(load_file(tmp_path / 'weights.safetensors'))
    torch.testing.assert_close(other.sample(condition, noise=noise, generator=seeded(5)),
                               generator.sample(condition, noise=noise, generator=seeded(5)), rtol=0, atol=0)


@families
def test_a_mask_that_hides_nothing_changes_nothing_and_one_that_hides_all_breaks_nothing(family: str) -> None:
    generator = build(family).double()
    actions, condition = inputs(family, batch=3, dtype=torch.float64)
    mask = torch.ones(actions.shape[:2], dtype=torch.bool)
    whole = generator.loss(actions, condition, mask, seeded(6))
    torch.testing.assert_close(whole, generator.loss(actions, condition, None, seeded(6)))
    assert torch.isfinite(generator.loss(actions, condition, torch.zeros_like(mask), seeded(6)))


@families
def test_a_prefix_begins_the_chunk(family: str) -> None:
    generator = build(family).eval()
    actions, condition = inputs(family)
    prefix = actions[:, :2]
    made = generator.sample(condition, prefix=prefix, generator=seeded(5))
    assert torch.equal(made[:, :2], prefix) and torch.isfinite(made).all()


@families
def test_a_step_of_the_optimiser_lowers_the_loss(family: str) -> None:
    generator = build(family, trained=False).train()
    actions, condition = inputs(family, batch=16)

    def measure() -> float:
        with torch.no_grad():
            return sum(generator.loss(actions, condition, generator=seeded(s)).item() for s in range(8))

    before = measure()
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for step in range(40):
        optimiser.zero_grad()
        generator.loss(actions, condition, generator=seeded(100 + step)).backward()
        optimiser.step()
        generator.after_step()
    assert measure() < before


@families
def test_log_prob_has_one_number_for_each_chunk_and_knows_the_condition(family: str) -> None:
    generator = build(family).eval()
    if not isinstance(generator, LikelihoodGenerator):
        pytest.skip('the family has no density')
    actions, condition = inputs(family)
    found = generator.log_prob(actions, condition)
    assert found.shape == (BATCH,) and torch.isfinite(found).all()
    assert not torch.allclose(found, generator.log_prob(actions, condition.with_vector(condition.vector + 1)))


def _with(values: Tensor, bad: float) -> Tensor:
    values = values.clone()
    values.view(-1)[1] = bad
    return values


MISTAKES: dict[str, tuple[type[Exception], str, Callable]] = {
    'width of actions': (InputError, 'actions', lambda g, a, c: g.loss(a[..., :-1], c)),
    'horizon': (InputError, 'actions', lambda g, a, c: g.loss(a[:, :-1], c)),
    'batch': (InputError, 'actions', lambda g, a, c: g.loss(a[:1], c)),
    'width of condition': (InputError, 'condition', lambda g, a, c: g.sample(c.with_vector(c.vector[:, :-1]))),
    'nan actions': (InputError, 'actions.*NaN', lambda g, a, c: g.loss(_with(a, float('nan')), c)),
    'inf condition': (InputError, 'condition.*NaN or inf',
                      lambda g, a, c: g.loss(a, c.with_vector(_with(c.vector, float('inf'))))),
    'mask': (InputError, 'mask', lambda g, a, c: g.loss(a, c, torch.ones(a.shape, dtype=torch.bool))),
    'noise': (InputError, 'noise', lambda g, a, c: g.sample(c, noise=torch.zeros(a.shape[1:]))),
    'prefix': (InputError, 'prefix', lambda g, a, c: g.sample(c, prefix=a)),
    'no steps': (ConfigError, 'steps: 0', lambda g, a, c: g.sample(c, steps=0)),
}


@families
@pytest.mark.parametrize('mistake', MISTAKES)
def test_bad_input_is_named(family: str, mistake: str) -> None:
    error, message, run = MISTAKES[mistake]
    generator = build(family)
    with pytest.raises(error, match=message):
        run(generator, *inputs(family))


@families
def test_a_copy_is_independent(family: str) -> None:
    generator = build(family).eval()
    actions, condition = inputs(family)
    twin = copy.deepcopy(generator)
    noise = torch.randn(actions.shape, generator=seeded(4))
    before = generator.sample(condition, noise=noise, generator=seeded(5))
    _shake(twin)
    torch.testing.assert_close(generator.sample(condition, noise=noise, generator=seeded(5)), before, rtol=0, atol=0)
