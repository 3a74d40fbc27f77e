"""How often windows are drawn: datasets, instructions, outcomes and actors, alone and together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flow_vla_core.data.episode import Episode
from flow_vla_core.data.windows import Windows
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.training.config import ActorWeights, OutcomeWeights, TrainConfig
from flow_vla_core.training.feeder import Feeder
from flow_vla_core.training.mixture import Dataset, Mixture, choose_dataset, frame_weights
from flow_vla_core.training.sampler import LiveSampler, Sampler
from flow_vla_core.types import Actor

N, P, H = Actor.NOBODY, Actor.POLICY, Actor.PERSON
PLAIN = TrainConfig(balance=False)
A, B = Dataset(Path('a')), Dataset(Path('b'))


def episode(source: str, length: int, words: str = 'go', outcome: str = 'success', actors: list[int] | None = None):
    """Return an episode without images."""
    row = np.zeros((length, 2), np.float32)
    who = None if actors is None else np.array(actors, np.uint8)
    return Episode(np.arange(length), {}, row, row, words, '', outcome, Path(source), actors=who)


def shares(mixture: Mixture, groups: np.ndarray) -> list[float]:
    """Return how much of 20,000 draws each group gets."""
    sampler = Sampler(len(mixture.windows), 20000, 0, mixture.weights())
    drawn = np.bincount(groups[sampler.batch(0).numpy()], minlength=groups.max() + 1)
    return (drawn / drawn.sum()).tolist()


def of_episode(windows: Windows, values: list[int]) -> np.ndarray:
    """Give each window the value of its episode."""
    return np.array(values)[windows.episode_of]


def test_without_weights_nothing_is_weighed() -> None:
    windows = Windows([episode('a/1', 9), episode('b/1', 3, actors=[P, H, N])], 4)
    assert Mixture(windows, PLAIN, [A, B]).weights() is None


def test_datasets_are_drawn_in_the_ratio_of_their_weights_however_large_they_are() -> None:
    windows = Windows([episode('a/1', 90), episode('a/2', 7), episode('b/1', 3)], 4)
    mixture = Mixture(windows, PLAIN, [Dataset(Path('a')), Dataset(Path('b'), 3.0)])
    assert shares(mixture, of_episode(windows, [0, 0, 1])) == pytest.approx([0.25, 0.75], abs=0.015)
    assert [(each['name'], each['windows']) for each in mixture.table()['datasets']] == [('a', 97), ('b', 3)]
    assert [each['share'] for each in mixture.table()['datasets']] == pytest.approx([0.25, 0.75])


def test_instructions_are_balanced_within_each_dataset_that_is_weighed() -> None:
    windows = Windows([episode('a/1', 30, 'x'), episode('a/2', 10, 'y'), episode('b/1', 5, 'y')], 4)
    config = replace(PLAIN, balance=True)
    weighed = Mixture(windows, config, [Dataset(Path('a'), 1.0), Dataset(Path('b'), 2.0)])
    assert shares(weighed, of_episode(windows, [0, 1, 2])) == pytest.approx([1 / 6, 1 / 6, 2 / 3], abs=0.015)
    plain = Mixture(windows, config, [A, B])
    assert shares(plain, of_episode(windows, [0, 1, 2])) == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.015)


def test_actors_and_outcomes_are_weighed_within_an_instruction_that_is_balanced() -> None:
    windows = Windows([episode('a/1', 4, 'x', actors=[N, P, H, H]), episode('a/2', 8, 'x', 'failure'),
                       episode('a/3', 2, 'y')], 4)
    config = TrainConfig(actors=ActorWeights(person=2.0, policy=0.0), outcomes=OutcomeWeights(failure=0.5))
    groups = np.concatenate([[0, 1, 2, 3], np.full(8, 4), np.full(2, 5)])
    expected = np.array([1, 0, 2, 2, 8 * 0.5]) / 9 / 2
    assert shares(Mixture(windows, config), groups) == pytest.approx([*expected, 0.5], abs=0.015)
    table = {each['name']: each for each in Mixture(windows, config).table()['actors']}
    assert [table[name]['windows'] for name in ('nobody', 'policy', 'person')] == [11, 1, 2]
    assert table['policy']['share'] == 0 and table['person']['share'] == pytest.approx(2 / 9)


def test_a_group_that_is_not_drawn_leaves_its_share_to_the_others() -> None:
    windows = Windows([episode('a/1', 4, 'x', actors=[P] * 4), episode('a/2', 4, 'y')], 4)
    config = TrainConfig(actors=ActorWeights(policy=0.0))
    assert shares(Mixture(windows, config), of_episode(windows, [0, 1])) == [0.0, 1.0]
    with pytest.raises(DataError, match='4 examples, none with a weight above 0'):
        Sampler(4, 2, 0, Mixture(Windows(windows.episodes[:1], 4), config).weights())


def test_what_came_before_a_person_took_over_is_left_out() -> None:
    actors = np.array([P, P, P, P, H, H, P, H, N, H], np.uint8)
    weights = frame_weights(actors, ActorWeights(person=2.0, policy=1.0, nobody=0.5, before=3))
    assert weights.tolist() == [1, 0, 0, 0, 2, 2, 0, 2, 0.5, 2]
    assert frame_weights(actors, ActorWeights()).tolist() == [1.0] * 10


def test_a_chunk_counts_up_to_the_first_action_that_is_not_learned() -> None:
    windows = Windows([episode('a/1', 6, actors=[H, H, P, H, H, H])], 3)
    mixture = Mixture(windows, TrainConfig(actors=ActorWeights(policy=0.0)))
    assert mixture.used.tolist() == [True, True, False, True, True, True]
    feeder = Feeder(windows, Vocabulary.from_instructions(['go']), mixture.learned)
    assert feeder.batch(torch.arange(6))[2].long().tolist() == [
        [1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert Mixture(windows, TrainConfig()).learned is None


def test_windows_with_a_history_are_weighed_by_their_first_action() -> None:
    windows = Windows([episode('a/1', 2), episode('a/2', 4, actors=[P, P, H, P])], 2, history=2)
    config = replace(PLAIN, actors=ActorWeights(policy=0.0))
    assert Mixture(windows, config).used.tolist() == [True, False, True, False]


def test_datasets_are_named_by_folder_and_weight(tmp_path: Path) -> None:
    assert Dataset.parse('some/bags') == Dataset(Path('some/bags'))
    assert Dataset.parse('some=thing/bags=0.5') == Dataset(Path('some=thing/bags'), 0.5)
    (tmp_path / 'run=3').mkdir()
    assert Dataset.parse(str(tmp_path / 'run=3')) == Dataset(tmp_path / 'run=3')
    for text, message in (('bags=0', 'bags=0: the weight'), ('bags=-1', 'above 0'), ('bags=nan', 'above 0'),
                          ('bags=much', "'much' is no weight")):
        with pytest.raises(ConfigError, match=message):
            Dataset.parse(text)
    assert [choose_dataset(Path(source), [A, B]) for source in ('a/x', 'b/y/z')] == [0, 1]


@pytest.mark.parametrize('make, message', [
    (lambda: ActorWeights(person=-1.0), 'actors.person: -1.0'), (lambda: ActorWeights(before=-1), 'actors.before: -1'),
    (lambda: OutcomeWeights(unknown=float('nan')), 'outcomes.unknown: nan')])
def test_weights_below_0_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_step_names_its_weighted_batch() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    sampler, again = Sampler(5, 4000, 0, weights), Sampler(5, 4000, 0, weights)
    drawn = sampler.batch(7)
    assert torch.equal(drawn, again.batch(7)) and not torch.equal(drawn, again.batch(8))
    assert torch.bincount(drawn, minlength=5).tolist()[::2] == [0, 0, 0]
    assert (drawn == 3).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_a_growing_buffer_is_drawn_from_as_it_is() -> None:
    buffer: list[float] = []
    sampler = LiveSampler(lambda: len(buffer), 3000, 0, lambda: torch.tensor(buffer))
    with pytest.raises(DataError, match='step 0: no examples'):
        sampler.batch(0)
    buffer += [1.0, 0.0]
    assert sampler.batch(0).unique().tolist() == [0]
    buffer += [1.0]
    drawn = sampler.batch(0)
    assert drawn.unique().tolist() == [0, 2] and torch.equal(drawn, sampler.batch(0))
    assert (drawn == 2).double().mean().item() == pytest.approx(0.5, abs=0.04)
