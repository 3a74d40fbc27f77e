"""Windows of training data: what is seen, what follows, and the mask past the end of an episode."""

from __future__ import annotations

from pathlib import Path
import tracemalloc

from bag_tools import CONTRACT, record, steps
import numpy as np
import pytest
import torch

from flow_vla_core.data import Episode, Windows, read_episode
from flow_vla_core.errors import ConfigError, DataError


def episode(number: int, length: int, size: int = 6) -> Episode:
    """Make an episode whose k-th step carries 100 * number + k in its state, and k in its pixels."""
    steps = np.arange(length)
    values = (100 * number + steps).astype(np.float32)
    pixels = np.broadcast_to(steps[:, None, None, None], (length, size, size + 2, 3)).astype(np.uint8)
    pixels = pixels + np.array([0, 50, 100], np.uint8)
    return Episode(steps * 50_000_000, {'front': pixels, 'hand': pixels + np.uint8(7)}, np.stack([values] * 3, 1),
                   np.stack([values, -values], 1), 'words', 'task', 'success', Path(f'bag_{number}'))


EPISODES = [episode(1, 5), episode(2, 1), episode(3, 9)]


@pytest.mark.parametrize(('horizon', 'history'), [(1, 1), (4, 1), (4, 2), (20, 3)])
def test_every_window_against_a_loop(horizon: int, history: int) -> None:
    windows = Windows(EPISODES, horizon, history)
    wanted = [(number, last) for number, source in enumerate(EPISODES) for last in range(history - 1, len(source))]
    assert len(windows) == len(wanted)
    batch = windows.gather(range(len(windows)))
    for row, (number, last) in enumerate(wanted):
        source = EPISODES[number]
        seen = slice(last - history + 1, last + 1)
        ahead = [min(last + step, len(source) - 1) for step in range(horizon)]
        for name in ('front', 'hand'):
            np.testing.assert_array_equal(batch.images[name][row], source.images[name][seen].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(batch.state[row], source.state[seen])
        np.testing.assert_array_equal(batch.actions[row], source.actions[ahead])
        np.testing.assert_array_equal(batch.mask[row], [last + step < len(source) for step in range(horizon)])
        assert batch.episode_index[row] == windows.episode_of[row] == number


def test_shapes_and_types() -> None:
    batch = Windows(EPISODES, 4, 2).gather(torch.tensor([3, 0, 3]))
    assert batch.images['front'].shape == (3, 2, 3, 6, 8) and batch.images['front'].dtype == torch.uint8
    assert batch.state.shape == (3, 2, 3) and batch.state.dtype == torch.float32
    assert batch.actions.shape == (3, 4, 2) and batch.actions.dtype == torch.float32
    assert batch.mask.shape == (3, 4) and batch.mask.dtype == torch.bool
    assert batch.episode_index.dtype == torch.int64
    assert torch.equal(batch.state[0], batch.state[2]) and not torch.equal(batch.state[0], batch.state[1])


def test_a_single_window_has_no_batch_axis() -> None:
    windows = Windows(EPISODES, 4, 2)
    batch = windows.gather([2, len(windows) - 1])
    for index, row in ((2, 0), (-1, 1)):
        window = windows[index]
        assert torch.equal(window.images['hand'], batch.images['hand'][row])
        assert torch.equal(window.actions, batch.actions[row]) and torch.equal(window.mask, batch.mask[row])
    with pytest.raises(IndexError, match='window 99 of'):
        windows[99]


def test_gathering_does_not_touch_the_episodes() -> None:
    windows = Windows(EPISODES, 4)
    batch = windows.gather([0, 1])
    batch.images['front'].zero_()
    batch.actions.zero_()
    assert EPISODES[0].images['front'].max() > 0
    assert windows.gather([0, 1]).actions.abs().max() > 0


def test_gathering_from_mapped_images_copies_the_frames_of_the_windows_only(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 40, 40, 3), dtype=np.uint8)
    np.save(tmp_path / 'images.npy', images)
    row = np.zeros((400, 2), np.float32)
    mapped = {'front': np.load(tmp_path / 'images.npy', mmap_mode='r')}
    windows = Windows([Episode(np.arange(400), mapped, row, row, 'go', '', 'success', tmp_path)], 4, 2)
    tracemalloc.start()
    batch = windows.gather([0, 100, 398])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seen = images[[[0, 1], [100, 101], [398, 399]]].transpose(0, 1, 4, 2, 3)
    np.testing.assert_array_equal(batch.images['front'], seen)
    assert batch.images['front'].nbytes <= peak < 4 * batch.images['front'].nbytes < images.nbytes / 10


def test_frames_are_numbered_over_all_episodes() -> None:
    windows = Windows(EPISODES, 3, 2)
    states = np.concatenate([source.state for source in EPISODES])
    np.testing.assert_array_equal(states[windows.frame_of], windows.gather(range(len(windows))).state[:, -1])
    actions = np.concatenate([source.actions for source in EPISODES])
    np.testing.assert_array_equal(actions[windows.frames_ahead([0, 11])], windows.gather([0, 11]).actions)


def test_the_rows_of_a_recorded_bag(tmp_path: Path) -> None:
    source = read_episode(record(tmp_path / 'bag', steps(6)), CONTRACT)
    batch = Windows([source], 3, 2).gather([0, 4])
    assert batch.images['gripper_cam'].shape == (2, 2, 3, 84, 84)
    assert batch.images['gripper_cam'][:, :, 0, 0, 0].tolist() == [[0, 1], [4, 5]]
    assert batch.actions[..., 3].tolist() == [[1, 2, 3], [5, 5, 5]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]


def test_what_holds_no_window_is_refused() -> None:
    with pytest.raises(DataError, match='no episodes'):
        Windows([], 4)
    with pytest.raises(DataError, match='1 episodes hold no window of 2 observations'):
        Windows([episode(1, 1)], 4, 2)
    with pytest.raises(DataError, match=r'bag_2: .*\(9, 11, 3\).* but bag_1 has .*\(6, 8, 3\)'):
        Windows([episode(1, 3), episode(2, 3, size=9)], 4)
    with pytest.raises(ConfigError, match='horizon 0, history 1'):
        Windows(EPISODES, 0)
