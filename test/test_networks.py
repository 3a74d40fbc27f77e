"""Properties of every velocity network."""

from __future__ import annotations

from collections.abc import Callable

from core_samples import shake
import pytest
import torch

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.networks import ActionTransformer, NetworkConfig, ResidualMLP, Sizes, UNet1d
from flow_vla_core.networks.time import TimeEmbedding, time_of_actions
from flow_vla_core.types import Condition

NETWORKS = {
    'transformer': lambda h, a, d: ActionTransformer(h, a, d, 12, 2, 3),
    'unet': lambda h, a, d: UNet1d(h, a, d, (8, 16)),
    'unet of three scales': lambda h, a, d: UNet1d(h, a, d, (8, 8, 13)),
    'mlp': lambda h, a, d: ResidualMLP(h, a, d, 11, 2),
}
SIZES = [(2, 7, 3, 5), (5, 5, 5, 5), (1, 1, 1, 1), (3, 13, 2, 11)]


@pytest.fixture(params=NETWORKS)
def build(request: pytest.FixtureRequest) -> Callable[[int, int, int], torch.nn.Module]:
    """Build a network with weights that are nowhere zero."""
    def make(horizon: int, action_dim: int, condition_dim: int) -> torch.nn.Module:
        torch.manual_seed(0)
        network = NETWORKS[request.param](horizon, action_dim, condition_dim)
        shake(network)
        return network
    return make


def inputs(b: int, h: int, a: int, d: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Return noisy chunks, times and a condition."""
    random = torch.Generator().manual_seed(1)
    return (torch.randn(b, h, a, generator=random, dtype=dtype), torch.rand(b, generator=random, dtype=dtype),
            Condition(torch.randn(b, d, generator=random, dtype=dtype)))


@pytest.mark.parametrize('sizes', SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_shape_and_type_are_those_of_the_chunk(build: Callable, sizes: tuple, dtype: torch.dtype) -> None:
    b, h, a, d = sizes
    x, t, condition = inputs(*sizes, dtype)
    out = build(h, a, d).to(dtype)(x, t, condition)
    assert out.shape == (b, h, a)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_a_gradient_reaches_every_parameter(build: Callable) -> None:
    network = build(7, 3, 5)
    network(*inputs(4, 7, 3, 5)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_elements_of_a_batch_do_not_see_each_other(build: Callable) -> None:
    network = build(7, 3, 5).double()
    x, t, condition = inputs(4, 7, 3, 5, torch.float64)
    whole = network(x, t, condition)
    alone = torch.cat([network(x[i:i + 1], t[i:i + 1], Condition(condition.vector[i:i + 1])) for i in range(4)])
    torch.testing.assert_close(whole, alone)


def test_time_condition_and_every_action_matter_to_every_action(build: Callable) -> None:
    network = build(7, 3, 5).double()
    x, t, condition = inputs(1, 7, 3, 5, torch.float64)
    out = network(x, t, condition)
    assert not torch.allclose(out, network(x, t + 0.1, condition))
    assert not torch.allclose(out, network(x, t, Condition(condition.vector + 0.1)))
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, t, condition), x)[0, :, :, 0]
    assert (jacobian.abs().amax((1, 3)) > 0).all()


def test_a_time_of_its_own_for_each_action_matters(build: Callable) -> None:
    network = build(7, 3, 5).double()
    x, t, condition = inputs(2, 7, 3, 5, torch.float64)
    known = [torch.where(torch.arange(7) < first, 1.0, t[:, None]) for first in (0, 1, 2, 6)]
    answers = [network(x, times, condition) for times in known]
    torch.testing.assert_close(answers[0], network(x, t, condition))
    for index, answer in enumerate(answers):
        assert all((answer - other).abs().amax((1, 2)).min() > 1e-6 for other in answers[:index])


def test_what_is_prepared_for_several_times_gives_the_same_answers(build: Callable) -> None:
    network = build(7, 3, 5).double()
    x, _, condition = inputs(2, 7, 3, 5, torch.float64)
    times = torch.rand(3, 2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for each in (times, times[:, :, :1]):
        for t, ready in zip(each, network.prepare(each, condition)):
            torch.testing.assert_close(network(x, t, ready), network(x, t, condition))
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, times[0], condition), x)
    ready = network.prepare(times, condition)[0]
    torch.testing.assert_close(torch.autograd.functional.jacobian(lambda x: network(x, times[0], ready), x), jacobian)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match='10 is no multiple of heads 4'):
        ActionTransformer(4, 2, 3, 10, 1, 4)


@pytest.mark.parametrize('frequencies', [1, 7, 32])
@pytest.mark.parametrize('width', [1, 7, 8])
def test_the_time_embedding_tells_close_times_apart(frequencies: int, width: int) -> None:
    embed = TimeEmbedding(width, frequencies=frequencies)
    t = torch.rand(5)
    assert embed(t).shape == (5, width)
    assert embed(t[:, None].expand(5, 3)).shape == (5, 3, width)
    angles = t[:, None] * embed.frequencies
    if frequencies == 32:
        assert (angles.sin().std(0) + angles.cos().std(0) > 0.05).all(), 'no feature stays constant on [0, 1]'


def test_the_fastest_frequency_is_the_one_that_is_asked_for() -> None:
    sizes = Sizes(4, 2, 3)
    for kind in ('mlp', 'unet', 'transformer'):
        network = NetworkConfig(kind, 8, 1, 2).build(sizes, fastest=7.0)
        assert network.time.frequencies.max().item() == pytest.approx(7.0)


def test_every_shape_of_time_means_the_same(build: Callable) -> None:
    network = build(7, 3, 5).double()
    x, t, condition = inputs(4, 7, 3, 5, torch.float64)
    usual = network(x, t, condition)
    for same in (t[:, None], t[:, None].expand(4, 7)):
        torch.testing.assert_close(network(x, same, condition), usual)
    half = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(network(x, half, condition), network(x, half.expand(4), condition))


def test_time_is_shaped_in_one_place_even_where_batch_and_horizon_are_equal() -> None:
    x, t = torch.zeros(3, 3, 2), torch.tensor([0.0, 0.3, 0.9])
    assert torch.equal(time_of_actions(t, x), t[:, None])
    own = torch.tensor([[0.0, 0.1, 0.2]]).expand(3, 3)
    assert torch.equal(time_of_actions(own, x), own)


def test_a_unet_gives_each_place_its_own_time() -> None:
    torch.manual_seed(0)
    network = UNet1d(8, 2, 3, (8, 8)).double()
    shake(network)
    times = torch.full((1, 1, 8), 0.3, dtype=torch.float64)
    later = times.clone()
    later[..., 3] = 0.8
    plain, changed = (network.prepare(each, Condition(torch.ones(1, 3).double()))[0].parts for each in (times, later))
    moved = [(first[0] - second[0]).abs().amax((0, 1)) > 1e-9 for first, second in zip(plain, changed)]
    assert [each.nonzero().flatten().tolist() for each in moved] == [[3], [1], [1], [3]]


@pytest.mark.parametrize('shape', [(3,), (1, 2), (2, 3), (2, 5, 1)])
def test_a_time_of_another_shape_is_refused(build: Callable, shape: tuple[int, ...]) -> None:
    x, _, condition = inputs(2, 5, 3, 4)
    with pytest.raises(InputError, match=r't: shape .*allowed: .*\(2, 5\)'):
        build(5, 3, 4)(x, torch.zeros(shape), condition)


def crossing() -> ActionTransformer:
    """Return a transformer that attends to tokens of width 6."""
    torch.manual_seed(0)
    network = ActionTransformer(7, 3, 5, 12, 2, 3, token_dim=6)
    shake(network)
    return network.double()


def test_tokens_are_prepared_once_for_all_times() -> None:
    network = crossing()
    x, t, condition = inputs(2, 7, 3, 5, torch.float64)
    told, asked = Condition(condition.vector, torch.randn(2, 4, 6).double()), []
    network.tokens.register_forward_hook(lambda *_: asked.append(1))
    ready = network.prepare(torch.stack([t, t / 2])[..., None], told)
    assert len(asked) == 1 and len(ready) == 2
    torch.testing.assert_close(network(x, t / 2, ready[1]), network(x, t / 2, told))


def test_each_token_matters_but_not_their_order() -> None:
    network = crossing()
    x, t, condition = inputs(2, 7, 3, 5, torch.float64)
    tokens = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    told = Condition(condition.vector, tokens)
    usual = network(x, t, told)
    for index in range(4):
        other = tokens.clone()
        other[0, index] += 1
        changed = network(x, t, Condition(condition.vector, other))
        assert (changed[0] - usual[0]).abs().amax(1).min() > 1e-6, 'every action attends to it'
        torch.testing.assert_close(changed[1], usual[1])
    torch.testing.assert_close(network(x, t, Condition(condition.vector, tokens.flip(1))), usual)
    torch.testing.assert_close(network(x, t, Condition(condition.vector, tokens.repeat(1, 3, 1))), usual)


def test_a_gradient_reaches_every_parameter_that_reads_tokens() -> None:
    network = crossing()
    x, t, condition = inputs(4, 7, 3, 5, torch.float64)
    network(x, t, Condition(condition.vector, torch.randn(4, 2, 6).double())).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('tokens, found', [(None, 'none'), (torch.zeros(2, 4, 5), r'shape \(2, 4, 5\)')])
def test_tokens_that_are_missing_or_of_another_width_are_named(tokens: torch.Tensor | None, found: str) -> None:
    x, t, condition = inputs(2, 7, 3, 5, torch.float64)
    with pytest.raises(InputError, match=f'condition.tokens: {found}; allowed: .*6'):
        crossing()(x, t, Condition(condition.vector, tokens))


@pytest.mark.parametrize('config, message', [
    (NetworkConfig('unte'), "network.kind: 'unte'.*unet"), (NetworkConfig('mlp', 8, 0), 'width 8 and depth 0'),
    (NetworkConfig('unet', 0, 1), 'width 0 and depth 1')])
def test_settings_that_make_no_network_are_named(config: NetworkConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(Sizes(4, 2, 3))
