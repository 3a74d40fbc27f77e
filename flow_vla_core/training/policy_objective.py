"""The objective of a policy: windows of episodes as examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from flow_vla_core.training.mixture import Dataset, Mixture
from flow_vla_core.training.objective import Objective, digest
from flow_vla_core.training.samples import plot_samples
from flow_vla_core.types import Batch

__all__ = ['PolicyObjective']

METRICS = ('validation_loss', 'chunk_error')
SHOWN = 3  # moments in the picture

Examples = tuple[Batch, Tensor, Tensor]  # observations, actions (B, H, A) and mask (B, H)


class PolicyObjective(Objective):
    """Trains a policy on windows of episodes, with images shifted and states made noisy.

    Args:
        policy: is trained in place.
        train: windows to learn from.
        validation: windows of other episodes, or None.
        config: of the training; the loop's part of it goes to the trainer.
        datasets: that the episodes come from, with their weights.

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

    def __init__(self, policy: FlowVLA, train: Windows, validation: Windows | None, config: TrainConfig,
                 datasets: Sequence[Dataset] = ()) -> None:
        super().__init__(policy)
        self.config, self.datasets = config, tuple(datasets)
        self._use(train)
        self._validation, self._held = self._hold(validation)
        self._state_noise = config.state_noise * policy.normalise_state.scale.cpu()

    def __len__(self) -> int:
        return len(self._train.windows)

    @property
    def ahead(self) -> int:
        """Batches that are fetched early."""
        return self.config.prefetch

    @property
    def weights(self) -> Tensor | None:
        """(N,) how often each window is drawn, by dataset, instruction, outcome and actor."""
        return self.mixture.weights()

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `validate` returns, if there is something to validate on."""
        return () if self._validation is None else METRICS

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
        order = self._held[torch.randperm(len(self._held), generator=generator)]
        losses, errors = [], []
        for indices in order.split(self.config.batch_size)[:self.config.validation_batches]:
            batch, actions, mask = self._to_device(*self._validation.batch(indices))
            losses.append(module.loss(batch, actions, mask, generator))
            made = module.normalise_actions(module.sample(batch, generator=generator))
            errors.append(masked_mean((made - module.normalise_actions(actions)).abs(), mask))
        return dict(zip(METRICS, (torch.stack(losses).mean().item(), torch.stack(errors).mean().item())))

    def picture(self, path: Path, module: FlowVLA) -> None:
        """Draw chunks for a few moments of held-out episodes beside what was done."""
        if self._validation is not None:
            places = torch.linspace(0, len(self._held) - 1, 2 * SHOWN + 1)[1::2].long()  # not the end of an episode
            plot_samples(path, module, self._validation, self._held[places], self.device)

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
                 'datasets': [dataset.weight for dataset in self.datasets],
                 'episodes': len(windows.episodes), 'windows': len(windows),
                 'statistics': {name: asdict(group) for name, group in policy.statistics.items()}}
        if policy.student is not None:
            found['teacher'] = digest(*policy.student.teacher.state_dict().values())
        return found

    def describe(self) -> Mapping[str, Any]:
        """Count episodes, frames and windows."""
        held = self._validation
        return {'contract': self.module.contract.label, 'train': _count(self._train.windows),
                'validation': _count(held.windows) if held else None, 'words': list(self.module.vocabulary.words),
                'mixture': self.mixture.table()}

    def _use(self, windows: Windows) -> None:
        self.mixture = Mixture(windows, self.config, self.datasets)
        self._train = Feeder(windows, self.module.vocabulary, self.mixture.learned)

    def _hold(self, windows: Windows | None) -> tuple[Feeder | None, Tensor]:
        """Return a feeder of windows to validate on and the numbers of those that training would draw."""
        if windows is None:
            return None, torch.empty(0)
        mixture = Mixture(windows, self.config)
        used = mixture.used.nonzero().flatten()
        return (Feeder(windows, self.module.vocabulary, mixture.learned) if len(used) else None), used

    def _to_device(self, batch: Batch, actions: Tensor, mask: Tensor) -> Examples:
        return batch.to(self.device), actions.to(self.device), mask.to(self.device)


def _count(windows: Windows) -> dict[str, Any]:
    episodes = windows.episodes
    names = sorted({episode.instruction for episode in episodes})
    return {'episodes': len(episodes), 'frames': sum(map(len, episodes)), 'windows': len(windows),
            'episodes_of': {name: sum(e.instruction == name for e in episodes) for name in names}}
