"""Properties of every registered density flow, whatever it does inside."""

from __future__ import annotations

from collections.abc import Callable
import copy
from functools import partial

import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.flows import FLOWS, NormalizingFlow

DIM, CONTEXT = 5, 3
SOLVED = {'continuous': 1e-3}  # found by an adaptive solver, which has tolerances

flows = pytest.mark.parametrize('name', FLOWS)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Gaussian numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def build(name: str, dim: int = DIM, context_dim: int = CONTEXT, shake: float = 0.1) -> NormalizingFlow:
    """Make a flow in double precision, initialised by data, with weights that are shaken so that nothing is zero."""
    torch.manual_seed(0)
    flow = FLOWS[name](dim, context_dim).double()
    with torch.no_grad():
        flow.train().nll(draw(64, dim), draw(64, context_dim, seed=3) if context_dim else None, seeded(4))
        random = seeded(1)
        for parameter in flow.parameters():
            parameter.add_(shake * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype))
    return flow.eval()


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Differentiate (N, D) -> (N, D), whose rows depend on their own row only: (N, D, D)."""
    x = x.detach().requires_grad_()
    value = function(x)
    rows = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in value.unbind(-1)]
    return torch.stack(rows, -2)


@flows
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_each_log_determinant_is_that_of_the_jacobian_of_its_own_direction(name: str, context_dim: int) -> None:
    flow = build(name, context_dim=context_dim)
    points, context = draw(2, DIM), draw(2, context_dim, seed=3) if context_dim else None
    for direction in (partial(flow.transform, context=context), partial(flow.transform.inverse, context=context)):
        found = direction(points)[1]
        wanted = torch.linalg.slogdet(jacobian(lambda x, run=direction: run(x)[0], points)).logabsdet
        assert found.shape == (2,) and found.abs().max() > 1e-3
        torch.testing.assert_close(found, wanted, rtol=0, atol=SOLVED.get(name, 1e-8))


TYPES = pytest.mark.parametrize(('dtype', 'within'), [(torch.float32, 1e-3), (torch.float64, 1e-8)],
                                ids=['single', 'double'])


@flows
@TYPES
def test_both_ways_bring_back_what_was_there(name: str, dtype: torch.dtype, within: float) -> None:
    flow, within = build(name).to(dtype), max(within, SOLVED.get(name, 0))
    points, context = draw(16, DIM, dtype=dtype), draw(16, CONTEXT, seed=3, dtype=dtype)
    with torch.no_grad():
        for there, back in ((flow.transform, flow.transform.inverse), (flow.transform.inverse, flow.transform)):
            middle, log_det = there(points, context)
            end, found = back(middle, context)
            torch.testing.assert_close(end, points, rtol=0, atol=within * max(1, middle.abs().max().item()))
            torch.testing.assert_close(found, -log_det, rtol=0, atol=10 * within * max(1, middle.abs().max().item()))
        torch.testing.assert_close(flow.transform.generate(points, context), middle, rtol=0, atol=10 * within)


@pytest.mark.parametrize('name', [name for name in FLOWS if name not in SOLVED])
@TYPES
def test_layers_with_large_weights_are_inverted_as_well_as_their_slopes_allow(name: str, dtype: torch.dtype,
                                                                             within: float) -> None:
    flow = build(name).to(dtype)
    points, context = draw(16, DIM, dtype=dtype), draw(16, CONTEXT, seed=3, dtype=dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(3)
    for layer in flow.transform.transforms:
        for there, back in ((layer, layer.inverse), (layer.inverse, layer)):
            middle = there(points, context)[0].detach()
            slopes = jacobian(lambda x, run=back: run(x, context)[0], middle).flatten(1).norm(dim=1)
            error = (back(middle, context)[0] - points).norm(dim=1) / middle.norm(dim=1).clamp_min(1)
            assert torch.isfinite(middle).all()
            assert (error <= 0.1 * within * slopes.clamp_min(1)).all()


@flows
@pytest.mark.parametrize('context_dim', [0, CONTEXT])
def test_the_density_integrates_to_one(name: str, context_dim: int) -> None:
    flow = build(name, dim=2, context_dim=context_dim, shake=0.05)
    points = torch.linspace(-10, 10, 61 if name in SOLVED else 181, dtype=torch.float64)
    grid = torch.cartesian_prod(points, points)
    with torch.no_grad():
        density = flow(draw(context_dim, seed=3) if context_dim else None).log_prob(grid).exp()
    assert density.shape == (len(grid),)
    assert density.sum() * (points[1] - points[0]) ** 2 == pytest.approx(1, abs=5e-3)


@flows
def test_shapes_of_points_contexts_and_samples_fit_together(name: str) -> None:
    flow = build(name)
    for batch in ((), (7,), (2, 3)):
        points, context = draw(*batch, DIM), draw(*batch, CONTEXT, seed=3)
        assert flow(context).log_prob(points).shape == batch
        assert flow(context[..., :]).log_prob(draw(DIM)).shape == batch
        assert flow(context).sample((2,)).shape == (2, *batch, DIM)
        x, log_prob = flow(context).sample_and_log_prob((2,), seeded(5))
        assert x.shape == (2, *batch, DIM) and log_prob.shape == (2, *batch)
    assert flow(draw(CONTEXT)).log_prob(draw(2, 3, DIM)).shape == (2, 3)
    assert build(name, context_dim=0)().sample((2, 3)).shape == (2, 3, DIM)


@flows
def test_what_is_drawn_has_the_density_that_comes_with_it(name: str) -> None:
    flow = build(name)
    distribution = flow(draw(4, CONTEXT, seed=3))
    x, log_prob = distribution.sample_and_log_prob((3,), seeded(5))
    within = SOLVED.get(name, 1e-8)
    torch.testing.assert_close(distribution.log_prob(x), log_prob, rtol=0, atol=within)
    torch.testing.assert_close(distribution.sample((3,), seeded(5)), x, rtol=0, atol=within)
    alone = flow(draw(4, CONTEXT, seed=3)[1]).log_prob(x[2, 1])
    torch.testing.assert_close(alone, log_prob[2, 1], rtol=0, atol=within)


@flows
def test_gradients_reach_weights_points_and_context_in_both_directions(name: str) -> None:
    flow = build(name)
    for run in (lambda x, c: flow(c).log_prob(x), lambda x, c: flow(c).rsample((), seeded(5)) * x,
                lambda x, c: flow.train().nll(x, c, seeded(5))):
        flow.zero_grad()
        x, context = draw(16, DIM).requires_grad_(), draw(16, CONTEXT, seed=3).requires_grad_()
        run(x, context).square().sum().backward()
        missed = [key for key, p in flow.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert not missed
        assert (x.grad.abs().sum(-1) > 0).all() and (context.grad.abs().sum(-1) > 0).all()


@flows
def test_a_weight_moves_log_density_and_sample_as_its_gradient_says(name: str) -> None:
    flow, step = build(name), 1e-4 if name in SOLVED else 1e-6
    x, context = draw(8, DIM), draw(8, CONTEXT, seed=3)
    weights = list(flow.parameters())
    directions = [draw(*weight.shape, seed=7) / weight.numel() ** 0.5 for weight in weights]

    def move(by: float) -> None:
        with torch.no_grad():
            for weight, direction in zip(weights, directions):
                weight.add_(by * direction)

    for run in (lambda: flow(context).log_prob(x).sum(), lambda: flow(context).rsample((), seeded(5)).sin().sum()):
        slopes = torch.autograd.grad(run(), weights, allow_unused=True, materialize_grads=True)
        wanted = sum((slope * direction).sum() for slope, direction in zip(slopes, directions))
        values = []
        for by in (step, -2 * step):
            move(by)
            values.append(run().detach())
        move(step)
        torch.testing.assert_close((values[0] - values[1]) / (2 * step), wanted,
                                   rtol=1e-2 if name in SOLVED else 1e-4, atol=SOLVED.get(name, 1e-6))


@flows
def test_randomness_comes_from_the_generator_and_inputs_stay_as_they_are(name: str) -> None:
    flow = build(name).train()
    x, context = draw(4, DIM), draw(4, CONTEXT, seed=3)
    kept, state = (x.clone(), context.clone()), torch.get_rng_state()
    for run in (lambda: flow(context).sample((2,), seeded(6)), lambda: flow.nll(x, context, seeded(6))):
        torch.testing.assert_close(run(), run(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept[0]) and torch.equal(context, kept[1])


@flows
def test_the_context_matters_each_row_for_its_own_point(name: str) -> None:
    flow, x, context = build(name), draw(3, DIM), draw(3, CONTEXT, seed=3)
    before = flow(context).log_prob(x)
    after = flow(context + torch.tensor([[0.0], [1.0], [0.0]])).log_prob(x)
    assert (before[1] - after[1]).abs() > 1e-3
    torch.testing.assert_close(before[[0, 2]], after[[0, 2]], rtol=0, atol=SOLVED.get(name, 1e-10))


@flows
def test_saved_weights_and_a_copy_make_the_same_samples(name: str, tmp_path: object) -> None:
    flow, context = build(name), draw(4, CONTEXT, seed=3)
    save_file(flow.state_dict(), tmp_path / 'weights.safetensors')
    other = FLOWS[name](DIM, CONTEXT).double().eval()
    other.load_state_dict(load_file(tmp_path / 'weights.safetensors'))
    wanted = flow(context).sample((2,), seeded(6))
    torch.testing.assert_close(other(context).sample((2,), seeded(6)), wanted, rtol=0, atol=0)
    other.train().nll(9 + draw(64, DIM), draw(64, CONTEXT), seeded(6))  # what is loaded is not initialised again
    torch.testing.assert_close(other.eval()(context).sample((2,), seeded(6)), wanted, rtol=0, atol=0)
    twin = copy.deepcopy(flow)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(1)
    torch.testing.assert_close(twin(context).sample((2,), seeded(6)), wanted, rtol=0, atol=0)


@flows
def test_training_lowers_the_negative_log_likelihood(name: str) -> None:
    torch.manual_seed(0)
    flow = FLOWS[name](2, 1).train()
    context = draw(128, 1, seed=3, dtype=torch.float32)
    x = 0.5 * draw(128, 2, dtype=torch.float32) + context * torch.tensor([1.0, -1.0])
    optimiser, losses = torch.optim.Adam(flow.parameters(), 2e-2), []
    for step in range(12):
        loss = flow.nll(x, context, seeded(step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] - 0.1


@flows
def test_it_runs_in_single_precision_under_no_grad(name: str) -> None:
    flow = build(name).float()
    x, context = draw(4, DIM, dtype=torch.float32), draw(4, CONTEXT, seed=3, dtype=torch.float32)
    with torch.no_grad():
        assert flow(context).log_prob(x).dtype == flow(context).sample().dtype == torch.float32
        torch.testing.assert_close(flow(context).log_prob(x).double(),
                                   flow.double()(context.double()).log_prob(x.double()), rtol=0, atol=1e-3)


MISTAKES: dict[str, tuple[str, Callable]] = {
    'width': (r'x: shape \(4, 4\)', lambda flow, x, c: flow(c).log_prob(x[:, 1:])),
    'number': ('x: shape', lambda flow, x, c: flow(c).log_prob(x[0, 0])),
    'nan': ('x: holds NaN', lambda flow, x, c: flow(c).log_prob(x * float('nan'))),
    'infinite context': ('context: holds', lambda flow, x, c: flow(c / 0)),
    'no context': ('context: none', lambda flow, x, c: flow()),
    'width of context': (r'context: shape \(4, 2\)', lambda flow, x, c: flow(c[:, 1:])),
    'batches': ('do not fit', lambda flow, x, c: flow(c).log_prob(x[:3])),
    'nll': ('x: shape', lambda flow, x, c: flow.nll(x[:, 1:], c)),
    'nll without context': ('context: none', lambda flow, x, c: flow.nll(x)),
}


@flows
@pytest.mark.parametrize('mistake', MISTAKES)
def test_bad_input_is_named(name: str, mistake: str) -> None:
    message, run = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        run(build(name), draw(4, DIM), draw(4, CONTEXT))


@flows
def test_bad_sizes_are_named(name: str) -> None:
    with pytest.raises(InputError, match='context: given'):
        build(name, context_dim=0)(draw(4, 2))
    with pytest.raises(ConfigError, match='-1'):
        FLOWS[name](DIM, -1)
    with pytest.raises(ConfigError, match='0'):
        FLOWS[name](0, CONTEXT)
