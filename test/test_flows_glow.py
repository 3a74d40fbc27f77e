"""Glow's parts: normalisation that begins once, and the linear mixture by LU."""

from __future__ import annotations

import copy

import normflows
import pytest
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.flows import ActNorm, CouplingLayer, Glow, LinearLU


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return Gaussian numbers in double precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize('shape', [(2,), (100,), (4, 25)], ids=str)
def test_the_first_batch_in_training_is_normalised(shape: tuple[int, ...]) -> None:
    layer, x = ActNorm(5).double(), 7 + 3 * draw(*shape, 5)
    z, log_det = layer(x)
    flat = z.reshape(-1, 5)
    torch.testing.assert_close(flat.mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(flat.std(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(log_det, -x.reshape(-1, 5).std(0).log().sum().expand(shape))
    assert layer.ready and log_det.requires_grad


def test_it_begins_once_and_never_in_evaluation_from_one_sample_or_on_the_way_back() -> None:
    layer, x = ActNorm(5).double(), 7 + 3 * draw(100, 5)
    for kept in (lambda: layer.eval()(x), lambda: layer.train()(x[:1]), lambda: layer.train()(x[0]),
                 lambda: layer.train().inverse(x)):
        kept()
        assert not layer.ready and not layer.mean.any() and not layer.log_scale.any()
    layer.train()(x)
    state = copy.deepcopy(layer.state_dict())
    layer(100 * x)
    loaded = ActNorm(5).double().train()
    loaded.load_state_dict(state)
    loaded(100 * x)
    for other in (layer, loaded):
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_a_constant_number_keeps_the_scale_one() -> None:
    layer = ActNorm(3)
    layer(torch.tensor([[4.0, 1.0, 1e6]]) + torch.tensor([1.0, 0.0, 0.0]) * torch.randn(50, 1))
    assert layer.log_scale[0] != 0 and torch.equal(layer.log_scale[1:], torch.zeros(2))
    assert torch.equal(layer.mean[1:], torch.tensor([1.0, 1e6]))


@pytest.mark.parametrize('dim', [1, 2, 5, 7])
def test_the_mixture_is_its_matrix_with_the_determinant_of_its_matrix(dim: int) -> None:
    layer, x = mixture(dim), draw(11, dim)
    lower, upper = layer.lower.tril(-1) + torch.eye(dim), layer.upper.triu(1)
    matrix = torch.eye(dim, dtype=torch.float64)[layer.order] @ lower @ (
        upper + torch.diag(layer.sign * layer.log_diagonal.exp()))
    for run, wanted in ((layer, matrix), (layer.inverse, torch.linalg.inv(matrix))):
        y, log_det = run(x)
        torch.testing.assert_close(y, x @ wanted.T)
        torch.testing.assert_close(log_det, torch.linalg.slogdet(wanted).logabsdet.expand(11))


def mixture(dim: int) -> LinearLU:
    """Make a mixture that is no rotation any more; entries that do not count are set to nonsense."""
    torch.manual_seed(0)
    layer = LinearLU(dim).double()
    with torch.no_grad():
        for index, parameter in enumerate(layer.parameters()):
            parameter.add_(0.3 * draw(*parameter.shape, seed=index))
    return layer


def test_it_begins_as_a_rotation() -> None:
    layer, one = LinearLU(6), torch.eye(6)
    z, log_det = layer(one)
    torch.testing.assert_close(z @ z.T, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(6), rtol=0, atol=1e-5)


def test_the_mixture_equals_that_of_normflows_with_the_same_factors() -> None:
    layer, theirs, x = mixture(5), normflows.flows.InvertibleAffine(5, use_lu=True).double(), draw(11, 5)
    with torch.no_grad():  # theirs multiplies from the right, so its matrix P L U is ours; (x W)^T = W^T x^T
        theirs.P.copy_(torch.eye(5, dtype=torch.float64)[layer.order])
        theirs.L.copy_(layer.lower)
        theirs.U.copy_(layer.upper)
        theirs.log_S.copy_(layer.log_diagonal)
        theirs.sign_S.copy_(layer.sign)
    matrix = theirs.forward(torch.eye(5, dtype=torch.float64))[0]
    torch.testing.assert_close(layer.inverse(x)[0], x @ matrix.T, rtol=0, atol=1e-10)
    log_det = theirs.forward(x)[1]
    torch.testing.assert_close(layer.inverse(x)[1], log_det.expand(11), rtol=0, atol=1e-10)


def test_a_step_in_training_begins_every_normalisation_and_the_flow_goes_back() -> None:
    torch.manual_seed(0)
    flow = Glow(5, 3, layers=2).double().train()
    x, context = 4 + 2 * draw(64, 5), draw(64, 3, seed=1)
    flow(context).log_prob(x)
    norms = [layer for layer in flow.transform.transforms if isinstance(layer, ActNorm)]
    assert len(norms) == 2 and all(norm.ready for norm in norms)
    torch.testing.assert_close(flow.transform.generate(flow.transform(x, context)[0], context), x)
    names = {type(layer) for layer in flow.transform.transforms}
    assert names == {ActNorm, LinearLU, CouplingLayer}


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: Glow(1), 'of 1 dimension'), (lambda: Glow(3, layers=0), '0 steps'),
])
def test_bad_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
