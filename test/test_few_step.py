"""Few-step families against flows that are known in closed form.

Two kinds of data serve: one point c, whose velocity ``(c - x) / (1 - t)`` is straight, and a Gaussian N(0, S^2), where
x_t has the variance ``V(t) = (1 - t)^2 + t^2 S^2`` and the flow from t to r is ``x_r = x_t sqrt(V(r) / V(t))``.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import pytest
from scipy import integrate, stats
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, TrainingError
from flow_vla_core.generators import (
    ConsistencyDistillation,
    ConsistencyDistillationConfig,
    ConsistencyTraining,
    ConsistencyTrainingConfig,
    Distilled,
    DistilledConfig,
    FamilyConfig,
    FlowMatching,
    FlowMatchingConfig,
    Generator,
    MeanFlow,
    MeanFlowConfig,
    RectifiedFlow,
    RectifiedFlowConfig,
    RegressionConfig,
    Shortcut,
    ShortcutConfig,
    Student,
)
from flow_vla_core.generators.losses import pseudo_huber, squared
from flow_vla_core.generators.meanflow import with_slope
from flow_vla_core.generators.rectified import u_shaped_time
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(horizon=3, action_dim=2, condition_dim=5, token_dim=7)
S = 0.5
POINT = torch.arange(6, dtype=torch.float64).reshape(3, 2) / 3
NETWORKS = {'mlp': NetworkConfig('mlp', 8, 1), 'unet': NetworkConfig('unet', 8, 2),
            'transformer': NetworkConfig('transformer', 8, 1, 2)}
STUDENTS: tuple[FamilyConfig, ...] = (RectifiedFlowConfig(), DistilledConfig(), ConsistencyDistillationConfig())
ALL = (*STUDENTS, MeanFlowConfig(), ShortcutConfig(), ConsistencyTrainingConfig())

of_each = pytest.mark.parametrize('config', ALL, ids=lambda config: config.family)
of_each_student = pytest.mark.parametrize('config', STUDENTS, ids=lambda config: config.family)


class Exact(nn.Module):
    """Answers with a formula, times a parameter that is 1 where the formula holds."""

    def __init__(self, formula: Callable[..., Tensor], gain: float = 1.0) -> None:
        super().__init__()
        self.formula = formula
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x: Tensor, *times_and_condition: Tensor | Condition) -> Tensor:
        times = [time[:, None, None] for time in times_and_condition[:-1]]
        return self.gain * self.formula(x, *times)


def variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 + t ** 2 * S ** 2


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    return x * (t * S ** 2 - (1 - t)) / variance(t)


def gaussian_average(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
    safe = torch.where(span == 0, 1, span)
    average = x * ((variance(t + safe) / variance(t)).sqrt() - 1) / safe
    return torch.where(span == 0, gaussian_velocity(x, t), average)


def gaussian_end(x: Tensor, t: Tensor) -> Tensor:
    """Is F of a consistency function: (end - x) / (1 - t)."""
    return gaussian_average(x, t, 1 - t)


def to_point(x: Tensor, t: Tensor, *span: Tensor) -> Tensor:
    return (POINT - x) / (1 - t)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(count: int, seed: int = 0) -> tuple[Tensor, Condition]:
    actions = S * torch.randn(count, 3, 2, generator=seeded(seed), dtype=torch.float64)
    return actions, Condition(torch.zeros(count, 5, dtype=torch.float64))


def taught(student: Student, velocity: Callable[..., Tensor]) -> Student:
    student.learn_from(FlowMatching(Exact(velocity), SIZES, solver='rk4'))
    return student


def shaken(config: FamilyConfig, network: str = 'mlp', seed: int = 0) -> Generator:
    """Make a generator without zeros in its weights."""
    torch.manual_seed(seed)
    generator = config.build(SIZES, NETWORKS[network])
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(1)))
    return generator


def gradient_of_gain(generator: Generator, gain: nn.Parameter) -> tuple[float, float]:
    """Return mean and standard error of the loss's derivative over many batches."""
    found = []
    for seed in range(40):
        gain.grad = None
        generator.loss(*gaussian(512, seed), generator=seeded(100 + seed)).backward()
        found.append(gain.grad)
    values = torch.stack(found)
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


# What is learned


GAUSSIAN: dict[str, Callable[[float], tuple[Generator, nn.Parameter]]] = {}


def learns(name: str) -> Callable:
    def keep(make: Callable[[nn.Module], Generator]) -> Callable:
        GAUSSIAN[name] = make
        return make
    return keep


@learns('meanflow')
def _(gain: float) -> tuple[Generator, nn.Parameter]:
    exact = Exact(gaussian_average, gain)
    return MeanFlow(exact, SIZES), exact.gain


@learns('shortcut')
def _(gain: float) -> tuple[Generator, nn.Parameter]:
    exact = Exact(gaussian_average, gain)
    return Shortcut(exact, SIZES, halvings=8, share=0.25), exact.gain


@learns('consistency')
def _(gain: float) -> tuple[Generator, nn.Parameter]:
    exact = Exact(gaussian_end, gain)
    return ConsistencyTraining(exact, SIZES, first=200, loss='squared'), exact.gain


@pytest.mark.parametrize('family', GAUSSIAN)
def test_data_hold_the_exact_answer_and_draw_others_back_to_it(family: str) -> None:
    for gain in (0.8, 1.0, 1.2):
        mean, error = gradient_of_gain(*GAUSSIAN[family](gain))
        if gain == 1:
            assert abs(mean) < 4 * error
        else:
            assert mean * (gain - 1) > 4 * error


def test_shorter_leaps_hold_the_exact_answer() -> None:
    actions, condition = gaussian(64)
    condition = condition[:64]
    point = Shortcut(Exact(to_point), SIZES, share=1.0)
    assert point.loss(POINT.expand(64, 3, 2), condition, generator=seeded()) < 1e-20
    right, wrong = (Shortcut(Exact(gaussian_average, gain), SIZES, share=1.0, halvings=12).loss(
        actions, condition, generator=seeded()) for gain in (1.0, 1.2))
    assert right < 1e-7 < 1e-5 < wrong  # the shortest leaps, Euler's method with 4096 steps, are not quite exact


def test_a_teachers_path_holds_the_exact_end() -> None:
    actions, condition = gaussian(64)
    exact = Exact(gaussian_end)
    student = taught(ConsistencyDistillation(exact, SIZES, solver='rk4'), gaussian_velocity)
    assert student.loss(actions, condition, generator=seeded()) < 1e-10
    exact.gain.data.fill_(1.2)
    assert student.loss(actions, condition, generator=seeded()) > 1e-5


def test_reflow_of_a_straight_teacher_changes_nothing() -> None:
    _, condition = gaussian(16)
    shift = Exact(lambda x, t: POINT.expand_as(x))
    student = taught(RectifiedFlow(shift, SIZES), lambda x, t: POINT.expand_as(x))
    loss = student.loss(torch.zeros(16, 3, 2, dtype=torch.float64), condition, generator=seeded())
    loss.backward()
    assert loss < 1e-12 and shift.gain.grad.abs() < 1e-10
    noise = torch.randn(16, 3, 2, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(student.sample(condition, noise=noise),
                               student.teacher.sample(condition, noise=noise, steps=8))


def test_pairs_are_the_teachers() -> None:
    actions, condition = gaussian(64)
    exact = Exact(lambda x, t: (S - 1) * x)  # the whole flow is x -> S x
    student = taught(Distilled(exact, SIZES, teacher_steps=40), gaussian_velocity)
    assert student.loss(actions, condition, generator=seeded()) < 1e-10
    exact.gain.data.fill_(1.2)
    assert student.loss(actions, condition, generator=seeded()).item() == pytest.approx((0.2 * (S - 1)) ** 2, rel=0.3)
    curved = taught(RectifiedFlow(Exact(lambda x, t: x * (S - 1) / (1 + t * (S - 1))), SIZES, teacher_steps=40),
                    gaussian_velocity)  # the straight lines from x to S x
    assert curved.loss(actions, condition, generator=seeded()) < 1e-8


@pytest.mark.parametrize('steps', [1, 3])
def test_exact_answers_make_exact_chunks(steps: int) -> None:
    _, condition = gaussian(20_000)
    noise = torch.randn(20_000, 3, 2, generator=seeded(), dtype=torch.float64)
    for generator in (MeanFlow(Exact(gaussian_average), SIZES), Shortcut(Exact(gaussian_average), SIZES, halvings=8)):
        torch.testing.assert_close(generator.sample(condition, noise=noise, steps=steps), S * noise)
    for config in (ConsistencyTraining, ConsistencyDistillation):
        made = config(Exact(gaussian_end), SIZES).sample(condition, noise=noise, steps=steps, generator=seeded())
        assert made.std().item() == pytest.approx(S, rel=0.02)
        assert torch.allclose(made, S * noise) == (steps == 1)


def test_one_interval_learns_the_actions_themselves() -> None:
    actions, condition = gaussian(8)
    generator = ConsistencyTraining(Exact(lambda x, t: 0.3 * x), SIZES, first=1, loss='squared')
    noise = torch.randn(8, 3, 2, generator=seeded()).double()
    torch.testing.assert_close(generator.loss(actions, condition, generator=seeded()),
                               (1.3 * noise - actions).square().mean())


# How


@pytest.mark.parametrize('network', NETWORKS)
def test_the_slope_is_that_of_finite_differences(network: str) -> None:
    average = shaken(MeanFlowConfig(), network).average.double()
    x, velocity = torch.randn(2, 2, 3, 2, generator=seeded(), dtype=torch.float64)
    t, span = torch.tensor([0.1, 0.5]).double(), torch.tensor([0.8, 0.3]).double()
    condition = Condition(torch.randn(2, 5, generator=seeded()).double(), torch.randn(2, 4, 7).double())
    answer, slope = with_slope(average, x, t, span, velocity, condition)
    h = 1e-5
    ahead, behind = (average(x + s * velocity, t + s, span - s, condition) for s in (h, -h))
    torch.testing.assert_close(answer, average(x, t, span, condition))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    assert slope.abs().min() > 1e-6


def test_the_slope_has_no_part_in_the_gradient() -> None:
    """With the target held, the squared loss's derivative by the gain is ``2 u (g u - target)`` on average."""
    actions, condition = gaussian(4)
    exact = Exact(lambda x, t, span: x * t * span, 1.5)
    MeanFlow(exact, SIZES, share=1.0).loss(actions, condition, generator=seeded(3)).backward()
    random = seeded(3)
    noise = torch.randn(4, 3, 2, generator=random).double()
    first, second, _ = torch.rand(3, 4, generator=random).double()[..., None, None]
    t, d = torch.minimum(first, second), (first - second).abs()
    x, v = (1 - t) * noise + t * actions, actions - noise
    u, slope = x * t * d, v * t * d + x * d - x * t
    torch.testing.assert_close(exact.gain.grad, (2 * u * (1.5 * u - v - d * 1.5 * slope)).mean(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('network', NETWORKS)
def test_the_slope_survives_half_precision(network: str) -> None:
    generator = shaken(MeanFlowConfig(), network)
    actions, condition = torch.randn(8, 3, 2, generator=seeded()), Condition(torch.zeros(8, 5), torch.zeros(8, 4, 7))
    whole = generator.loss(actions, condition, generator=seeded())
    with torch.autocast('cpu', torch.bfloat16):
        halved = Condition(condition.vector.bfloat16(), condition.tokens.bfloat16())
        torch.testing.assert_close(generator.loss(actions, halved, generator=seeded()), whole)


@pytest.mark.parametrize('network', NETWORKS)
def test_a_consistency_function_leaves_the_end_where_it_is(network: str) -> None:
    function = shaken(ConsistencyTrainingConfig(), network).function
    x, t = torch.randn(4, 3, 2, generator=seeded()), torch.tensor([1.0, 1.0, 0.0, 0.5])
    made = function(x, t, Condition(torch.zeros(4, 5), torch.zeros(4, 1, 7)))
    assert torch.equal(made[:2], x[:2]) and not torch.isclose(made[2:], x[2:]).any()


@pytest.mark.parametrize('network', NETWORKS)
def test_the_span_matters(network: str) -> None:
    average = shaken(ShortcutConfig(), network).average
    x, t, condition = torch.randn(2, 3, 2, generator=seeded()), torch.zeros(2), Condition(torch.zeros(2, 5),
                                                                                        torch.zeros(2, 1, 7))
    assert not torch.isclose(average(x, t, torch.zeros(2), condition), average(x, t, torch.ones(2), condition)).any()


def test_the_shortest_leaps_are_eulers_method() -> None:
    generator = Shortcut(Exact(gaussian_average), SIZES, halvings=2)
    _, condition = gaussian(2)
    x = noise = torch.randn(2, 3, 2, generator=seeded(), dtype=torch.float64)
    for index in range(4):
        x = x + gaussian_velocity(x, torch.tensor(index / 4)) / 4
    torch.testing.assert_close(generator.sample(condition, noise=noise, steps=4), x)


@of_each
def test_a_step_costs_one_evaluation(config: FamilyConfig) -> None:
    generator, calls = shaken(config).eval(), []
    network = next(module for name, module in generator.named_modules() if name.split('.')[-1] == 'network')
    network.register_forward_hook(lambda *_: calls.append(1))
    condition = Condition(torch.zeros(2, 5), torch.zeros(2, 1, 7))
    for steps in (1, 3):
        calls.clear()
        generator.sample(condition, steps=steps)
        assert len(calls) == (1 if isinstance(generator, Distilled) else steps)
    calls.clear()
    generator.sample(condition)
    assert len(calls) == 1


def test_times_are_drawn_near_the_ends() -> None:
    times = u_shaped_time(4000, seeded()).double().numpy()
    whole = integrate.quad(lambda u: math.cosh(4 * u), -1, 1)[0]

    def below(t: float) -> float:
        return integrate.quad(lambda u: math.cosh(4 * u), -1, 2 * t - 1)[0] / whole

    grid = torch.linspace(0, 1, 101).tolist()
    assert stats.kstest(times, lambda t: torch.tensor([below(value) for value in t]).numpy()).pvalue > 1e-3
    assert times.min() >= 0 and times.max() <= 1 and below(grid[50]) == pytest.approx(0.5)


def test_the_grid_becomes_finer_while_training_goes_on() -> None:
    generator = ConsistencyTrainingConfig(first=2, last=11, every=3).build(SIZES, NETWORKS['mlp'])
    found = []
    for _ in range(11):
        found.append(generator.intervals)
        generator.after_step()
    assert found == [2, 2, 2, 4, 4, 4, 8, 8, 8, 11, 11]
    other = ConsistencyTrainingConfig(first=2, last=11, every=3).build(SIZES, NETWORKS['mlp'])
    other.load_state_dict(generator.state_dict())
    assert other.intervals == 11


def test_pseudo_huber_is_a_square_near_zero_and_a_distance_far_away() -> None:
    error = torch.randn(4, 3, 2, generator=seeded(), dtype=torch.float64)
    norms = error.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(pseudo_huber(1e3 * error), 1e3 * norms.mean(), rtol=1e-5, atol=0)
    small = 1e-12 * norms.square().mean() / (2 * 0.00054)
    torch.testing.assert_close(pseudo_huber(1e-6 * error), small, rtol=1e-4, atol=0)
    zero = torch.zeros(4, 3, 2, requires_grad=True)
    pseudo_huber(zero).backward()
    assert torch.equal(zero.grad, torch.zeros(4, 3, 2))


@pytest.mark.parametrize('loss', [squared, pseudo_huber])
def test_a_masked_loss_is_that_of_what_is_left(loss: Callable[..., Tensor]) -> None:
    error = torch.randn(4, 5, 2, generator=seeded())
    mask = (torch.arange(5) < 3).expand(4, 5)
    torch.testing.assert_close(loss(error, mask), loss(error[:, :3], None))
    torch.testing.assert_close(loss(error, mask & (torch.arange(4) < 3)[:, None]), loss(error[:3, :3], None))


# Teachers


@of_each_student
@pytest.mark.parametrize('network', NETWORKS)
def test_a_student_begins_as_its_teacher_and_leaves_it_alone(config: FamilyConfig, network: str) -> None:
    teacher, student = shaken(FlowMatchingConfig(), network, seed=1), shaken(config, network)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student.learn_from(teacher)
    mine = {name.rpartition('network.')[2]: value for name, value in student.state_dict().items()}
    theirs = {name.rpartition('network.')[2]: value for name, value in before.items()}
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not any('teacher' in name for name, _ in (*student.named_parameters(), *student.named_modules()))
    condition = Condition(torch.zeros(8, 5), torch.zeros(8, 1, 7))
    student.train().loss(torch.randn(8, 3, 2, generator=seeded()), condition, generator=seeded()).backward()
    assert not teacher.training and all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@of_each_student
def test_a_teacher_of_another_kind_only_teaches(config: FamilyConfig) -> None:
    student, teacher = shaken(config), shaken(FlowMatchingConfig(), 'transformer')
    before = {name: value.clone() for name, value in student.state_dict().items()}
    student.learn_from(teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    condition = Condition(torch.zeros(2, 5), torch.zeros(2, 1, 7))
    assert torch.isfinite(student.loss(torch.zeros(2, 3, 2), condition))


@of_each_student
def test_a_student_can_act_but_not_learn_without_a_teacher(config: FamilyConfig) -> None:
    student, condition = shaken(config), Condition(torch.zeros(2, 5))
    assert student.sample(condition).shape == (2, 3, 2)
    with pytest.raises(TrainingError, match='learns from a trained generator'):
        student.loss(torch.zeros(2, 3, 2), condition)
    with pytest.raises(ConfigError, match='teacher is made for'):
        student.learn_from(FlowMatchingConfig().build(Sizes(4, 2, 5), NETWORKS['mlp']))


@pytest.mark.parametrize('config', [RegressionConfig(), FlowMatchingConfig(path='variance_preserving')],
                         ids=['regression', 'curved'])
def test_consistency_needs_a_teacher_with_a_straight_path(config: FamilyConfig) -> None:
    with pytest.raises(ConfigError, match='no velocity on the straight path'):
        shaken(ConsistencyDistillationConfig()).learn_from(shaken(config))


@of_each_student
def test_a_teacher_goes_where_its_student_goes(config: FamilyConfig) -> None:
    student = shaken(config)
    student.learn_from(shaken(FlowMatchingConfig(), 'transformer'))
    student.double()
    assert all(value.dtype == torch.float64 for value in student.teacher.parameters())


def test_a_rectified_flow_can_teach() -> None:
    student = shaken(ConsistencyDistillationConfig())
    student.learn_from(shaken(RectifiedFlowConfig(), seed=1))
    condition = Condition(torch.zeros(2, 5), torch.zeros(2, 1, 7))
    assert torch.isfinite(student.loss(torch.zeros(2, 3, 2), condition))


@pytest.mark.parametrize(('config', 'message'), [
    (RectifiedFlowConfig(solver='eulr'), "solver: 'eulr'; did you mean 'euler'"),
    (RectifiedFlowConfig(loss='square'), "loss: 'square'; did you mean 'squared'"),
    (RectifiedFlowConfig(teacher_steps=0), 'teacher_steps: 0'),
    (DistilledConfig(teacher_steps=0), 'teacher_steps: 0'),
    (DistilledConfig(loss='l2'), "loss: 'l2'"),
    (MeanFlowConfig(share=1.1), 'share: 1.1'),
    (MeanFlowConfig(steps=0), 'steps: 0'),
    (ShortcutConfig(share=-0.1), 'share: -0.1'),
    (ShortcutConfig(halvings=0), 'halvings: 0'),
    (ConsistencyTrainingConfig(first=0), 'first, last: 0, 1280'),
    (ConsistencyTrainingConfig(first=20, last=10), 'first, last: 20, 10'),
    (ConsistencyTrainingConfig(every=0), 'every: 0'),
    (ConsistencyDistillationConfig(intervals=0), 'intervals: 0'),
    (ConsistencyDistillationConfig(solver='rk'), "solver: 'rk'"),
], ids=str)
def test_settings_out_of_range_are_named(config: FamilyConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(SIZES, NETWORKS['mlp'])

