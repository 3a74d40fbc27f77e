"""Runners: recorded, compiled, half precision and CUDA graphs give what the policy gives, or say why not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
import inspect
import logging
from types import SimpleNamespace

from core_samples import make_policy, small_contract
import pytest
from test_engine import LEFT, observation, policy_of
import torch
from torch import Tensor, nn

from flow_vla_core.engine import Engine
from flow_vla_core.engine.arranged import WindowConv1d, WindowConvTranspose1d, arranged
from flow_vla_core.engine.graph import Graph, Mailbox
from flow_vla_core.engine.half import HalfNetwork, deviation, halved
from flow_vla_core.engine.modes import MODES, Free, Guided, Prefixed
from flow_vla_core.engine.request import Request
from flow_vla_core.engine.runners import Compiled, Eager, Willing, is_drawing
from flow_vla_core.engine.traced import Traced
from flow_vla_core.errors import ConfigError
from flow_vla_core.networks import ActionTransformer, ResidualMLP, UNet1d
from flow_vla_core.policy import FlowVLA
from flow_vla_core.types import Condition, Continuation

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')


def request_of(policy: FlowVLA, seed: int = 0, count: int = 1, delay: int = 0) -> Request:
    """Return random inputs of the policy's shapes."""
    random = torch.Generator().manual_seed(seed)
    batch, _ = policy.fake_batch(1, random)
    shape = policy.config.horizon, policy.contract.action_dim
    firm = (torch.arange(shape[0]) < delay).float()
    with torch.no_grad():
        language = policy.language(batch.words)
    return Request(batch.images, batch.state, language, torch.randn(count, *shape, generator=random),
                   torch.randn(1, *shape, generator=random), firm)


def eager(policy: FlowVLA, mode: object) -> Eager:
    """Return what runs operation by operation."""
    return Eager(policy, mode, torch.Generator())


# Layers laid out for a CPU


@pytest.mark.parametrize('settings', [{'kernel_size': 5, 'padding': 2}, {'kernel_size': 3, 'stride': 2, 'padding': 1},
                                      {'kernel_size': 1}, {'kernel_size': 4, 'stride': 3, 'bias': False}])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('length', [4, 7, 12])
def test_windows_are_convolutions(settings: dict, batch: int, length: int) -> None:
    layer, x = nn.Conv1d(6, 5, **settings).double(), torch.randn(batch, 6, length).double()
    for each in (x, x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], 1)[:, 3:9]):
        torch.testing.assert_close(WindowConv1d(layer)(each), layer(each))


@pytest.mark.parametrize('settings', [{'kernel_size': 4, 'stride': 2, 'padding': 1}, {'kernel_size': 6, 'stride': 3},
                                      {'kernel_size': 2, 'stride': 1, 'bias': False}])
@pytest.mark.parametrize('batch', [1, 3])
def test_windows_are_transposed_convolutions(settings: dict, batch: int) -> None:
    layer, x = nn.ConvTranspose1d(6, 5, **settings).double(), torch.randn(batch, 6, 7).double()
    torch.testing.assert_close(WindowConvTranspose1d(layer)(x), layer(x))


@pytest.mark.parametrize('layer', [nn.Conv1d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3),
                                   nn.Conv1d(4, 4, 3, padding=1, padding_mode='circular'),
                                   nn.Conv1d(4, 4, 3, padding='same'), nn.ConvTranspose1d(4, 4, 3, 2),
                                   nn.ConvTranspose1d(4, 4, 4, 2, output_padding=1)])
def test_other_layers_stay_as_they_are(layer: nn.Module) -> None:
    assert not WindowConv1d.fits(layer) and not WindowConvTranspose1d.fits(layer)


def test_an_arranged_policy_computes_the_same() -> None:
    policy = policy_of()
    other, request = arranged(policy), request_of(policy)
    assert any(isinstance(module, WindowConv1d) for module in other.modules())
    assert not any(isinstance(module, WindowConv1d) for module in policy.modules())
    with torch.no_grad():
        torch.testing.assert_close(eager(other, Free(0)).run(request, 3), eager(policy, Free(0)).run(request, 3),
                                   atol=1e-5, rtol=1e-5)


# Recorded


@pytest.mark.parametrize('network', ['unet', 'transformer', 'mlp'])
@pytest.mark.parametrize('mode', ['none', 'prefix'])
def test_what_is_recorded_gives_what_the_policy_gives(network: str, mode: str) -> None:
    policy = policy_of(network=network, prefix_steps=2)
    runner = Traced(policy, MODES[mode](5.0), torch.Generator())
    with torch.no_grad():
        for index, delay in enumerate((2, 1, 3) if mode == 'prefix' else (0, 0)):
            request = request_of(policy, index, 2, delay)
            torch.testing.assert_close(runner.run(request, 2), eager(policy, MODES[mode](5.0)).run(request, 2),
                                       atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(('family', 'mode', 'settings', 'reason'), [
    ('flow_matching', Guided, {}, 'gradients'), ('flow_matching', Free, {'solver': 'bosh3'}, 'depends'),
    ('meanflow', Prefixed, {}, 'depends'), ('diffusion', Free, {'sampler': 'ddpm'}, 'draws'),
    ('hierarchical', Free, {}, 'depends')])
def test_what_can_not_be_recorded_says_why(family: str, mode: type, settings: dict, reason: str) -> None:
    policy = policy_of(family, 'mlp', **settings)
    with pytest.raises(ConfigError, match=f'traced: .*{reason}'), torch.no_grad():
        Traced(policy, mode(5.0), torch.Generator()).prepare(request_of(policy, delay=2), 2)


def test_what_was_recorded_wrongly_is_not_used() -> None:
    policy = policy_of(network='mlp')
    fixed = torch.ones(1)

    def freeze_a_number(_: nn.Module, arguments: tuple, made: Tensor) -> Tensor:
        return made + (torch.tensor(float(arguments[0].sum())) if torch.jit.is_tracing() else fixed)

    policy.generator.network.register_forward_hook(freeze_a_number)
    with pytest.raises(ConfigError, match='traced: actions differ'), torch.no_grad():
        Traced(policy, Free(0), torch.Generator()).prepare(request_of(policy), 2)


def test_who_is_willing_falls_back_once_and_tells_why(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_of('diffusion', 'mlp', sampler='ddpm', steps=2)
    first, second = Traced(policy, Free(0), torch.Generator()), eager(policy, Free(0))
    runner, request = Willing(first, second), request_of(policy)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert runner.run(request, 2).shape == (1, 4, 4)
        runner.prepare(request, 2)
    assert len(caplog.records) == 1 and 'draws' in caplog.text
    assert runner.describe().startswith('eager on cpu (traced: ') and 'draws' in runner.describe()


def test_the_engine_says_how_it_runs() -> None:
    engine = Engine(policy_of(network='mlp', steps=1), device='cpu')
    engine.warm_up(1)
    assert engine.runner == 'traced on cpu'
    assert Engine(policy_of(), device='cpu', realtime='guided').runner == 'eager on cpu'
    engine = Engine(policy_of('diffusion', 'mlp', sampler='ddpm', steps=2), device='cpu')
    engine.warm_up(1)
    assert 'draws' in engine.runner


def test_who_draws_is_found_out() -> None:
    for family, settings, draws in (('diffusion', {'sampler': 'ddpm'}, True), ('diffusion', {}, False),
                                    ('flow_matching', {}, False), ('consistency', {}, True)):
        policy = policy_of(family, 'mlp', **settings)
        with torch.no_grad():
            assert is_drawing(policy, Free(0), request_of(policy), 3) == draws, family


# Compiled


def test_what_is_compiled_gives_what_the_policy_gives() -> None:
    policy = policy_of(network='mlp')
    runner = Compiled(policy, Free(0), torch.Generator(), backend='eager')
    with torch.no_grad():
        for seed in range(2):
            request = request_of(policy, seed)
            torch.testing.assert_close(runner.run(request, 2), eager(policy, Free(0)).run(request, 2))
    assert runner.describe() == 'compiled on cpu'


def test_what_can_not_be_compiled_says_why() -> None:
    policy = policy_of('diffusion', 'mlp', sampler='ddpm', steps=2)
    with pytest.raises(ConfigError, match='compiled: DiffusionPolicy draws'), torch.no_grad():
        Compiled(policy, Free(0), torch.Generator()).prepare(request_of(policy), 2)
    policy = policy_of(network='mlp')
    with pytest.raises(ConfigError, match='compiled: .*nonsense'), torch.no_grad():
        Compiled(policy, Free(0), torch.Generator(), backend='nonsense').prepare(request_of(policy), 2)


# Half precision


@pytest.mark.parametrize('build', [lambda: UNet1d(7, 2, 3, (8, 16)), lambda: ResidualMLP(7, 2, 3, 16, 2),
                                   lambda: ActionTransformer(7, 2, 3, 16, 2, 2)])
def test_half_precision_is_near_and_time_stays_exact(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build()
    half, x, condition = HalfNetwork(network), torch.randn(3, 7, 2), Condition(torch.randn(3, 3))
    with torch.no_grad():
        for t in (torch.rand(3), torch.rand(3, 7)):
            torch.testing.assert_close(half(x, t, condition), network(x, t, condition), atol=0.05, rtol=0.05)
        rounded, exact = (each.prepare(torch.full((1, 3, 1), 0.7012), condition)[0].parts[0][0]
                          for each in (half, network))
    torch.testing.assert_close(rounded.float(), exact, atol=0, rtol=2 ** -8)


def test_half_precision_is_left_alone_where_it_changes_too_much(caplog: pytest.LogCaptureFixture) -> None:
    policy = policy_of(network='mlp')
    assert deviation(policy, policy) == 0 and deviation(policy, halved(policy)) > 0
    plain = Engine(policy, half=False, runner='eager', device='cpu').act(observation()).actions
    with torch.no_grad():
        policy.generator.network.enter.weight.mul_(1e4)
    with caplog.at_level(logging.WARNING):
        made = Engine(policy, half=True, runner='eager', device='cpu').act(observation()).actions
    assert 'full precision: in bfloat16' in caplog.text and not (made == plain).all()
    assert (made == Engine(policy, half=False, runner='eager', device='cpu').act(observation()).actions).all()
    with caplog.at_level(logging.WARNING):
        Engine(policy_of('vae'), half=True, runner='eager', device='cpu')
    assert 'ActionVAE has no velocity network' in caplog.text


# CUDA graphs


def test_a_mailbox_keeps_its_addresses() -> None:
    policy = policy_of()
    box = Mailbox(request_of(policy), (1, 4, 4), torch.device('cpu'))
    addresses = [part.data_ptr() for part in (*box.here.tensors(), *box.there.tensors())]
    other = request_of(policy, 3, delay=2)
    box.post(other)
    assert [part.data_ptr() for part in (*box.here.tensors(), *box.there.tensors())] == addresses
    for sent, arrived in zip(other.tensors(), box.there.tensors()):
        assert torch.equal(sent, arrived) and sent.data_ptr() != arrived.data_ptr()
    made = torch.randn(1, 4, 4)
    first = box.collect(made)
    assert torch.equal(first, made) and not torch.equal(box.collect(2 * made), first)


def test_a_mailbox_takes_one_shape() -> None:
    policy = policy_of()
    box = Mailbox(request_of(policy), (1, 4, 4), torch.device('cpu'))
    with pytest.raises(ConfigError, match=r'shape \(2, 4, 4\); allowed: \(1, 4, 4\)'):
        box.post(request_of(policy, count=2))


def test_what_a_graph_records_reads_the_mailbox_and_nothing_else() -> None:
    policy = policy_of(prefix_steps=2)
    for mode in (Free(0), Prefixed(0), Guided(5.0)):
        box = Mailbox(request_of(policy, delay=2), (1, 4, 4), torch.device('cpu'))
        other = request_of(policy, 3, delay=1)
        with torch.no_grad():
            box.post(other)
            torch.testing.assert_close(eager(policy, mode).run(box.there, 3), eager(policy, mode).run(other, 3))


def test_a_capture_bears_with_what_other_threads_do_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    given, allowed = {}, inspect.signature(torch.cuda.graph)
    stream = SimpleNamespace(wait_stream=lambda _: None)
    for name, stand_in in {'graph': lambda _, **options: given.update(options) or nullcontext(),
                           'CUDAGraph': lambda: None, 'Stream': lambda _: stream, 'current_stream': lambda _: stream,
                           'stream': lambda _: nullcontext()}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    policy = policy_of()
    graph = Graph.__new__(Graph)
    graph.policy, graph.device = policy, torch.device('cpu')
    graph._mail = Mailbox(request_of(policy), (1, 4, 4), graph.device)
    with torch.no_grad():
        graph._capture(Free(0), 2)
    assert allowed.bind(None, **given).arguments['capture_error_mode'] == 'thread_local'


@NEEDS_GPU
@pytest.mark.parametrize('realtime', MODES)
@pytest.mark.parametrize('network', ['unet', 'transformer'])
def test_a_graph_gives_what_eager_gives(realtime: str, network: str) -> None:
    policy = policy_of(network=network, prefix_steps=2)
    graph = Engine(policy, device='cuda', realtime=realtime, half=False, runner='graph', seed=1)
    plain = Engine(policy_of(network=network, prefix_steps=2), device='cuda', realtime=realtime, half=False,
                   runner='eager', seed=1)
    graph.warm_up()
    for index, left in enumerate((None, Continuation(LEFT, 2, 1), Continuation(LEFT[:2], 1, 2))):
        made, wanted = (engine.act(observation(seed=index), left).actions for engine in (graph, plain))
        torch.testing.assert_close(torch.from_numpy(made), torch.from_numpy(wanted), atol=2e-3, rtol=2e-3)


@NEEDS_GPU
def test_a_gpu_is_used_as_a_graph_by_itself() -> None:
    engine = Engine(make_policy(small_contract()))
    engine.warm_up()
    assert engine.runner.startswith('CUDA graph')
