"""The objective of a policy: windows of episodes as examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flow_vla_core.data.windows import Windows
from flow_vla_core.generators.base import masked_mean
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.feeder import Feeder
from flow_vla_core.training.objective import Objective, digest
from flow_vla_core.training.sampler import balanced
from flow_vla_core.types import Batch

__all__ = ['PolicyObjective']

Examples = tuple[Batch, Tensor, Tensor]  # observations, actions (B, H, A) and mask (B, H)


class PolicyObjective(Objective):
    """Trains a policy on windows of episodes, with images shifted and states made noisy.

    Args:
        policy: is trained in place.
        train: windows to learn from.
        validation: windows of other episodes, or None.
        config: of the training; the loop's part of it goes to the trainer.

    Example:
        >>> import numpy as np
        >>> from flow_vla_core.contract import RobotContract, find_contract
        >>> from flow_vla_core.data.episode import Episode
        >>> from flow_vla_core.policy import PolicyConfig
        >>> from flow_vla_core.training.build import build_policy
        >>> from flow_vla_core.training.trainer import FlowTrainer
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> images = {camera.name: np.zeros((9, *camera.size, 3), np.uint8) for camera in contract.cameras}
        >>> state, actions = np.zeros((9, contract.state_dim), np.float32), np.zeros((9, 4), np.float32)
        >>> episode = Episode(np.arange(9), images, state, actions, 'open the drawer', 'drawer', 'success', Path('bag'))
        >>> config = TrainConfig(policy=PolicyConfig.dummy(), steps=2, batch_size=3)
        >>> policy = build_policy(config, contract, [episode])
        >>> trainer = FlowTrainer(PolicyObjective(policy, Windows([episode], horizon=4), None, config), config)
        >>> trainer.run()
        >>> trainer.average.module.sample(policy.fake_batch(2)[0]).shape
        torch.Size([2, 4, 4])
    """

    module: FlowVLA

    def __init__(self, policy: FlowVLA, train: Windows, validation: Windows | None, config: TrainConfig) -> None:
        super().__init__(policy)
        self.config = config
        self._train = Feeder(train, policy.vocabulary)
        self._validation = Feeder(validation, policy.vocabulary) if validation else None
        self._state_noise = config.state_noise * policy.normalise_state.scale.cpu()

    def __len__(self) -> int:
        return len(self._train.windows)

    @property
    def ahead(self) -> int:
        """Batches that are fetched early."""
        return self.config.prefetch

    @property
    def weights(self) -> Tensor | None:
        """(N,) by which each instruction is drawn equally often, if that is asked for."""
        return balanced(self._train.groups) if self.config.balance else None

    def load(self, indices: Tensor, generator: torch.Generator) -> Examples:
        """Gather windows, shift their images and add noise to their states."""
        return self._train.augmented(indices, self.config.shift, self._state_noise, generator)

    def loss(self, module: FlowVLA, examples: Examples, generator: torch.Generator) -> Tensor:
        """Return the policy's loss."""
        return module.loss(*self._to_device(*examples), generator)

    def validate(self, module: FlowVLA, generator: torch.Generator) -> dict[str, float]:
        """Measure on held-out episodes, in the precision in which the policy acts.

        ``validation_loss`` is the training's loss, ``chunk_error`` the mean distance of a sampled chunk from what was
        done, in normalised units.
        """
        if self._validation is None:
            return {}
        order = torch.randperm(len(self._validation.windows), generator=generator)
        losses, errors = [], []
        for indices in order.split(self.config.batch_size)[:self.config.validation_batches]:
            batch, actions, mask = self._to_device(*self._validation.batch(indices))
            losses.append(module.loss(batch, actions, mask, generator))
            made = module.normalise_actions(module.sample(batch, generator=generator))
            errors.append(masked_mean((made - module.normalise_actions(actions)).abs(), mask))
        return {'validation_loss': torch.stack(losses).mean().item(), 'chunk_error': torch.stack(errors).mean().item()}

    def after_step(self) -> None:
        """Tell the generator."""
        self.module.generator.after_step()

    def compile(self) -> None:
        """Let torch compile the networks and the cameras' encoders."""
        super().compile()
        for camera in self.module.cameras.values():
            camera.compile()

    def save(self, folder: Path, module: FlowVLA) -> None:
        """Write a checkpoint that `load_checkpoint` reads."""
        save_checkpoint(folder, module)

    def identity(self) -> Mapping[str, Any]:
        """Name the robot, the words, the examples and, of a student, the teacher."""
        policy, windows = self.module, self._train.windows
        found = {'contract': policy.contract.label, 'words': list(policy.vocabulary.words),
                 'episodes': len(windows.episodes), 'windows': len(windows),
                 'statistics': {name: asdict(group) for name, group in policy.statistics.items()}}
        if policy.student is not None:
            found['teacher'] = digest(*policy.student.teacher.state_dict().values())
        return found

    def describe(self) -> Mapping[str, Any]:
        """Count episodes, frames and windows."""
        held = self._validation
        return {'contract': self.module.contract.label, 'train': _count(self._train.windows),
                'validation': _count(held.windows) if held else None, 'words': list(self.module.vocabulary.words)}

    def _to_device(self, batch: Batch, actions: Tensor, mask: Tensor) -> Examples:
        return batch.to(self.device), actions.to(self.device), mask.to(self.device)


def _count(windows: Windows) -> dict[str, Any]:
    episodes = windows.episodes
    names = sorted({episode.instruction for episode in episodes})
    return {'episodes': len(episodes), 'frames': sum(map(len, episodes)), 'windows': len(windows),
            'episodes_of': {name: sum(e.instruction == name for e in episodes) for name in names}}
