"""The buffer of episodes: bounded in frames and bytes, oldest out or a fair sample."""

from __future__ import annotations

from collections import Counter

from core_samples import make_episode, small_contract
from hypothesis import given
from hypothesis import strategies as st
import pytest

from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.training.buffer import EpisodeBuffer, size_of

CONTRACT = small_contract(size=(4, 4))


@given(lengths=st.lists(st.integers(1, 12), max_size=30), room=st.integers(12, 40),
       keep=st.sampled_from(['newest', 'reservoir']))
def test_it_is_never_fuller_than_it_may_be(lengths: list[int], room: int, keep: str) -> None:
    buffer, left = EpisodeBuffer(room, keep=keep), 0
    for number, length in enumerate(lengths):
        left += buffer.add(make_episode(CONTRACT, length, 'go', number))
        assert buffer.frames == sum(map(len, buffer.episodes)) <= room
    assert left + len(buffer.episodes) == len(lengths)
    order = [episode.source.name for episode in buffer.episodes]
    assert order == sorted(order, key=lambda name: int(name.removeprefix('episode_')))


def test_the_oldest_leave_first_and_as_few_as_need_to() -> None:
    buffer = EpisodeBuffer(10)
    for number, length in enumerate((4, 4, 2)):
        assert buffer.add(make_episode(CONTRACT, length, 'go', number)) == 0
    assert buffer.add(make_episode(CONTRACT, 6, 'go', 3)) == 2
    assert [episode.source.name for episode in buffer.episodes] == ['episode_2', 'episode_3']


def test_bytes_count_images_states_and_actions() -> None:
    episode = make_episode(CONTRACT, 5, 'go', 0)
    assert size_of(episode) == 5 * (2 * 4 * 4 * 3 + 4 * CONTRACT.state_dim + 4 * CONTRACT.action_dim)
    buffer = EpisodeBuffer(100, max_bytes=2 * size_of(episode))
    assert [buffer.add(episode) for _ in range(4)] == [0, 0, 1, 1]
    assert buffer.bytes == 2 * size_of(episode)


def test_a_reservoir_is_a_fair_sample_of_all_that_came() -> None:
    kept: Counter[int] = Counter()
    episodes = [make_episode(CONTRACT, 1, 'go', number) for number in range(8)]
    for seed in range(800):
        buffer = EpisodeBuffer(2, keep='reservoir', seed=seed)
        for episode in episodes:
            buffer.add(episode)
        kept.update(int(episode.source.name.removeprefix('episode_')) for episode in buffer.episodes)
    # 200 each are expected; their standard deviation is sqrt(800 * 1/4 * 3/4) = 12.2
    assert all(140 < kept[number] < 260 for number in range(8)), kept


def test_what_does_not_fit_alone_is_refused_and_the_rest_stays() -> None:
    buffer = EpisodeBuffer(5)
    buffer.add(make_episode(CONTRACT, 5, 'go', 0))
    with pytest.raises(DataError, match='6 frames'):
        buffer.add(make_episode(CONTRACT, 6, 'go', 1))
    assert buffer.frames == 5


@pytest.mark.parametrize('settings', [{'max_frames': 0}, {'max_frames': 1, 'max_bytes': 0},
                                      {'max_frames': 1, 'keep': 'oldest'}])
def test_settings_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        EpisodeBuffer(**settings)
