"""Autoregressive layers: what may depend on what, one pass back, and equality with zuko's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
import zuko

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import MAF, Affine, AutoregressiveLayer, AutoregressiveSplineFlow, RationalQuadratic
from flow_vla_core.flows.conditioners import MaskedConditioner

CONTEXT = 3
ORDERS = {'ascending': (0, 1, 2, 3, 4), 'descending': (4, 3, 2, 1, 0), 'mixed': (2, 0, 4, 1, 3)}
UNIVARIATES = {'affine': Affine(), 'spline': RationalQuadratic(5, 3.0)}


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight off zero."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=index).to(parameter))
    return module


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('hidden', [(), (3,), (32, 48)], ids=str)
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_parameters_depend_on_all_that_comes_before_and_on_nothing_else(order: str, hidden: tuple[int, ...],
                                                                        context_dim: int) -> None:
    places = torch.tensor(ORDERS[order])
    network = shaken(MaskedConditioner(ORDERS[order], context_dim, 2, hidden).double())
    context = (draw(99, context_dim, seed=1),) if context_dim else ()
    slopes = torch.autograd.functional.jacobian(lambda *inputs: network(*inputs).sum(0), (draw(99, 5), *context))
    depends = slopes[0].abs().amax((1, 2)) > 0
    allowed = places[:, None] > places
    assert not (depends & ~allowed).any()
    if not hidden or min(hidden) > 5:  # narrower layers have no unit for each degree
        assert torch.equal(depends, allowed)
    if context and (not hidden or min(hidden) > 5):
        assert (slopes[1].abs().amax((1, 2)) > 0).all()


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('hidden', [(), (3,), (16, 7)], ids=str)
@pytest.mark.parametrize('name', UNIVARIATES)
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_going_back_solves_the_equations_of_the_whole_network(order: str, hidden: tuple[int, ...], name: str,
                                                              context_dim: int) -> None:
    univariate = UNIVARIATES[name]
    layer = shaken(AutoregressiveLayer(ORDERS[order], context_dim, univariate, hidden).double())
    z, context = draw(2, 7, 5), draw(2, 7, context_dim, seed=1) if context_dim else None
    wanted = torch.zeros_like(z)
    for _ in range(5):  # the plain way: the whole network once for each number
        wanted, log_slope = univariate.inverse(z, layer.network(wanted, context))
    x, log_det = layer.inverse(z, context)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-11)
    torch.testing.assert_close(log_det, log_slope.sum(-1), rtol=0, atol=1e-10)


def test_going_back_computes_every_hidden_unit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, products = MaskedConditioner(range(8), CONTEXT, 2, (16, 16)), []
    multiply = torch.nn.functional.linear

    def count(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        products.append(len(weight))
        return multiply(x, weight, bias)

    monkeypatch.setattr('flow_vla_core.flows.conditioners.functional.linear', count)
    network.fill(lambda index, parameters: parameters[..., 0], torch.zeros(5, CONTEXT))
    assert sum(products) == 16 + 16 + 8 * 2


@pytest.mark.parametrize('name', UNIVARIATES)
def test_gradients_of_the_way_back_are_those_of_finite_differences(name: str) -> None:
    layer = shaken(AutoregressiveLayer((1, 0, 2), 2, UNIVARIATES[name], (6,)).double())
    assert torch.autograd.gradcheck(layer.inverse, (draw(3, 3).requires_grad_(), draw(3, 2, seed=1).requires_grad_()))


@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('name', ['affine', 'spline'])
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_a_flow_equals_that_of_zuko_with_the_same_weights(name: str, context_dim: int, dtype: torch.dtype,
                                                          within: float) -> None:
    dim, layers, hidden = 5, 3, (20, 40)  # multiples of the numbers of degrees, 4 and 5
    torch.manual_seed(0)
    settings = {'transforms': layers, 'hidden_features': hidden}
    if name == 'affine':
        ours = MAF(dim, context_dim, layers, hidden, clamp=-math.log(1e-3)).to(dtype)
        theirs = zuko.flows.MAF(dim, context_dim, **settings).to(dtype)
    else:
        ours = AutoregressiveSplineFlow(dim, context_dim, layers, hidden).to(dtype)
        theirs = zuko.flows.NSF(dim, context_dim, slope=1e-2, **settings).to(dtype)
    for layer, other in zip(ours.transform.transforms, theirs.transform.transforms):
        copy_masked(other.hyper, layer.network, 1 if context_dim == 0 else 0)
    x, context = draw(17, dim, dtype=dtype), draw(17, context_dim, dtype=dtype, seed=1) if context_dim else None
    torch.testing.assert_close(ours(context).log_prob(x), theirs(context).log_prob(x), rtol=within, atol=10 * within)
    torch.testing.assert_close(ours.transform.generate(x, context), theirs(context).transform.inv(x),
                               rtol=10 * within, atol=10 * within)


def copy_masked(theirs: torch.nn.Module, ours: MaskedConditioner, first: int) -> None:
    """Copy zuko's weights; it deals the degrees out in turns, ours are sorted."""
    dim, columns = ours.shape[0], None
    layers = [layer for layer in theirs if hasattr(layer, 'weight')]
    for layer, other in zip(ours.layers, layers):
        weight, bias = other.weight.data, other.bias.data
        if columns is not None:
            weight = weight[:, columns]
        if layer is not ours.layers[-1]:
            columns = (first + torch.arange(len(weight)) % (dim - first)).argsort(stable=True)
            weight, bias = weight[columns], bias[columns]
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(bias)


@pytest.mark.parametrize('flow', [MAF, AutoregressiveSplineFlow])
@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_weights_times_three_leave_its_layers_invertible(flow: type[MAF] | type[AutoregressiveSplineFlow],
                                                         dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(0)
    made = flow(5, CONTEXT).to(dtype)
    with torch.no_grad():
        for layer in made.transform.transforms:
            layer.network.layers[-1].reset_parameters()
        for parameter in made.parameters():
            parameter.mul_(3)
    z, context = draw(100, 5, dtype=dtype), draw(100, CONTEXT, dtype=dtype, seed=1)
    for layer in made.transform.transforms:
        x, log_det = layer.inverse(z, context)
        back, log_back = layer(x, context)
        torch.testing.assert_close(back, z, rtol=within, atol=within)
        torch.testing.assert_close(log_back, -log_det, rtol=within, atol=10 * within)


@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_one_dimension_works(context_dim: int) -> None:
    flow = shaken(AutoregressiveSplineFlow(1, context_dim, 2, (8,)).double())
    context = draw(context_dim, seed=1) if context_dim else None
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    density = flow(context).log_prob(grid).exp()
    assert (density.sum() * 24 / 4000).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: MAF(3, layers=0), '0 autoregressive layers'), (lambda: MAF(0), 'of 0 dimensions'),
    (lambda: MAF(3, hidden=(4, 0)), r'widths \[4, 0, 6\]'),
    (lambda: AutoregressiveLayer((0, 2), 0, Affine()), r'places: \[0, 2\]'),
])
def test_bad_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
