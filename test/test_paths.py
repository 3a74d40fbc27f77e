"""Paths and the drawing of time against closed forms and torchcfm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    TargetConditionalFlowMatcher,
    VariancePreservingConditionalFlowMatcher,
)

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.generators.paths import PATHS, Path, StraightPath, VariancePreservingPath, expand_time
from flow_vla_core.generators.times import TIMES, beta_time, logit_normal_time, uniform_time
from flow_vla_core.solvers import solve

ALL = {**{name: kind() for name, kind in PATHS.items()}, 'straight, 0.1 left': StraightPath(0.1)}
THEIRS = {'straight': ConditionalFlowMatcher(0.0), 'straight, 0.1 left': TargetConditionalFlowMatcher(0.1),
          'variance_preserving': VariancePreservingConditionalFlowMatcher(0.0)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = [(2, 5, 3), (4, 4, 4)]

paths = pytest.mark.parametrize('path', ALL.values(), ids=ALL)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def ends(shape: tuple[int, ...] = SHAPES[0], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return noise and data."""
    return torch.randn(shape, generator=seeded(1), dtype=dtype), torch.randn(shape, generator=seeded(2), dtype=dtype)


@paths
@pytest.mark.parametrize('t', [0.0, 1e-6, 0.3, 0.5, 1 - 1e-6, 1.0])
def test_the_velocity_is_the_derivative_of_the_place(path: Path, t: float) -> None:
    noise, data = ends()
    time = torch.tensor(t, dtype=torch.float64)
    place, slope = torch.func.jvp(lambda t: path.mix(noise, data, t), (time,), (torch.ones_like(time),))
    torch.testing.assert_close(path.velocity(noise, data, time), slope, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(place).all() and torch.isfinite(slope).all()


@paths
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_it_leads_from_noise_to_data(path: Path, dtype: torch.dtype) -> None:
    noise, data = ends(dtype=dtype)
    kept = noise.clone(), data.clone()
    left = getattr(path, 'smallest', 0.0)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(path.mix(noise, data, 0.0), noise, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(path.mix(noise, data, 1.0), data + left * noise, rtol=tolerance, atol=tolerance)
    assert path.mix(noise, data, 0.5).dtype == path.velocity(noise, data, 0.5).dtype == dtype
    assert torch.equal(noise, kept[0]) and torch.equal(data, kept[1])


@pytest.mark.parametrize('name', THEIRS)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('shape', SHAPES)
def test_place_and_velocity_are_those_of_torchcfm(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    (noise, data), theirs, path = ends(shape, dtype), THEIRS[name], ALL[name]
    t = torch.rand(shape[0], generator=seeded(3), dtype=dtype)
    spread = noise if name == 'straight, 0.1 left' else torch.zeros_like(noise)
    place = theirs.sample_xt(noise, data, t, spread)
    slope = theirs.compute_conditional_flow(noise, data, t.reshape(-1, 1, 1), place)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(path.mix(noise, data, t), place, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(path.velocity(noise, data, t), slope, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('t', [0.0, 0.2, 0.7, 1.0])
def test_variance_is_preserved(t: float) -> None:
    noise, data = ends((200_000, 1))
    assert VariancePreservingPath().mix(noise, data, t).var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('name, center, spread', [
    ('straight', lambda t: (t, 1.0), lambda t: ((1 - t) ** 2 + t ** 2 / 4, t / 2 - 2 * (1 - t))),
    ('variance_preserving',
     lambda t: (math.sin(math.pi / 2 * t), math.pi / 2 * math.cos(math.pi / 2 * t)),
     lambda t: (math.cos(math.pi / 2 * t) ** 2 + math.sin(math.pi / 2 * t) ** 2 / 4,
                -0.75 * math.pi / 2 * math.sin(math.pi * t)))])
def test_euler_along_the_exact_field_between_two_gaussians_gives_mean_and_covariance(
        name: str, center: object, spread: object) -> None:
    """The marginal at t is N(a m, v) with a and v from the path, and its velocity a' m + (x - a m) v' / (2 v)."""
    mean = torch.tensor([2.0, -1.0], dtype=torch.float64)
    noise, data = torch.zeros(2, dtype=torch.float64), mean
    assert center(0.3)[0] * mean == pytest.approx(ALL[name].mix(noise, data, 0.3))

    def field(x: Tensor, t: float) -> Tensor:
        (place, speed), (variance, change) = center(t), spread(t)
        return speed * mean + (x - place * mean) * change / (2 * variance)

    start = torch.randn(50_000, 2, generator=seeded(), dtype=torch.float64)
    end = solve(field, start, 200)
    torch.testing.assert_close(end.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(end.T), torch.eye(2, dtype=torch.float64) / 4, rtol=0, atol=0.01)


@pytest.mark.parametrize('shape', [*SHAPES, (1, 1, 1)])
def test_a_time_belongs_to_its_own_element(shape: tuple[int, ...]) -> None:
    like, times = torch.zeros(shape), torch.rand(shape[0], generator=seeded())
    for given in (times, times[:, None], times[:, None, None]):
        assert torch.equal(expand_time(given, like).expand(shape), times[:, None, None].expand(shape))
    assert expand_time(torch.tensor(0.5), like).item() == expand_time(0.5, like).item() == 0.5
    each = torch.rand(shape[:2], generator=seeded())
    assert torch.equal(expand_time(each, like).expand(shape), each[..., None].expand(shape))


def test_a_time_has_the_type_of_what_it_belongs_to() -> None:
    assert expand_time(torch.tensor([0.5]), torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


@paths
@pytest.mark.parametrize('t, message', [
    (torch.tensor([0.5, 1.1]), '0.5 to 1.1'), (torch.tensor([-0.1, 0.5]), '-0.1'), (1.5, '1.5'),
    (float('nan'), 'nan'), (torch.zeros(3), r'\(3,\)'), (torch.zeros(1), r'\(1,\)'), (torch.zeros(2, 3), r'\(2, 3\)'),
    (torch.zeros(2, 5, 3, 1), r'\(2, 5, 3, 1\)')])
def test_wrong_times_are_named(path: Path, t: Tensor | float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        path.mix(*ends(), t)


@pytest.mark.parametrize('smallest', [-0.1, 1.0, float('nan')])
def test_a_wrong_rest_of_noise_is_named(smallest: float) -> None:
    with pytest.raises(ConfigError, match=str(smallest)):
        StraightPath(smallest)


def test_beta_times_have_more_mass_near_the_noise() -> None:
    beta = beta_time(200_000, seeded())
    # Beta(1.5, 1) has mean 0.6 and variance 1.5 / (2.5^2 * 3.5).
    assert beta.mean().item() == pytest.approx(1 - (0.999 * 0.6 + 0.001), abs=2e-3)
    assert beta.var().item() == pytest.approx(0.999 ** 2 * 1.5 / (2.5 ** 2 * 3.5), rel=0.02)
    assert beta.max() <= 0.999
    for level in (0.1, 0.5, 0.9):
        share = (1 - beta < 0.999 * level + 0.001).double().mean().item()
        assert share == pytest.approx(level ** 1.5, abs=5e-3)


def test_uniform_and_logit_normal_times_follow_their_distributions() -> None:
    uniform, middle = uniform_time(200_000, seeded()), logit_normal_time(200_000, seeded())
    for level in (0.1, 0.25, 0.5, 0.9):
        assert (uniform < level).double().mean().item() == pytest.approx(level, abs=5e-3)
        expected = Normal(0.0, 1.0).cdf(torch.tensor(level).logit()).item()
        assert (middle < level).double().mean().item() == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize('name', TIMES)
def test_times_lie_in_the_interval_and_come_from_the_generator(name: str) -> None:
    state = torch.get_rng_state()
    drawn = TIMES[name](10_000, seeded(1))
    assert drawn.shape == (10_000,) and 0 <= drawn.min() and drawn.max() <= 1
    assert torch.equal(drawn, TIMES[name](10_000, seeded(1)))
    assert torch.equal(torch.get_rng_state(), state)
