"""An untrained policy of the smallest size, saved as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flow_vla_core.contract import RobotContract
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.simulation.robots import tasks_of
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.transforms import Statistics

__all__ = ['save_dummy_policy']


def save_dummy_policy(folder: Path, contract: RobotContract) -> Path:
    """Write a checkpoint for a contract that knows the words of every task; return its folder."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    statistics = {'state': Statistics.of(random.normal(0, 0.2, (100, contract.state_dim))),
                  'actions': Statistics.of(random.uniform(-0.2, 0.2, (100, contract.action_dim)))}
    vocabulary = Vocabulary.from_instructions(list(tasks_of(contract).values()))
    save_checkpoint(folder, FlowVLA.create(PolicyConfig.dummy(), contract, statistics, vocabulary))
    return folder
