"""The objective of a policy whose windows change while it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flow_vla_core.data.windows import Windows
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.sampler import BatchSampler, LiveSampler

__all__ = ['LivePolicyObjective']

CHANGING = ('episodes', 'windows')


class LivePolicyObjective(PolicyObjective):
    """Trains a policy on windows that may be exchanged between two steps, as a buffer fills.

    Nothing is fetched early, so that each step sees the newest windows. A resumed training may begin with other
    windows.

    Args:
        policy: is trained in place.
        train: windows to begin with.
        validation: windows of other episodes, or None.
        config: of the training; the loop's part of it goes to the trainer.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from flow_vla_core.contract import RobotContract, find_contract
        >>> from flow_vla_core.data.episode import Episode
        >>> from flow_vla_core.policy import PolicyConfig
        >>> from flow_vla_core.training.build import build_policy
        >>> from flow_vla_core.training.config import TrainConfig
        >>> from flow_vla_core.training.trainer import FlowTrainer
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> images = {camera.name: np.zeros((9, *camera.size, 3), np.uint8) for camera in contract.cameras}
        >>> state, actions = np.zeros((9, contract.state_dim), np.float32), np.zeros((9, 4), np.float32)
        >>> episode = Episode(np.arange(9), images, state, actions, 'open the drawer', 'drawer', 'success', Path('bag'))
        >>> config = TrainConfig(policy=PolicyConfig.dummy(), steps=2, batch_size=3, schedule='constant')
        >>> policy = build_policy(config, contract, [episode])
        >>> objective = LivePolicyObjective(policy, Windows([episode], 4), None, config)
        >>> trainer = FlowTrainer(objective, config)
        >>> _ = trainer.train_step()
        >>> objective.exchange(Windows([episode, episode], 4))
        >>> _ = trainer.train_step()
        >>> len(objective)
        18
    """

    @property
    def ahead(self) -> int:
        """Nothing is fetched early."""
        return 0

    def exchange(self, train: Windows) -> None:
        """Go on with other windows, whose words the policy knows; call it between two steps."""
        self._use(train)

    def sampler(self, config: LoopConfig) -> BatchSampler:
        """Draw from the windows that are there."""
        return LiveSampler(lambda: len(self), config.batch_size, config.seed, lambda: self.weights)

    def identity(self) -> Mapping[str, Any]:
        """Name what stays."""
        return {key: value for key, value in super().identity().items() if key not in CHANGING}
