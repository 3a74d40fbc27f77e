"""Coupling layers: which half stays, closed forms, clamps, and equality with zuko's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
import zuko

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import Affine, CouplingLayer, RationalQuadratic, RealNVP, Shuffle, SplineFlow, Univariate

CONTEXT, HIDDEN = 3, (7, 11)
UNIVARIATES = {'affine': Affine(), 'spline': RationalQuadratic(5, 3.0)}
PRECISIONS = pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-5), (torch.float64, 1e-10)])


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight off zero."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=index).to(parameter))
    return module


@pytest.mark.parametrize('name', UNIVARIATES)
@pytest.mark.parametrize('dim', [2, 5, 6])
@pytest.mark.parametrize('keep_first', [True, False])
def test_one_half_is_kept_bit_by_bit_in_both_directions_and_the_other_changes(name: str, dim: int,
                                                                              keep_first: bool) -> None:
    layer = shaken(CouplingLayer(dim, CONTEXT, UNIVARIATES[name], keep_first, HIDDEN))
    kept, changed = slice(0, dim // 2), slice(dim // 2, dim)
    if not keep_first:
        kept, changed = changed, kept
    x, context = draw(13, dim, dtype=torch.float32).tanh(), draw(13, CONTEXT, dtype=torch.float32, seed=1)
    for run in (layer, layer.inverse):
        y, _ = run(x, context)
        assert torch.equal(y[:, kept], x[:, kept]) and (y[:, changed] != x[:, changed]).all()


def test_with_parameters_that_do_not_depend_on_anything_it_is_an_affine_map() -> None:
    layer, shift, scale = CouplingLayer(5, 0, Affine(clamp=2.0), True, (4,)).double(), 0.7, -1.3
    with torch.no_grad():
        layer.network.layers[-1].bias.copy_(torch.tensor([shift, scale] * 3))
    log_scale = scale / (1 + abs(scale) / 2)
    x = draw(7, 5)
    z, log_det = layer(x)
    torch.testing.assert_close(z[:, 2:], x[:, 2:] * math.exp(log_scale) + shift)
    torch.testing.assert_close(log_det, torch.full((7,), 3 * log_scale, dtype=torch.float64))


@pytest.mark.parametrize('flow', [RealNVP, SplineFlow])
def test_a_new_flow_is_a_gaussian(flow: type[RealNVP] | type[SplineFlow]) -> None:
    x, context = draw(7, 2, dtype=torch.float32), draw(7, CONTEXT, dtype=torch.float32, seed=1)
    wanted = torch.distributions.Normal(0, 1).log_prob(x).sum(-1)
    torch.testing.assert_close(flow(2, CONTEXT)(context).log_prob(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('clamp', [0.5, 2.0])
def test_the_logarithm_of_the_scale_stays_below_its_limit_the_same_way_in_both_directions(clamp: float) -> None:
    parameters = torch.tensor([[0.3, a] for a in (-1e30, -1.0, 0.0, 1e-3, 5.0, 1e30)]).requires_grad_()
    x = draw(6, dtype=torch.float32)
    z, log_slope = Affine(clamp).forward(x, parameters)
    back, log_back = Affine(clamp).inverse(z, parameters)
    assert (log_slope.abs() <= clamp).all() and torch.equal(log_back, -log_slope)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad((z + log_slope).sum(), parameters)[0]).all()
    torch.testing.assert_close(log_slope[3], torch.tensor(1e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize('flow', [RealNVP, SplineFlow])
@pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_weights_times_three_leave_a_flow_invertible(flow: type[RealNVP] | type[SplineFlow], dtype: torch.dtype,
                                                     within: float) -> None:
    torch.manual_seed(0)
    made = flow(5, CONTEXT).to(dtype)
    with torch.no_grad():
        for transform in made.transform.transforms:
            if isinstance(transform, CouplingLayer):
                transform.network.layers[-1].reset_parameters()
        for layer in (part for part in made.modules() if isinstance(part, torch.nn.Linear)):
            layer.weight.mul_(3)
            layer.bias.mul_(3)
    z, context = draw(100, 5, dtype=dtype), draw(100, CONTEXT, dtype=dtype, seed=1)
    for transform in made.transform.transforms:
        x, log_det = transform.inverse(z, context)
        back, log_back = transform(x, context)
        torch.testing.assert_close(back, z, rtol=within, atol=within)
        torch.testing.assert_close(log_back, -log_det, rtol=within, atol=10 * within)


def univariate_of_zuko(univariate: Univariate) -> dict:
    """Return zuko's arguments for the same bijection."""
    if isinstance(univariate, Affine):
        def affine(shift: Tensor, scale: Tensor) -> object:
            return zuko.transforms.MonotonicAffineTransform(shift, scale, slope=math.exp(-univariate.clamp))
        return {'univariate': affine, 'shapes': [(), ()]}

    def spline(*parameters: Tensor) -> object:
        return zuko.transforms.MonotonicRQSTransform(*parameters, bound=univariate.bound, slope=univariate.smallest)
    bins = univariate.bins
    return {'univariate': spline, 'shapes': [(bins,), (bins,), (bins - 1,)]}


@PRECISIONS
@pytest.mark.parametrize('name', UNIVARIATES)
@pytest.mark.parametrize('keep_first', [True, False])
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_a_layer_equals_that_of_zuko_with_the_same_weights(name: str, keep_first: bool, context_dim: int,
                                                           dtype: torch.dtype, within: float) -> None:
    dim, univariate = 5, UNIVARIATES[name]
    layer = shaken(CouplingLayer(dim, context_dim, univariate, keep_first, HIDDEN)).to(dtype)
    mask = (torch.arange(dim) < dim // 2) == keep_first
    theirs = zuko.flows.coupling.GeneralCouplingTransform(
        dim, context_dim, mask, hidden_features=HIDDEN, **univariate_of_zuko(univariate)).to(dtype)
    copy_weights(layer.network.layers, theirs.hyper)
    x, context = draw(17, dim, dtype=dtype), draw(17, context_dim, dtype=dtype, seed=1) if context_dim else None
    transform = theirs(context)
    z, log_det = layer(x, context)
    wanted, wanted_log_det = transform.call_and_ladj(x)
    torch.testing.assert_close(z, wanted, rtol=within, atol=within)
    torch.testing.assert_close(log_det, wanted_log_det, rtol=within, atol=10 * within)
    torch.testing.assert_close(layer.inverse(x, context)[0], transform.inv(x), rtol=within, atol=within)


def copy_weights(ours: torch.nn.ModuleList, theirs: torch.nn.Module) -> None:
    """Give zuko's network the weights of ours."""
    layers = [layer for layer in theirs if hasattr(layer, 'weight')]
    assert len(layers) == len(ours)
    for layer, other in zip(layers, ours):
        layer.load_state_dict(other.state_dict())


@PRECISIONS
def test_a_flow_equals_that_of_zuko_with_the_same_weights(dtype: torch.dtype, within: float) -> None:
    ours = shaken(RealNVP(2, CONTEXT, 4, HIDDEN, clamp=-math.log(1e-3))).to(dtype)
    theirs = zuko.flows.RealNVP(2, CONTEXT, transforms=4, hidden_features=HIDDEN).to(dtype)
    layers = list(ours.transform.transforms)
    for layer, other in zip(layers, theirs.transform.transforms):
        layer.keep_first = bool(other.mask[0])  # zuko begins with the other half
        copy_weights(layer.network.layers, other.hyper)
    x, context = draw(17, 2, dtype=dtype), draw(17, CONTEXT, dtype=dtype, seed=1)
    torch.testing.assert_close(ours(context).log_prob(x), theirs(context).log_prob(x), rtol=within, atol=10 * within)
    torch.testing.assert_close(ours.transform.generate(x, context), theirs(context).transform.inv(x),
                               rtol=10 * within, atol=10 * within)


@pytest.mark.parametrize('dim', [1, 2, 5, 8])
def test_shuffling_is_undone_exactly_and_mixes_the_halves(dim: int) -> None:
    shuffle, x = Shuffle(dim), draw(3, dim)
    z, log_det = shuffle(x)
    assert torch.equal(shuffle.inverse(z)[0], x) and torch.equal(log_det, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(z.sort(-1).values, x.sort(-1).values)
    if dim > 3:
        assert set(shuffle.order[:dim // 2].tolist()) & set(range(dim // 2, dim))


@pytest.mark.parametrize('dim', [2, 3, 8])
def test_in_a_whole_flow_every_number_depends_on_every_other(dim: int) -> None:
    flow = shaken(RealNVP(dim, 0, 6, (16,)).double())
    slopes = torch.autograd.functional.jacobian(lambda x: flow.transform(x)[0].sum(0), draw(20, dim))
    assert (slopes.abs().amax(1) > 1e-9).all()


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: RealNVP(1), 'of 1 dimension'), (lambda: RealNVP(2, layers=1), '1 coupling layers'),
    (lambda: RealNVP(2, hidden=(0,)), r'widths \[0, 2\]'), (lambda: RealNVP(2, clamp=0), 'clamp: 0'),
    (lambda: SplineFlow(2, bins=1), 'bins: 1'),
])
def test_bad_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
