"""Continuous flows: closed forms, zuko with the same weights, both ways to a gradient, and limits."""

from __future__ import annotations

from collections.abc import Callable
import math

import pytest
import torch
from torch import Tensor, nn
from zuko.flows import CNF

from flow_vla_core.errors import ConfigError, SolverError
from flow_vla_core.flows import ContinuousNormalizingFlow, ContinuousTransform, OdeSettings, VelocityField

DIM, CONTEXT = 3, 2
TIGHT = OdeSettings(rtol=1e-11, atol=1e-11)
MATRIX = torch.tensor([[0.3, -1.0, 0.2], [0.7, -0.4, 0.1], [0.0, 0.5, 0.6]], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


class Field(nn.Module):
    """Wraps a function of x and t, and counts calls."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.times = function, []

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Call it."""
        self.times.append(t.item())
        return self.function(x, t)


def linear(matrix: Tensor = MATRIX) -> Field:
    """Make the field ``A x``."""
    return Field(lambda x, t: x @ matrix.T)


def shaken(settings: OdeSettings, estimator: str = 'exact') -> ContinuousNormalizingFlow:
    """Make a conditional flow whose field is not zero."""
    torch.manual_seed(0)
    flow = ContinuousNormalizingFlow(DIM, CONTEXT, VelocityField(DIM, CONTEXT, 8, 1), estimator, settings).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * draw(*parameter.shape, seed=1))
    return flow


@pytest.mark.parametrize(('settings', 'within'), [
    (TIGHT, 1e-9), (OdeSettings('dopri8', 1e-10, 1e-10), 1e-8), (OdeSettings('bosh3', 1e-7, 1e-7), 1e-5),
    (OdeSettings('rk4', steps=64), 1e-7), (OdeSettings('midpoint', steps=64), 1e-3),
    (OdeSettings('euler', steps=64), 0.05),
], ids=lambda value: getattr(value, 'method', None))
def test_a_linear_field_has_its_closed_form_in_both_directions(settings: OdeSettings, within: float) -> None:
    transform, points = ContinuousTransform(DIM, field=linear(), settings=settings), draw(5, DIM)
    for direction, sign in ((transform, -1), (transform.inverse, 1)):
        moved, log_det = direction(points)
        torch.testing.assert_close(moved, points @ torch.matrix_exp(sign * MATRIX).T, rtol=0, atol=within)
        torch.testing.assert_close(log_det, torch.full((5,), sign * MATRIX.trace().item(), dtype=torch.float64))
    torch.testing.assert_close(transform.generate(points), transform.inverse(points)[0], rtol=0, atol=within)


@pytest.mark.parametrize('estimator', ['rademacher', 'gaussian'])
def test_the_estimate_is_that_of_one_probe_for_the_whole_way(estimator: str) -> None:
    transform, points = ContinuousTransform(DIM, field=linear(), settings=TIGHT), draw(5, DIM)
    probe = draw(5, DIM, seed=1)
    _, log_det = transform(points, probe=probe)
    torch.testing.assert_close(log_det, -torch.einsum('bi,ij,bj->b', probe, MATRIX, probe), rtol=1e-7, atol=1e-7)
    flow = ContinuousNormalizingFlow(DIM, field=linear(MATRIX.diag().diag()), estimator='rademacher', settings=TIGHT)
    distribution = flow(None)
    torch.testing.assert_close(flow.nll(points, generator=seeded()), -distribution.log_prob(points))  # exact there


@pytest.mark.parametrize('estimator', ['rademacher', 'gaussian'])
def test_the_estimate_of_training_has_no_bias_and_takes_few_evaluations(estimator: str) -> None:
    flow, count = shaken(OdeSettings(), estimator), 4000
    x, context = draw(DIM).expand(count, DIM), draw(CONTEXT, seed=3).expand(count, CONTEXT)
    with torch.no_grad():
        found = flow.nll(x, context, seeded(4))
        assert flow.evaluations < 50
        exact = -flow(context[0]).log_prob(x[0])
    assert found.std() > 1e-3
    assert (found.mean() - exact).abs() < 4 * found.std() / count ** 0.5


@pytest.mark.parametrize(('context_dim', 'dtype', 'within', 'tolerance'),
                         [(0, torch.float32, 1e-5, 1e-6), (CONTEXT, torch.float64, 1e-10, 1e-11)],
                         ids=['single', 'double'])
def test_it_equals_zuko_with_the_same_weights(context_dim: int, dtype: torch.dtype, within: float,
                                              tolerance: float) -> None:
    torch.manual_seed(0)
    reference = CNF(DIM, context_dim, hidden_features=(8,), activation=nn.SiLU, atol=tolerance, rtol=tolerance)
    reference = reference.to(dtype)

    class Reversed(nn.Module):
        """Runs zuko's field, whose time goes from data to noise."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = reference.transform

        def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
            """Turn the time round."""
            return -self.inner.f(1 - t, x, context)

    flow = ContinuousNormalizingFlow(DIM, context_dim, Reversed(), settings=OdeSettings(rtol=tolerance, atol=tolerance))
    x = draw(4, DIM, dtype=dtype)
    context = draw(4, context_dim, seed=3, dtype=dtype) if context_dim else None
    wanted, found = reference(context).log_prob(x), flow(context).log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)
    torch.testing.assert_close(flow.transform.inverse(x, context)[0], reference.transform(context).inv(x), rtol=0,
                               atol=within)
    weights = list(reference.transform.parameters())
    for ours, theirs in zip(torch.autograd.grad(found.sum(), weights), torch.autograd.grad(wanted.sum(), weights)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=100 * within)


@pytest.mark.parametrize('estimator', ['exact', 'rademacher'])
def test_the_adjoint_finds_the_gradients_of_the_solver(estimator: str) -> None:
    gradients = []
    for adjoint in (False, True):
        flow = shaken(OdeSettings(rtol=1e-9, atol=1e-9, adjoint=adjoint), estimator)
        x, context = draw(2, DIM).requires_grad_(), draw(2, CONTEXT, seed=3).requires_grad_()
        loss = flow.nll(x, 2 * context, seeded(4)).sum()  # the context is no leaf
        forward = flow.evaluations
        inputs = [x, context, *flow.parameters()]
        gradients.append(torch.autograd.grad(loss, inputs, materialize_grads=True, allow_unused=True))
        assert (flow.evaluations > forward) == adjoint
    for direct, adjoint in zip(*gradients):
        assert direct.abs().sum() > 0
        torch.testing.assert_close(adjoint, direct, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences() -> None:
    flow = shaken(OdeSettings('rk4', steps=2))
    x, context = draw(2, DIM).requires_grad_(), draw(2, CONTEXT, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: flow(c).log_prob(x), (x, context))
    assert torch.autograd.gradcheck(lambda c: flow(c).rsample((), seeded(5)), (context,))


@pytest.mark.parametrize(('method', 'evaluations'), [('euler', 5), ('midpoint', 10), ('heun3', 15), ('rk4', 20)])
def test_fixed_steps_take_the_evaluations_of_their_method_from_the_first_time_to_the_last(method: str,
                                                                                         evaluations: int) -> None:
    field = linear()
    transform = ContinuousTransform(DIM, field=field, settings=OdeSettings(method, steps=5))
    for run, first in ((transform, 1.0), (transform.inverse, 0.0), (transform.generate, 0.0)):
        field.times.clear()
        run(draw(2, DIM))
        assert transform.evaluations == len(field.times) == evaluations
        assert field.times[0] == first and all(0 <= t <= 1 for t in field.times)
        moves = [abs(t - first) for t in field.times[::evaluations // 5]]
        assert moves == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_adaptive_steps_are_counted_and_bounded() -> None:
    field = linear()
    transform = ContinuousTransform(DIM, field=field)
    for method in ('dopri5', 'dopri8', 'bosh3', 'fehlberg2', 'adaptive_heun'):
        for run in (transform, transform.inverse):
            field.times.clear()
            transform.settings = OdeSettings(method, 1e-3, 1e-3)
            run(draw(2, DIM))
            assert transform.evaluations == len(field.times) > 2
            assert 0 <= min(field.times) < 1e-9 and 1 - 1e-9 < max(field.times) <= 1  # where time has a meaning
    limited = ContinuousTransform(DIM, field=field, settings=OdeSettings(most=transform.evaluations - 1))
    with pytest.raises(SolverError, match='more than'):
        limited(draw(2, DIM))


def test_fields_that_have_no_solution_are_reported() -> None:
    for function in (lambda x, t: x * math.nan, lambda x, t: x / (t - t), lambda x, t: 100 * x ** 2):
        with pytest.raises(SolverError):
            ContinuousTransform(DIM, field=Field(function)).inverse(1 + draw(2, DIM).abs())
    with pytest.raises(SolverError):
        ContinuousTransform(DIM, field=Field(lambda x, t: x * math.inf),
                            settings=OdeSettings('rk4', adjoint=True)).generate(draw(2, DIM))


@pytest.mark.parametrize('adjoint', [False, True])
def test_it_runs_without_gradients_and_in_both_modes(adjoint: bool) -> None:
    flow = shaken(OdeSettings(adjoint=adjoint))
    x, context = draw(2, DIM), draw(2, CONTEXT, seed=3)
    wanted = flow(context).log_prob(x).detach()
    for training in (True, False):
        flow.train(training)
        with torch.no_grad():
            torch.testing.assert_close(flow(context).log_prob(x), wanted)
            assert not flow(context).log_prob(x).requires_grad
        flow.requires_grad_(False)
        torch.testing.assert_close(flow(context).log_prob(x), wanted)
        flow.requires_grad_(True)
    assert flow(context).log_prob(x[:0, None]).shape == (0, 2)
    assert flow(context[:0]).sample().shape == (0, DIM)


def test_samples_are_made_without_the_trace() -> None:
    seen: list[bool] = []
    transform = ContinuousTransform(DIM, field=Field(lambda x, t: seen.append(x.requires_grad) or -x))
    with torch.no_grad():
        transform.inverse(draw(2, DIM))
        assert all(seen)  # the trace is made of gradients
        seen.clear()
        transform.generate(draw(2, DIM))
    assert seen and not any(seen)


def test_a_new_field_is_zero_so_that_the_flow_begins_as_the_identity() -> None:
    x = draw(4, DIM, dtype=torch.float32)
    z, log_det = ContinuousTransform(DIM)(x)
    torch.testing.assert_close(z, x)
    assert (log_det == 0).all()


MISTAKES: dict[str, tuple[str, Callable]] = {
    'method': ("did you mean 'dopri5'", lambda: OdeSettings('dopri55')),
    'tolerance': ('tolerances 0', lambda: OdeSettings(rtol=0)),
    'nan tolerance': ('tolerances', lambda: OdeSettings(atol=math.nan)),
    'steps': ('steps: 0', lambda: OdeSettings('rk4', steps=0)),
    'most': ('most: 0', lambda: OdeSettings(most=0)),
    'estimator': ("did you mean 'rademacher'", lambda: ContinuousNormalizingFlow(2, estimator='rademacker')),
    'width': ('width 0', lambda: VelocityField(2, width=0)),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_bad_settings_are_named(mistake: str) -> None:
    message, run = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=message):
        run()
