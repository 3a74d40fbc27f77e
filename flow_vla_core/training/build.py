"""Untrained policies, ready to learn from some episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.transforms import Statistics

__all__ = ['build_policy', 'seeded']


def build_policy(config: TrainConfig, contract: RobotContract, episodes: Sequence[Episode],
                 teacher: FlowVLA | None = None, pretrained: FlowVLA | None = None,
                 words: Sequence[str] = ()) -> FlowVLA:
    """Make a policy to be trained, with the statistics and the words of the episodes, or with those of its teacher.

    One that begins as a pretrained policy keeps that policy's statistics, which its weights have learned with, and its
    words; words that are new follow them.

    Args:
        config: of the training; the seed gives the weights.
        contract: of the robot.
        episodes: to be trained on.
        teacher: for a family that learns from one.
        pretrained: whose weights are learned on; not together with a teacher.
        words: further instructions whose words the policy is to know, without a teacher.

    Raises:
        ConfigError: if teacher or pretrained policy does not fit; names the setting.
    """
    statistics, vocabulary = _describe(episodes, words)
    if teacher is not None:
        statistics, vocabulary = teacher.statistics, teacher.vocabulary
    if pretrained is not None:
        statistics, vocabulary = pretrained.statistics, pretrained.vocabulary.with_words(vocabulary.words)
    with seeded(config.seed):
        policy = FlowVLA.create(config.policy, contract, statistics, vocabulary)
        if teacher is not None:
            policy.learn_from(teacher)
        if pretrained is not None:
            policy.begin_as(pretrained)
    return policy


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let the global source of randomness, which gives weights, begin with a seed; then put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _describe(episodes: Sequence[Episode], words: Sequence[str]) -> tuple[dict[str, Statistics], Vocabulary]:
    statistics = {name: Statistics.of(torch.cat([torch.from_numpy(getattr(episode, name)) for episode in episodes]))
                  for name in ('state', 'actions')}
    return statistics, Vocabulary.from_instructions([*(episode.instruction for episode in episodes), *words])
