"""Small contracts, episodes and policies for the tests of the core; nothing here needs a bag or ROS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.episode import Episode
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.transforms import Statistics

INSTRUCTIONS = ('open the tap', 'close the tap')


def small_contract(history: int = 1, size: tuple[int, int] = (20, 20)) -> RobotContract:
    """Return Meta-World's contract with smaller pictures."""
    contract = RobotContract.load(find_contract('metaworld'))
    cameras = tuple(camera.model_copy(update={'size': size}) for camera in contract.cameras)
    return contract.model_copy(update={'cameras': cameras, 'history': history})


def make_episode(contract: RobotContract, length: int, instruction: str, seed: int) -> Episode:
    """Return random moments."""
    random = np.random.default_rng(seed)
    images = {camera.name: random.integers(0, 256, (length, *camera.size, camera.channels), dtype=np.uint8)
              for camera in contract.cameras}
    return Episode(np.arange(length) * contract.rates.policy_dt_ns, images,
                   random.normal(size=(length, contract.state_dim)).astype(np.float32),
                   random.normal(size=(length, contract.action_dim)).astype(np.float32), instruction, 'tap', 'success',
                   Path(f'episode_{seed}'))


def make_episodes(contract: RobotContract, count: int = 4, length: int = 9) -> list[Episode]:
    """Return episodes of both instructions in turn."""
    return [make_episode(contract, length, INSTRUCTIONS[index % 2], index) for index in range(count)]


def make_policy(contract: RobotContract, config: PolicyConfig | None = None, seed: int = 0) -> FlowVLA:
    """Return an untrained policy; every zero-initialised layer is shaken, so that all parts matter.

    The seed is that of the weights; the statistics are always the same.
    """
    random = np.random.default_rng(0)
    statistics = {'state': Statistics.of(random.normal(size=(50, contract.state_dim))),
                  'actions': Statistics.of(random.normal(size=(50, contract.action_dim)))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = FlowVLA.create(config or PolicyConfig.dummy(), contract, statistics,
                                Vocabulary.from_instructions(INSTRUCTIONS))
        shake(policy)
    return policy


def shake(module: torch.nn.Module) -> None:
    """Add noise to all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
