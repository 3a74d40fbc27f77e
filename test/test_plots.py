"""Plots: the numbers behind them, and that a picture comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from flow_vla_core.evaluation.plots import Motion, plot_latency, plot_motion


def motion(chunks: int = 3):
    times = np.arange(20) * 0.05
    return Motion('reach', ['x', 'y'], 'm/s', times, np.ones((20, 2)), times,
                  np.stack([times * 0.1, times * -0.2], 1), np.arange(chunks) * 0.25)


def ink(path: Path):
    with Image.open(path) as image:
        return int((np.asarray(image.convert('L')) < 128).sum())


def test_the_motion_is_drawn_with_the_borders_of_its_chunks(tmp_path: Path):
    plot_motion(tmp_path / 'new' / 'with.png', motion(3))
    plot_motion(tmp_path / 'without.png', motion(0))
    with_borders, without = (np.asarray(Image.open(tmp_path / name)) for name in ('new/with.png', 'without.png'))
    assert with_borders.shape == without.shape
    assert (with_borders != without).any()


def test_delays_are_drawn_and_empty_ones_are_left_out(tmp_path: Path):
    random = np.random.default_rng(0)
    plot_latency(tmp_path / 'one.png', {'chunk': random.normal(20, 2, 300), 'none': []})
    plot_latency(tmp_path / 'two.png', {'chunk': random.normal(20, 2, 300), 'more': [1.0, 2.0]})
    with Image.open(tmp_path / 'one.png') as one, Image.open(tmp_path / 'two.png') as two:
        assert two.height > one.height
    assert ink(tmp_path / 'one.png') > 1000


def test_no_delays_at_all_still_leave_a_picture(tmp_path: Path):
    plot_latency(tmp_path / 'a.png', {})
    assert (tmp_path / 'a.png').stat().st_size > 0
