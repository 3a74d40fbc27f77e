"""Videos are opened with another reader and looked into."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from PIL import Image
import pytest

from flow_vla_core.evaluation.video import VideoWriter, compose, write_gif


def views(level: int = 200, size: tuple[int, int] = (24, 32)):
    return [np.full((*size, 3), level, np.uint8), np.zeros((*size, 3), np.uint8)]


def test_views_stand_side_by_side_above_the_words():
    frame = compose(views(), 'open the faucet', 'success', scale=2)
    assert frame.shape == (24 * 2 + 40, 32 * 2 * 2, 3) and frame.dtype == np.uint8
    assert (frame[:48, :60] == 200).all() and (frame[:48, 68:] == 0).all()
    plain = compose(views(), '', '', scale=2)
    assert (frame[48:] != plain[48:]).any() and (frame[:48] == plain[:48]).all()


@pytest.mark.parametrize('size', [(23, 31), (24, 31)])
def test_sides_are_even(size: tuple[int, int]):
    frame = compose(views(size=size)[:1], 'x', scale=1)
    assert frame.shape[0] % 2 == 0 and frame.shape[1] % 2 == 0


def test_a_video_holds_every_frame(tmp_path: Path):
    levels = range(0, 250, 10)
    with VideoWriter(tmp_path / 'a.mp4', 20.0) as video:
        for level in levels:
            video.write(compose(views(level), 'go'))
    with av.open(str(tmp_path / 'a.mp4')) as container:
        assert container.streams.video[0].average_rate == 20
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert len(frames) == len(levels)
    for level, frame in zip(levels, frames):
        assert abs(frame[:40, :50].mean() - level) < 6


def test_a_frame_can_stand_for_several(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / 'a.mp4', 20.0) as video:
        for level, duration in ((10, 1), (100, 3), (200, 1)):
            video.write(compose(views(level), 'go'), duration)
    with av.open(str(tmp_path / 'a.mp4')) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.05, 0.2], abs=1e-3)


def test_a_gif_is_thinned_out_until_it_is_small(tmp_path: Path):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 255, (40, 60, 3), np.uint8) for _ in range(16)]
    assert write_gif(tmp_path / 'all.gif', frames, 0.1, 10 ** 9) == 16
    size = (tmp_path / 'all.gif').stat().st_size
    kept = write_gif(tmp_path / 'few.gif', frames, 0.1, size // 3)
    assert 4 <= kept <= 5 and (tmp_path / 'few.gif').stat().st_size <= size // 3
    with Image.open(tmp_path / 'few.gif') as image:
        assert image.n_frames == kept
        assert image.info['duration'] == 100 * math.ceil(16 / kept)


def test_no_frames_make_no_gif(tmp_path: Path):
    assert write_gif(tmp_path / 'a.gif', [], 0.1, 1000) == 0
    assert not (tmp_path / 'a.gif').exists()
