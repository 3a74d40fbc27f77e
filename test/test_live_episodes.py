"""Episodes that are heard: the same frames as their bags give offline, cut by marks, words, jumps and silence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
import random

from bag_tools import CONTRACT, DT, MARKS, START, TYPES, record, serialize, steps
import numpy as np
import pytest
from test_reading import acts

from flow_vla_core.data.episode import Episode
from flow_vla_core.data.frames import frame_bytes
from flow_vla_core.data.live_episodes import DISCARDED, ENDED, INSTRUCTED, MARKED, STARTED, Heard, LiveEpisodes, Mark
from flow_vla_core.data.reading import read_episode
from flow_vla_core.types import Actor

SECOND = 10 ** 9
FIRST = Mark(STARTED, START, 'episode_000001', MARKS['instruction'], MARKS['task'])
LAST = Mark(ENDED, START + 20 * DT, 'episode_000001', MARKS['instruction'], MARKS['task'], 1)


class Listener:
    """Hears what is recorded, as the graph would bring it, and keeps what comes of it."""

    def __init__(self, **settings: float) -> None:
        self.episodes: list[Episode] = []
        self.refused: list[str] = []
        self.live = LiveEpisodes(CONTRACT, self.episodes.append, self.refused.append, **settings)

    def hear(self, samples: Iterable[tuple[str, int, object]], shift: float = 0.0) -> float:
        """Hear samples at their stamps; return the time of the last one, s."""
        time = shift
        for topic, stamp, message in samples:
            time = shift + (stamp - START) / SECOND
            self.live.hear(Heard(topic.lstrip('/'), stamp, serialize(topic, message), time))
        return time


def assert_equal(live: Episode, offline: Episode) -> None:
    for name in ('stamps', 'state', 'actions', 'actors'):
        np.testing.assert_array_equal(getattr(live, name), getattr(offline, name))
    assert live.images.keys() == offline.images.keys()
    for name, images in live.images.items():
        np.testing.assert_array_equal(images, offline.images[name])
    assert (live.instruction, live.task, live.outcome) == (offline.instruction, offline.task, offline.outcome)
    assert live.complete == offline.complete


@pytest.mark.parametrize('seed', range(4))
def test_what_is_heard_equals_what_the_bag_gives(tmp_path: Path, seed: int) -> None:
    samples = steps(20)
    offline = read_episode(record(tmp_path / 'episode_000001', samples), CONTRACT)
    source = random.Random(seed)
    arrivals = sorted((stamp / SECOND - START / SECOND + source.uniform(0, 0.1), topic, stamp, message)
                      for topic, stamp, message in samples if topic != '/instruction')
    listener = Listener()
    marked = source.uniform(0, 0.1)  # the beginning, too, may come after the first messages
    for time, topic, stamp, message in [item for item in arrivals if item[0] < marked]:
        listener.live.hear(Heard(topic.lstrip('/'), stamp, serialize(topic, message), time))
    listener.live.mark(FIRST, marked)
    for time, topic, stamp, message in [item for item in arrivals if item[0] >= marked]:
        listener.live.hear(Heard(topic.lstrip('/'), stamp, serialize(topic, message), time))
        if stamp == START + 19 * DT and not listener.live._open._end:
            listener.live.mark(LAST, time)  # the end comes before the last messages
    listener.live.tick(60.0)
    episode, = listener.episodes
    assert len(episode) == 20
    assert_equal(episode, offline)
    assert episode.source == Path('episode_000001')


def test_who_acted_just_before_the_beginning_acts_in_the_first_frame() -> None:
    listener = Listener()
    status = acts(-2, Actor.PERSON)
    listener.live.hear(Heard('executor/status', status[2], status[3], 0.0))
    listener.live.mark(FIRST, 0.1)
    listener.live.mark(LAST, listener.hear(steps(20), shift=0.1))
    listener.live.tick(60.0)
    assert set(listener.episodes[0].actors[:15].tolist()) == {Actor.PERSON}


def test_a_gap_is_cut_out_as_offline(tmp_path: Path) -> None:
    gap = range(START + 8 * DT, START + 14 * DT)
    samples = [item for item in steps(30) if not (item[0] == '/ee_pose' and item[1] in gap)]
    offline = read_episode(record(tmp_path / 'episode_000001', samples), CONTRACT)
    listener = Listener()
    listener.live.mark(FIRST, 0.0)
    listener.live.mark(LAST, listener.hear(samples))
    listener.live.finish()
    episode, = listener.episodes
    assert not episode.complete and 10 < len(episode) < 20
    assert_equal(episode, offline)


def test_marks_judge_discard_and_divide() -> None:
    listener = Listener()
    listener.live.mark(FIRST, 0.0)
    listener.hear(steps(10))
    listener.live.mark(replace(LAST, event=DISCARDED), 1.0)
    listener.live.finish()
    assert listener.episodes == [] and listener.refused == []
    listener.live.mark(replace(FIRST, id='second'), 10.0)
    listener.hear(steps(20), 10.0)
    listener.live.mark(replace(FIRST, event=INSTRUCTED, id='second', stamp=START + 12 * DT, instruction='close it'), 11)
    listener.live.mark(replace(FIRST, event=MARKED, id='second', outcome=2), 11.0)
    listener.live.mark(replace(LAST, id='second', outcome=0), 11.0)
    listener.live.finish()
    assert [(episode.instruction, len(episode), episode.outcome) for episode in listener.episodes] == [
        (MARKS['instruction'], 12, 'failure'), ('close it', 8, 'failure')]


def test_without_marks_silence_and_jumps_end_an_episode() -> None:
    listener = Listener(silence=1.0)
    end = listener.hear(steps(10))
    listener.live.tick(end + 0.9)
    assert listener.live.present and listener.episodes == []
    listener.live.tick(end + 1.1)
    assert [len(episode) for episode in listener.episodes] == [10]
    listener.hear(steps(6), 10.0)
    listener.live.jump()
    listener.hear(steps(7), 10.4)
    listener.live.finish()
    assert [len(episode) for episode in listener.episodes] == [10, 6, 7]
    assert {(episode.instruction, episode.outcome) for episode in listener.episodes} == {
        ('close the faucet', 'unknown')}


def test_what_is_heard_between_episodes_belongs_to_none() -> None:
    listener = Listener()
    listener.live.mark(FIRST, 0.0)
    listener.live.mark(LAST, listener.hear(steps(10)))
    listener.hear(steps(40), 2.0)
    listener.live.mark(replace(FIRST, id='second', stamp=START + 38 * DT), 4.0)
    listener.live.finish()
    assert [len(episode) for episode in listener.episodes] == [10, 2]


@pytest.mark.parametrize(('samples', 'reason'), [
    ([item for item in steps(5) if item[0] != '/gripper/command'], 'nothing on gripper/command'),
    ([*steps(3), ('/joint_states', START + 3 * DT, b'\0\1\0\0')], 'joint_states: a message of 4 bytes has no header')])
def test_what_is_wrong_is_told(samples: list, reason: str) -> None:
    listener = Listener()
    listener.live.mark(FIRST, 0.0)
    for topic, stamp, message in samples:
        data = message if isinstance(message, bytes) else serialize(topic, message)
        listener.live.hear(Heard(topic.lstrip('/'), stamp, data, (stamp - START) / SECOND))
    listener.live.mark(LAST, 1.0)
    listener.live.finish()
    assert listener.episodes == [] and listener.refused == [f'episode_000001: {reason}']


def test_an_episode_that_nobody_ends_is_given_up_where_there_is_no_room() -> None:
    listener = Listener(room=6 * frame_bytes(CONTRACT))
    listener.live.mark(FIRST, 0.0)
    time = listener.hear(steps(60))
    assert listener.live._open._keeper._stretch is None, 'frames are kept for nothing'
    listener.live.mark(replace(FIRST, id='second', stamp=START + 60 * DT), time + 1)
    listener.hear(steps(6), time + 1)
    listener.live.finish()
    assert listener.refused == ['episode_000001: more than 6 frames, for which there is no room']
    assert [len(episode) for episode in listener.episodes] == [6]


def test_an_episode_that_lost_messages_is_given_up_and_the_next_one_is_whole() -> None:
    listener = Listener()
    listener.live.mark(FIRST, 0.0)
    listener.hear(steps(5))
    listener.live.abandon('too fast')
    listener.live.mark(replace(FIRST, id='second'), 2.0)
    listener.hear(steps(5), 2.0)
    listener.live.finish()
    assert listener.refused == ['episode_000001: too fast']
    assert [len(episode) for episode in listener.episodes] == [5]
    assert listener.live.topics == {topic.lstrip('/') for topic in TYPES} | {'executor/status'}
