"""The training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
import time

from rich.console import Console
import torch
from torch import Tensor, nn

from flow_vla_core.config import to_values
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import CheckpointError, InputError, TrainingError
from flow_vla_core.generators.base import masked_mean
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.average import Average
from flow_vla_core.training.checkpoint import save_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.feeder import Feeder
from flow_vla_core.training.progress import TrainingProgress
from flow_vla_core.training.report import Point, describe, write_report
from flow_vla_core.training.sampler import Sampler
from flow_vla_core.training.schedule import warm_up_cosine
from flow_vla_core.training.state import TrainingState
from flow_vla_core.types import Batch

__all__ = ['FlowTrainer']

CHECKPOINT, RESUME = 'checkpoint', 'resume'
MAY_CHANGE = ('steps', 'half', 'compile', 'validate_every', 'validation_batches', 'checkpoint_every',
              'checkpoint_minutes', 'log_every')  # on resume; all else must be as it was


class FlowTrainer:
    """Trains a policy: AdamW with warm-up and cosine, clipped gradients, averaged weights, exact resume.

    Leaves in ``out``: ``checkpoint`` (averaged weights, for use), ``resume`` (to go on from), ``report.json``,
    ``curves.png`` and TensorBoard's ``events``.

    Args:
        policy: is trained in place.
        config: how.
        train: windows to learn from.
        validation: windows of other episodes, or None.
        out: folder of the run.
        device: where to train.
        console: where progress goes.

    Raises:
        TrainingError: from `run`, if the loss stops being finite.
    """

    def __init__(self, policy: FlowVLA, config: TrainConfig, train: Windows, validation: Windows | None, out: Path,
                 device: str = 'cpu', console: Console | None = None) -> None:
        self.policy, self.config, self.out = policy.to(device).train(), config, Path(out)
        self.device, self.console = torch.device(device), console or Console()
        self.average = Average(policy, config.average)
        self.optimiser = _optimiser(policy, config)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.seconds = 0, 0.0
        self.points: list[Point] = []
        self.stopping = False
        self._saved = time.monotonic()
        self._train = Feeder(train, policy.vocabulary)
        self._validation = Feeder(validation, policy.vocabulary) if validation else None
        self._sampler = Sampler(self._train.groups, config.batch_size, config.seed, config.balance)
        self._state_noise = config.state_noise * policy.normalise_state.scale.cpu()
        self._state = TrainingState(policy, self.average, self.optimiser, self.generator)
        self._description = describe(policy, config, train, validation)
        if config.compile:
            _compile(policy)

    def run(self) -> None:
        """Train up to the configured number of steps, or until `stop`; then save."""
        from torch.utils.tensorboard import SummaryWriter
        config, began = self.config, time.monotonic()
        before, losses = self.seconds, []
        with (TrainingProgress(config.steps, self.step, self.console) as progress,
              SummaryWriter(str(self.out / 'events'), purge_step=self.step) as board):
            while self.step < config.steps and not self.stopping:
                losses.append(self.train_step())
                self.seconds = before + time.monotonic() - began
                progress.step(self.step)
                if values := self._figures(losses):
                    self._note(values, board, progress)
                if self._due():
                    self.save()
        self.save()

    def stop(self) -> None:
        """Make `run` end after the step that it is at."""
        self.stopping = True

    def train_step(self) -> Tensor:
        """Do one step of the optimiser and return its loss."""
        config = self.config
        batch, actions, mask = self._train.augmented(self._sampler.batch(self.step), config.shift, self._state_noise,
                                                     self.generator)
        try:
            loss = self._loss(self.policy, batch.to(self.device), actions.to(self.device), mask.to(self.device),
                              self.generator)
        except InputError as error:
            raise TrainingError(f'step {self.step}: {error}; try a smaller learning_rate') from error
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), config.clip, foreach=True)
        if not torch.isfinite(norm):
            raise TrainingError(f'step {self.step}: loss {loss.item()}, norm of the gradient {norm.item()}; '
                                'try a smaller learning_rate')
        for group in self.optimiser.param_groups:
            group['lr'] = self.learning_rate
        self.optimiser.step()
        self.average.update(self.policy)
        self.step += 1
        return loss.detach()

    @property
    def learning_rate(self) -> float:
        """Rate of the step to come."""
        config = self.config
        return config.learning_rate * warm_up_cosine(self.step, config.steps, config.warm_up, config.final_rate)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the averaged policy on held-out episodes, each time on the same windows with the same noise.

        ``validation_loss`` is the training's loss, ``chunk_error`` the mean distance of a sampled chunk from what was
        done, in normalised units.
        """
        if self._validation is None:
            return {}
        policy, size = self.average.module, self.config.batch_size
        generator = torch.Generator().manual_seed(self.config.seed)
        order = torch.randperm(len(self._validation.windows), generator=generator)
        losses, errors = [], []
        for indices in order.split(size)[:self.config.validation_batches]:
            batch, actions, mask = self._validation.batch(indices)
            batch, actions, mask = batch.to(self.device), actions.to(self.device), mask.to(self.device)
            losses.append(self._loss(policy, batch, actions, mask, generator))
            made = policy.normalise_actions(policy.sample(batch, generator=generator))
            errors.append(masked_mean((made - policy.normalise_actions(actions)).abs(), mask))
        return {'validation_loss': torch.stack(losses).mean().item(), 'chunk_error': torch.stack(errors).mean().item()}

    def save(self) -> None:
        """Write the averaged policy, all that is needed to resume, and the report."""
        save_checkpoint(self.out / CHECKPOINT, self.average.module)
        self._state.save(self.out / RESUME, {'step': self.step, 'seconds': self.seconds, 'identity': self._identity(),
                                             'points': [asdict(point) for point in self.points]})
        write_report(self.out, self._description, self.points, self.step, self.seconds)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: if that is missing, damaged, or of a training with other settings or data.
        """
        numbers = self._state.load(self.out / RESUME)
        mine, theirs = self._identity(), numbers['identity']
        different = [f'{key}: {theirs.get(key)!r} then, {mine.get(key)!r} now' for key in theirs
                     if mine.get(key) != theirs.get(key)]
        if different:
            raise CheckpointError(f'{self.out / RESUME}: of another training: ' + '; '.join(different))
        self.step, self.seconds = numbers['step'], numbers['seconds']
        self.points = [Point(**point) for point in numbers['points']]

    def _due(self) -> bool:
        minutes = (time.monotonic() - self._saved) / 60
        return self.step % self.config.checkpoint_every == 0 or minutes > self.config.checkpoint_minutes

    def _loss(self, policy: FlowVLA, batch: Batch, actions: Tensor, mask: Tensor,
              generator: torch.Generator) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half):
            return policy.loss(batch, actions, mask, generator)

    def _figures(self, losses: list[Tensor]) -> dict[str, float]:
        """Return what is due at this step, and empty ``losses`` then."""
        config, values = self.config, {}
        last = self.step == config.steps
        if self.step % config.log_every == 0 or last:
            values |= {'loss': torch.stack(losses).mean().item(), 'learning_rate': self.optimiser.param_groups[0]['lr']}
            losses.clear()
        if self.step % config.validate_every == 0 or last:
            values |= self.validate()
        return values

    def _note(self, values: dict[str, float], board: object, progress: TrainingProgress) -> None:
        self.points.append(Point(self.step, values))
        progress.note(self.step, values)
        for name, value in values.items():
            board.add_scalar(name, value, self.step)

    def _identity(self) -> Mapping[str, object]:
        """Return what a training must share with the one that it resumes."""
        settings = {key: value for key, value in to_values(self.config).items() if key not in MAY_CHANGE}
        windows = self._train.windows
        return _plain({**settings, 'contract': self.policy.contract.label, 'words': self.policy.vocabulary.words,
                       'episodes': len(windows.episodes), 'windows': len(windows),
                       'statistics': {name: asdict(group) for name, group in self.policy.statistics.items()}})


def _optimiser(policy: FlowVLA, config: TrainConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in policy.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in policy.parameters() if parameter.ndim <= 1]
    groups = [{'params': matrices, 'weight_decay': config.weight_decay}, {'params': others, 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _compile(policy: FlowVLA) -> None:
    """Compile the heavy parts in place; what draws random numbers stays as it is."""
    networks = [module for name, module in policy.generator.named_modules() if name.split('.')[-1] == 'network']
    for module in (*policy.cameras.values(), *networks):
        module.compile()


def _plain(value: object) -> object:
    """Turn tuples into lists, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
