"""A network as a field: the same answers, with less work for each chunk."""

from __future__ import annotations

from core_samples import shake
import pytest
import torch
from torch import nn

from flow_vla_core.generators import FAMILIES, Generator
from flow_vla_core.generators.prepared import AT_ONCE, PreparedField
from flow_vla_core.generators.realtime import Guide
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.networks.time import TimeEmbedding
from flow_vla_core.solvers import SOLVERS, solve, visited
from flow_vla_core.types import Condition

SIZES = Sizes(5, 3, 7)
KINDS = ('mlp', 'unet', 'transformer')


def shaken(kind: str = 'mlp') -> nn.Module:
    """Return a network with weights that are nowhere zero."""
    torch.manual_seed(0)
    network = NetworkConfig(kind, 8, 2, 2).build(SIZES)
    shake(network)
    return network.double()


def inputs(batch: int) -> tuple[torch.Tensor, Condition]:
    """Return noise and conditions."""
    random = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 5, 3, generator=random, dtype=torch.float64),
            Condition(torch.randn(batch, 7, generator=random, dtype=torch.float64)))


def rows_of_time(network: nn.Module) -> list[int]:
    """Return a list that will hold how many times each call embeds."""
    rows: list[int] = []
    for module in network.modules():
        if isinstance(module, TimeEmbedding):
            module.register_forward_pre_hook(lambda _, arguments: rows.append(arguments[0].numel()))
    return rows


@pytest.mark.parametrize('batch', [1, 3, AT_ONCE // 2, AT_ONCE + 1])
@pytest.mark.parametrize('solver', SOLVERS)
def test_a_prepared_field_gives_what_the_network_gives(solver: str, batch: int) -> None:
    network, (noise, condition) = shaken(), inputs(batch)
    field = PreparedField(network, condition).prepare(visited(3, solver), noise)
    plain = solve(lambda x, t: network(x, torch.tensor(t).to(x), condition), noise, 3, solver)
    torch.testing.assert_close(solve(field, noise, 3, solver), plain)


@pytest.mark.parametrize('kind', KINDS)
def test_each_action_keeps_its_own_time(kind: str) -> None:
    network, (noise, condition) = shaken(kind), inputs(3)
    known = torch.arange(5) < 2
    field = PreparedField(network, condition, known).prepare((0.0, 0.25), noise)
    times = torch.where(known, 1.0, torch.tensor(0.25).double()).expand(3, -1)
    torch.testing.assert_close(field(noise, 0.25), network(noise, times, condition))


@pytest.mark.parametrize('kind', KINDS)
def test_times_are_embedded_once_for_all_chunks(kind: str) -> None:
    network, (noise, condition) = shaken(kind), inputs(3)
    rows = rows_of_time(network)
    solve(PreparedField(network, condition).prepare(visited(4), noise), noise, 4)
    assert rows == [4], 'one pass, one row for each time, however many chunks there are'


def test_many_chunks_are_prepared_a_few_times_at_once() -> None:
    network, (noise, condition) = shaken(), inputs(AT_ONCE // 2)
    rows = rows_of_time(network)
    solve(PreparedField(network, condition).prepare(visited(5), noise), noise, 5)
    assert rows == [2, 2, 1]


def test_what_is_prepared_inside_a_guide_has_no_graph_of_the_weights() -> None:
    network, (noise, condition) = shaken(), inputs(2)
    with torch.no_grad():
        field = PreparedField(network, condition).prepare((0.0,), noise)
        with torch.enable_grad():
            found = torch.autograd.grad(field(noise, 0.0).sum(), list(network.time.parameters()), allow_unused=True)
    assert found == (None,) * len(found)


def test_gradients_go_through_what_is_prepared() -> None:
    network, (noise, condition) = shaken(), inputs(2)
    solve(PreparedField(network, condition).prepare(visited(2), noise), noise, 2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def generator(family: str) -> Generator:
    """Return an untrained generator of a family, with weights that are nowhere zero."""
    torch.manual_seed(0)
    made = FAMILIES[family].dummy(SIZES).build(SIZES, NetworkConfig('mlp', 8, 2)).double()
    shake(made)
    return made.eval()


@pytest.mark.parametrize('family', ['flow_matching', 'score', 'diffusion', 'hierarchical', 'rectified'])
def test_samples_embed_all_their_times_in_one_pass(family: str) -> None:
    made, (noise, condition) = generator(family), inputs(3)
    rows = rows_of_time(made)
    made.sample(condition, noise=noise, steps=3, generator=torch.Generator().manual_seed(0))
    assert len(rows) == (2 if family == 'hierarchical' else 1), 'one for each network'


def without_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fields ask their network anew at each time."""
    def ask(self: PreparedField, x: torch.Tensor, t: float) -> torch.Tensor:
        times = torch.full((len(x), 1), t, dtype=x.dtype)
        times = times[:, 0] if self._known is None else torch.where(self._known, 1.0, times)
        return self._network(x, times, self._condition)
    monkeypatch.setattr(PreparedField, '__call__', ask)


@pytest.mark.parametrize('family', ['score', 'diffusion', 'hierarchical'])
def test_samples_are_those_without_preparing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, (noise, condition) = generator(family), inputs(3)
    prefix, guide = torch.ones(3, 2, 3).double(), Guide(torch.ones(3, 2, 3).double(), torch.ones(5))

    def samples() -> list[torch.Tensor]:
        asked = [{}, {'prefix': prefix}, *([{'guide': guide}] if made.guidable else [])]
        with torch.no_grad():
            return [made.sample(condition, noise=noise, steps=3, generator=torch.Generator().manual_seed(0), **each)
                    for each in asked]

    prepared = samples()
    without_preparing(monkeypatch)
    for ours, plain in zip(prepared, samples()):
        torch.testing.assert_close(ours, plain)
