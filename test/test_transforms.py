"""Statistics, normalisation and augmentation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core_samples import small_contract
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from flow_vla_core.encoders import Vocabulary
from flow_vla_core.errors import CheckpointError, ConfigError
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.transforms import Normaliser, Statistics, random_shift

VALUES = np.random.default_rng(0).normal([3, -1, 0], [2, 0.5, 10], (5000, 3))


def test_statistics_are_those_of_the_numbers() -> None:
    statistics = Statistics.of(VALUES)
    assert statistics.mean == pytest.approx(VALUES.mean(0))
    assert statistics.std == pytest.approx(VALUES.std(0))
    assert (VALUES < statistics.q01).mean(0) == pytest.approx([0.01] * 3, abs=1e-3)
    assert (VALUES > statistics.q99).mean(0) == pytest.approx([0.01] * 3, abs=1e-3)
    assert statistics.min[2] == VALUES[:, 2].min()


def test_standard_gives_mean_0_and_deviation_1() -> None:
    normal = Normaliser.standard(Statistics.of(VALUES))(torch.tensor(VALUES))
    torch.testing.assert_close(normal.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_quantile_puts_98_percent_between_minus_1_and_1() -> None:
    normal = Normaliser.quantile(Statistics.of(VALUES))(torch.tensor(VALUES))
    inside = (normal.abs() <= 1 + 1e-6).double().mean(0)
    torch.testing.assert_close(inside, torch.full((3,), 0.98, dtype=torch.float64), atol=2e-3, rtol=0)


@pytest.mark.parametrize('kind', ['standard', 'quantile'])
def test_a_constant_dimension_keeps_scale_1(kind: str) -> None:
    values = np.stack([np.linspace(0, 1, 100), np.full(100, 7.0)], 1)
    normaliser = getattr(Normaliser, kind)(Statistics.of(values))
    assert normaliser(torch.tensor([[0.5, 7.25]]))[0, 1].item() == pytest.approx(0.25)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3))
def test_the_inverse_undoes(row: list[float]) -> None:
    values = torch.tensor([row, row])
    for normaliser in (Normaliser.standard(Statistics.of(VALUES)), Normaliser.quantile(Statistics.of(VALUES))):
        torch.testing.assert_close(normaliser.inverse(normaliser(values)), values, atol=1e-3, rtol=1e-5)


def test_statistics_survive_a_file_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    statistics = {'state': Statistics.of(VALUES), 'actions': Statistics.of(VALUES[:, :1])}
    Statistics.save(tmp_path / 'stats.json', statistics)
    assert Statistics.load(tmp_path / 'stats.json') == statistics
    for text in ('{', '[]', '{"state": {"mean": [1]}}'):
        (tmp_path / 'stats.json').write_text(text)
        with pytest.raises(CheckpointError, match='stats.json'):
            Statistics.load(tmp_path / 'stats.json')


def test_a_policy_scales_as_its_settings_say() -> None:
    """Quantiles are those of numpy over all frames, and what does not vary keeps its scale."""
    contract = small_contract()
    values = np.random.default_rng(3).exponential(size=(1000, contract.state_dim))
    values[:, 1] = 7.0
    statistics = {'state': Statistics.of(values), 'actions': Statistics.of(values[:, :contract.action_dim])}
    words = Vocabulary.from_instructions(['open it'])
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    for scale, expected in (('standard', (values - values.mean(0)) / np.where(values.std(0) > 0, values.std(0), 1)),
                            ('quantile', (2 * values - low - high) / np.where(high > low, high - low, 2))):
        policy = FlowVLA(replace(PolicyConfig.dummy(), state_scale=scale, action_scale=scale), contract, statistics,
                         words)
        for normalise in (policy.normalise_state, policy.normalise_actions):
            assert normalise.scale[1] == 1
            given = torch.from_numpy(values[:, :len(normalise.scale)]).float()
            np.testing.assert_allclose(normalise(given), expected[:, :len(normalise.scale)], atol=1e-5)
            np.testing.assert_allclose(normalise.inverse(normalise(given)), given, atol=1e-5)
    with pytest.raises(ConfigError, match="state_scale: 'quantiles'; did you mean 'quantile'"):
        PolicyConfig(state_scale='quantiles')


def numbered(batch: int, frames: int = 2, channels: int = 3, rows: int = 11, columns: int = 7) -> torch.Tensor:
    """Return images in which every pixel says where it is."""
    place = torch.arange(rows)[:, None] * 16 + torch.arange(columns)
    return place.to(torch.uint8).expand(batch, frames, channels, rows, columns).clone()


def test_a_shift_moves_by_at_most_so_many_pixels_and_repeats_the_border() -> None:
    images, pixels = numbered(64), 3
    moved = random_shift(images, pixels, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    seen = set()
    for picture in moved:
        assert (picture == picture[:1, :1]).all(), 'all frames and channels of an element move together'
        down, across = int(picture[0, 0, 5, 3]) // 16 - 5, int(picture[0, 0, 5, 3]) % 16 - 3
        rows = (torch.arange(11) + down).clamp(0, 10)
        columns = (torch.arange(7) + across).clamp(0, 6)
        assert torch.equal(picture[0, 0], images[0, 0, 0][rows][:, columns])
        seen.add((down, across))
    assert {down for down, _ in seen} == {across for _, across in seen} == set(range(-pixels, pixels + 1))


def test_a_shift_is_repeatable_and_leaves_its_input_alone() -> None:
    images = numbered(5)
    kept = images.clone()
    first, second = (random_shift(images, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, kept)
    assert random_shift(images, 0) is images
