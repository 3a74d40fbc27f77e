"""Training on episodes that arrive, without ROS: how it is resumed, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import threading

from core_samples import make_episodes, small_contract
import pytest

from flow_vla_core.data.episode import Episode
from flow_vla_core.errors import ConfigError
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training import precision
from flow_vla_core.training.buffer import EpisodeBuffer
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.online import OnlineTraining
from flow_vla_core.training.online_types import OnlineConfig, State

CONTRACT = small_contract(size=(12, 12))
EPISODES = make_episodes(CONTRACT)
CONFIG = OnlineConfig(TrainConfig(policy=PolicyConfig.dummy(), steps=4, batch_size=8, schedule='constant', log_every=3,
                                  shift=0), start_episodes=2)


def train(out: Path, config: OnlineConfig, episodes: list[Episode]) -> OnlineTraining:
    """Let a training receive episodes and run to its end; without one within 30 s it is stopped."""
    training = OnlineTraining(CONTRACT, EpisodeBuffer(1000), config, out)
    for episode in episodes:
        training.receive(episode)
    thread = threading.Thread(target=training.run)
    thread.start()
    thread.join(30)
    training.stop()
    thread.join()
    return training


def with_steps(steps: int, **changes: object) -> OnlineConfig:
    """Return the settings with another length."""
    return replace(CONFIG, train=replace(CONFIG.train, steps=steps), **changes)


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    training = train(tmp_path, CONFIG, EPISODES[:2])
    assert {'README.txt', 'config.yaml', 'environment.json', 'report.json', 'metrics.csv', 'curves.png', 'checkpoint',
            'resume', 'checkpoints'} == {path.name for path in tmp_path.iterdir()}
    points = training._trainer.points
    assert [point.step for point in points] == [3, 4] and points[0].values['episodes'] == 2


def test_replay_bounds_the_draws_of_the_whole_run(tmp_path: Path) -> None:
    first = train(tmp_path, with_steps(4, replay=2.0), EPISODES[:2])
    assert first.progress().step == 4
    second = train(tmp_path, with_steps(6, replay=2.0, resume=True), EPISODES[2:3])
    assert second.progress().state == State.DONE, '48 draws of 27 frames'


def test_the_speed_counts_the_steps_of_this_start(tmp_path: Path) -> None:
    train(tmp_path, with_steps(4), EPISODES[:2])
    progress = train(tmp_path, with_steps(4, resume=True), EPISODES[:1]).progress()
    assert (progress.step, progress.steps_per_second) == (4, 0)


def test_a_run_that_was_cut_off_between_two_renames_is_gone_on_with(tmp_path: Path) -> None:
    train(tmp_path, with_steps(4), EPISODES[:2])
    (tmp_path / 'resume').rename(tmp_path / '.resume-old')
    with pytest.raises(ConfigError, match='holds a run already'):
        OnlineTraining(CONTRACT, EpisodeBuffer(1000), CONFIG, tmp_path)
    (tmp_path / 'resume').rename(tmp_path / '.resume-old')
    second = train(tmp_path, with_steps(5, resume=True), EPISODES[:1])
    assert second.progress().step == 5


def test_a_device_that_cannot_do_it_is_refused_before_any_episode(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, '_cpu_is_able', lambda _: False)
    with pytest.raises(ConfigError, match='does not compute in bfloat16'):
        OnlineTraining(CONTRACT, EpisodeBuffer(1000), replace(CONFIG, train=replace(CONFIG.train, half=True)), tmp_path)
