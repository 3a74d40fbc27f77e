"""Asks a policy about recorded moments, so that its plans can be laid over what was done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import Bag
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.reading import read_episodes
from flow_vla_core.engine import Engine
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.types import Observation

__all__ = ['Plans', 'plan_bag']


@dataclass(frozen=True)
class Plans:
    """Holds what a policy would have done in place of what was done.

    Args:
        stamps: (N,) int64 times, ns.
        planned: (N, A) actions, each out of the newest plan.
        done: (N, A) actions that were commanded.
    """

    stamps: np.ndarray
    planned: np.ndarray
    done: np.ndarray


def plan_bag(checkpoint: Path, bag: Bag, contract: RobotContract | None, execute: int = 0, seed: int = 0) -> Plans:
    """Make a plan every few steps of the recorded episodes; nothing that is planned changes what is seen next.

    Args:
        checkpoint: of the policy.
        bag: opened.
        contract: of the robot; by default the checkpoint's own.
        execute: steps from one plan to the next; 0 takes half of a plan.
        seed: of the noise.

    Raises:
        CheckpointError: if the policy was made for another contract.
        DataError: if the bag holds no episode.
    """
    policy = load_checkpoint(checkpoint, contract)
    engine = Engine(policy, seed=seed)
    robot = contract or policy.contract
    parts = [_plan(engine, robot, episode, execute or max(policy.config.horizon // 2, 1))
             for episode in read_episodes(bag, robot)]
    return Plans(*(np.concatenate([getattr(part, key) for part in parts]) for key in ('stamps', 'planned', 'done')))


def _plan(engine: Engine, contract: RobotContract, episode: Episode, execute: int) -> Plans:
    planned = np.full_like(episode.actions, np.nan)
    first = contract.history - 1
    for start in range(first, len(episode), execute):
        seen = slice(start - first, start + 1)
        observation = Observation(int(episode.stamps[start]),
                                  {name: np.asarray(images[seen]) for name, images in episode.images.items()},
                                  episode.state[seen], episode.instruction)
        chunk = engine.act(observation).actions[:execute]
        planned[start:start + len(chunk)] = chunk[:len(episode) - start]
    kept = np.isfinite(planned).all(1)
    return Plans(episode.stamps[kept], planned[kept], episode.actions[kept])
