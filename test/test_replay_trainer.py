"""Training from a played bag: the loss falls, checkpoints load, runs are resumed, and nothing is heard wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bag_tools import CONTRACT, MARKS, record, steps
import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy', reason='rclpy is not installed')

from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from ros_graph import RosGraph
from std_msgs.msg import String

from flow_vla.msg import TrainingStatus
from flow_vla_core.config import to_values
from flow_vla_core.data.reading import read_episode
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_ros.player import PlayerNode
from flow_vla_ros.qos import LATCHED_STATE
from flow_vla_ros.replay_trainer_node import ReplayTrainerNode


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Settings of the smallest policy."""
    policy = to_values(PolicyConfig.dummy())
    path = tmp_path / 'small.yaml'
    path.write_text(yaml.safe_dump({'policy': policy, 'batch_size': 8, 'learning_rate': 5e-3, 'warm_up': 1,
                                    'schedule': 'constant', 'log_every': 5, 'shift': 0}))
    return path


@pytest.fixture
def bags(tmp_path: Path) -> list[Path]:
    """Three bags of twelve steps, one of which failed."""
    outcomes = ('success', 'failure', 'success')
    return [record(tmp_path / 'bags' / f'episode_{number:06d}', steps(12), {**MARKS, 'outcome': outcome})
            for number, outcome in enumerate(outcomes, 1)]


def node(graph: RosGraph, kind: type, **parameters: Any) -> Any:
    """Put a node on the graph and let it start."""
    values = {'use_sim_time': kind is ReplayTrainerNode, **parameters}
    made = graph.add(kind(parameter_overrides=[Parameter(key, value=value) for key, value in values.items()]))
    assert made.autostart()
    return made


def play(graph: RosGraph, *bags: Path, **parameters: Any) -> PlayerNode:
    """Play bags at five times their speed, once the trainer listens."""
    return node(graph, PlayerNode, bags=[str(bag) for bag in bags], rate=5.0, gap=0.5, wait_for_subscribers=True,
                **parameters)


def train(graph: RosGraph, folder: Path, settings: Path, **parameters: Any) -> tuple[ReplayTrainerNode, list, list]:
    """Start a trainer; return it with what it says."""
    statuses = graph.inbox(TrainingStatus, 'replay_trainer/status', 10)
    announced = graph.inbox(String, 'checkpoint', LATCHED_STATE)
    values = {'out': str(folder), 'config': str(settings), 'device': 'cpu', 'status_hz': 20.0, 'start_episodes': 2,
              **parameters}
    return node(graph, ReplayTrainerNode, **values), statuses, announced


def test_a_played_bag_trains_a_policy(graph: RosGraph, tmp_path: Path, settings: Path, bags: list[Path]) -> None:
    trainer, statuses, announced = train(graph, tmp_path / 'run', settings, steps=60, checkpoint_every=30,
                                         keep_checkpoints=1)
    graph.spin_until(lambda: statuses)
    assert (statuses[-1].state, statuses[-1].message) == (TrainingStatus.WAITING, '0 of 2 episodes')
    play(graph, *bags)
    graph.spin_until(lambda: statuses[-1].state == TrainingStatus.DONE, 120.0)
    assert [Path(text.data).name for text in announced] == ['step_000030', 'step_000060']
    status = statuses[-1]
    assert (status.step, status.episodes, status.frames, status.received, status.refused) == (60, 2, 24, 3, 1)
    assert 'episode_000002: its outcome is failure' in status.message
    assert status.checkpoint == announced[-1].data
    policy = load_checkpoint(Path(status.checkpoint), CONTRACT)
    assert policy.vocabulary.words == ('faucet', 'open', 'the')
    assert not (tmp_path / 'run' / 'checkpoints' / 'step_000030').exists()
    losses = [point.values['loss'] for point in trainer._training._trainer.points]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < 0.7 * losses[0]


def test_what_is_heard_from_the_player_is_what_the_bag_holds(graph: RosGraph, tmp_path: Path, settings: Path,
                                                             bags: list[Path]) -> None:
    trainer, _, _ = train(graph, tmp_path / 'run', settings, start_episodes=10)
    play(graph, bags[0], bags[2])
    graph.spin_until(lambda: len(trainer._buffer.episodes) == 2)
    for live, bag in zip(trainer._buffer.episodes, (bags[0], bags[2])):
        offline = read_episode(bag, CONTRACT)
        assert len(live) == 12
        for name in ('stamps', 'state', 'actions', 'actors'):
            np.testing.assert_array_equal(getattr(live, name), getattr(offline, name))
        for name, images in offline.images.items():
            np.testing.assert_array_equal(live.images[name], images)
        assert (live.instruction, live.task, live.outcome, live.source.name) == (
            offline.instruction, offline.task, offline.outcome, bag.name)


def test_a_run_is_resumed_and_a_new_one_does_not_overwrite_it(graph: RosGraph, tmp_path: Path, settings: Path,
                                                             bags: list[Path], capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / 'run'
    first, statuses, _ = train(graph, out, settings, steps=10)
    player = play(graph, *bags)
    graph.spin_until(lambda: statuses and statuses[-1].state == TrainingStatus.DONE)
    graph.remove(first)
    graph.remove(player)
    refused = graph.add(ReplayTrainerNode('refused', parameter_overrides=[Parameter('out', value=str(out))]))
    assert refused.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'holds a run already' in capfd.readouterr().err
    _, statuses, announced = train(graph, out, settings, steps=30, resume=True)
    play(graph, bags[0])
    graph.spin_until(lambda: statuses and statuses[-1].state == TrainingStatus.DONE)
    assert statuses[-1].step == 30
    assert all(not 0 < status.step < 10 for status in statuses)
    assert Path(announced[-1].data).name == 'step_000030'


def test_words_that_a_policy_does_not_know_are_told(graph: RosGraph, tmp_path: Path, settings: Path,
                                                   bags: list[Path]) -> None:
    strange = record(tmp_path / 'strange' / 'episode_000004', steps(12), {**MARKS, 'instruction': 'flush the toilet'})
    later = record(tmp_path / 'late' / 'episode_000005', steps(12), {**MARKS, 'instruction': 'close the tap'})
    trainer, statuses, _ = train(graph, tmp_path / 'run', settings, start_episodes=1, steps=10 ** 6,
                                 words=['close the tap'])
    player = play(graph, bags[0])
    graph.spin_until(lambda: statuses and statuses[-1].step > 0)
    graph.remove(player)
    play(graph, strange, later)
    graph.spin_until(lambda: statuses[-1].received == 3)
    assert (statuses[-1].refused, statuses[-1].episodes) == (1, 2)
    assert "unknown word 'flush'" in statuses[-1].message
    assert statuses[-1].state == TrainingStatus.TRAINING
    step = statuses[-1].step
    graph.spin_until(lambda: statuses[-1].step > step)
    assert trainer.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert trainer.trigger_activate() == TransitionCallbackReturn.SUCCESS
    graph.spin_until(lambda: statuses[-1].received == 2 and statuses[-1].step > step)
    assert (statuses[-1].state, statuses[-1].episodes) == (TrainingStatus.TRAINING, 2)


def test_messages_for_which_there_is_no_room_cost_the_episode_and_not_the_memory(
        graph: RosGraph, tmp_path: Path, settings: Path) -> None:
    bag = record(tmp_path / 'episode_000001', steps(12))
    trainer, statuses, _ = train(graph, tmp_path / 'run', settings)
    trainer._intake._room = 0
    play(graph, bag)
    graph.spin_until(lambda: statuses and statuses[-1].received == 1)
    assert 'faster than they could be decoded' in statuses[-1].message
    assert (statuses[-1].refused, statuses[-1].frames) == (1, 0)
