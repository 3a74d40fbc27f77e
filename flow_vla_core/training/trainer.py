"""The training loop."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
import time

from rich.console import Console
import torch
from torch import Tensor, nn

from flow_vla_core.config import to_values
from flow_vla_core.errors import CheckpointError, ConfigError, InputError, TrainingError, closest
from flow_vla_core.training.average import Average
from flow_vla_core.training.batches import Batches, Shard
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.early_stop import best_of, validations_since_best
from flow_vla_core.training.objective import Objective
from flow_vla_core.training.precision import check_device
from flow_vla_core.training.progress import TrainingProgress
from flow_vla_core.training.report import Point, environment
from flow_vla_core.training.run_folder import CHECKPOINT, EVENTS, RESUME, SAMPLES, RunFolder
from flow_vla_core.training.schedule import SCHEDULES
from flow_vla_core.training.spectral import bound_spectral_norms, folded, follow_weights
from flow_vla_core.training.state import TrainingState
from flow_vla_core.training.world import World

__all__ = ['FlowTrainer']

MAY_CHANGE = ('steps', 'half', 'compile', 'prefetch', 'validate_every', 'validation_batches', 'checkpoint_every',
              'checkpoint_minutes', 'log_every')  # on resume; all else must be as it was


class FlowTrainer:
    """Trains any objective: AdamW with a schedule, clipped gradients, averaged weights, exact resume.

    Leaves in ``out`` what `RunFolder` and the README that it writes say. ``average.module`` has the averaged weights,
    ``points`` the curves, ``seconds`` the wall time; ``kept`` are numbers of whoever drives the steps one by one, which
    come back on `resume`. Several processes do the arithmetic of one: each computes the
    gradients of its shards of a batch, and all take the same step with their sum.

    Args:
        objective: what is trained on which examples.
        config: how.
        out: folder of the run; None writes nothing.
        device: where to train.
        console: where progress goes; None keeps quiet.
        world: the processes that train together; None is this one alone.

    Raises:
        ConfigError: if the device can't do what is asked for, or there is no such metric to be patient with.
        TrainingError: from `run`, if the loss stops being finite.

    Example:
        >>> from flow_vla_core.generators import FlowMatchingConfig
        >>> from flow_vla_core.networks import NetworkConfig, Sizes
        >>> from flow_vla_core.training.tensor_objectives import ChunkObjective
        >>> from flow_vla_core.types import Condition
        >>> generator = FlowMatchingConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> objective = ChunkObjective(generator, torch.randn(50, 4, 2), Condition(torch.randn(50, 3)))
        >>> trainer = FlowTrainer(objective, LoopConfig(steps=4, batch_size=8, log_every=2))
        >>> trainer.run()
        >>> [point.step for point in trainer.points]
        [2, 4]
    """

    def __init__(self, objective: Objective, config: LoopConfig, out: Path | None = None,
                 device: torch.device | str = 'cpu', console: Console | None = None,
                 world: World | None = None) -> None:
        self.objective, self.config, self.out = objective, config, None if out is None else Path(out)
        self.device, self.world = torch.device(device), world or World(device=device)
        self.console = console or Console(quiet=True, force_terminal=False)
        self._check()
        objective.to(self.device)
        self.module = objective.module.train()
        self.world.spread(self.module)
        if config.spectral is not None:
            bound_spectral_norms(self.module, config.spectral)
        self.average = Average(self.module, config.average)
        self.optimiser = _optimiser(self.module, config)
        self.step, self.seconds = 0, 0.0
        self.points: list[Point] = []
        self.kept: dict[str, float] = {}
        self._losses: list[Tensor] = []
        self.stopping = self._agreed = False
        self._saved = time.monotonic()
        self._folder = RunFolder(self.out if self.world.leads else None)
        self._batches = Batches(objective, config, self.world)
        self._state = TrainingState(self.module, self.average, self.optimiser)
        if config.compile:
            objective.compile()

    def run(self) -> None:
        """Train up to the configured number of steps, until `stop`, or until patience ends; then save."""
        config, began, before = self.config, time.monotonic(), self.seconds
        self.begin()
        with (TrainingProgress(config.steps, self.step, self.console) as progress, self._board() as board):
            while self.step < config.steps and not self._is_over():
                self.train_step()
                self.seconds = before + time.monotonic() - began
                progress.step(self.step)
                if values := self._figures():
                    self._note(values, board, progress)
                if self._due():
                    self._save_and_draw()
        self._save_and_draw()
        self.world.wait()

    def begin(self) -> None:
        """Write the settings, and where they are trained, if there is a folder for it; `run` does so itself."""
        self._folder.begin(to_values(self.config), self.device, self.world.size)

    def stop(self) -> None:
        """Make `run` end after the step that it is at, in all processes."""
        self.stopping = True

    def train_step(self) -> Tensor:
        """Do one step of the optimiser and return its loss."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._descend()
        norm = nn.utils.clip_grad_norm_(self._trained(), self.config.clip, foreach=True)
        if not torch.isfinite(norm):
            raise TrainingError(f'step {self.step}: loss {loss.item()}, norm of the gradient {norm.item()}; '
                                'try a smaller learning_rate')
        for group in self.optimiser.param_groups:
            group['lr'] = self.learning_rate
        self.optimiser.step()
        if self.config.spectral is not None:
            follow_weights(self.module)
        self.objective.after_step()
        self.average.update(self.module)
        self.step += 1
        self._losses.append(loss)
        return loss

    @property
    def learning_rate(self) -> float:
        """Rate of the step to come."""
        factor = SCHEDULES[(config := self.config).schedule]
        return config.learning_rate * factor(self.step, config.steps, config.warm_up, config.final_rate)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the averaged weights, each time on the same examples with the same noise."""
        return self.objective.validate(self.average.module, torch.Generator().manual_seed(self.config.seed))

    def save(self) -> None:
        """Write the averaged weights, all that is needed to resume, and the report, if there is a folder for it.

        With patience the averaged weights stay those of the best validation.
        """
        if not self._folder:
            return
        best = best_of(self.points, self.config.metric) if self.config.patience else None
        if best is None:
            self._keep()
        self._state.save(self._folder / RESUME, {'step': self.step, 'seconds': self.seconds,
                                                 'identity': self._identity(), 'kept': self.kept,
                                                 'losses': [loss.item() for loss in self._losses],
                                                 'points': [asdict(point) for point in self.points]})
        description = {**self.objective.describe(), 'config': to_values(self.config),
                       'environment': environment(self.device), 'processes': self.world.size,
                       'parameters': sum(parameter.numel() for parameter in self.module.parameters()),
                       'best': None if best is None else asdict(best)}
        self._folder.write(description, self.points, self.step, self.seconds)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: if that is missing, damaged, or of a training with other settings or data.
        """
        if self.out is None:
            raise CheckpointError('this training has no folder to go on from')
        numbers = self._state.load(self.out / RESUME)
        mine, theirs = self._identity(), numbers['identity']
        different = [f'{key}: {theirs.get(key)!r} then, {mine.get(key)!r} now' for key in theirs
                     if key not in MAY_CHANGE and mine.get(key) != theirs.get(key)]
        if different:
            raise CheckpointError(f'{self.out / RESUME}: of another training: ' + '; '.join(different))
        self.step, self.seconds = numbers['step'], numbers['seconds']
        self.points = [Point(**point) for point in numbers['points']]
        self.kept = numbers.get('kept', {})
        self._losses = [torch.tensor(loss, device=self.device) for loss in numbers.get('losses', [])]

    def _check(self) -> None:
        check_device(self.config, self.device, self.objective.module)
        self.world.check_shards(self.config.accumulate)
        if self.config.patience and self.config.metric not in self.objective.metrics:
            known = closest(self.config.metric, self.objective.metrics)
            raise ConfigError(f'patience: {self.config.patience}, but no validation gives the metric '
                              f'{self.config.metric!r}; {known}')

    def _keep(self) -> None:
        self.objective.save(self._folder / CHECKPOINT, folded(self.average.module))

    @torch.no_grad()
    def _save_and_draw(self) -> None:
        self.save()
        if self._folder:
            self.objective.picture(self._folder / SAMPLES, self.average.module)

    def _due(self) -> bool:
        minutes = (time.monotonic() - self._saved) / 60
        return self.step % self.config.checkpoint_every == 0 or minutes > self.config.checkpoint_minutes

    def _descend(self) -> Tensor:
        """Leave the gradient of the whole batch, over all processes, in the parameters; return the loss."""
        losses, error = [], None
        try:
            if self.step == 0 and self.world.size > 1:
                self._begin_alike()
            for shard in self._batches.shards(self.step):
                loss = self._loss(shard) / self.config.accumulate
                loss.backward()
                losses.append(loss.detach())
        except InputError as found:
            error = found
        loss = torch.stack(losses).sum() if losses else torch.tensor(torch.nan, device=self.device)
        if self.world.size > 1:
            loss, failures, stops = self.world.add_up(self._trained(), torch.stack([
                loss, loss.new_tensor(error is not None), loss.new_tensor(self.stopping)]))
            error = error or (InputError('the loss failed in another process') if failures else None)
            self._agreed = bool(stops)
        if error is not None:
            raise TrainingError(f'step {self.step}: {error}; try a smaller learning_rate') from error
        return loss

    def _begin_alike(self) -> None:
        """Show the first shard to all processes: some layers take their first weights from what they see first."""
        with torch.no_grad():
            self._loss(self._batches.load(0, 0))

    def _loss(self, shard: Shard) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half):
            return self.objective.loss(self.module, shard.examples, shard.generator)

    def _is_over(self) -> bool:
        if self.config.patience and self.config.patience <= validations_since_best(self.points, self.config.metric):
            return True
        return self.stopping if self.world.size == 1 else self._agreed

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group['params']]

    def loss_figures(self) -> dict[str, float]:
        """Return, at a step at which they are due, the mean loss since they were last due and the last rate."""
        if self.step % self.config.log_every and self.step != self.config.steps:
            return {}
        losses, self._losses = self._losses, []
        return {'loss': torch.stack(losses).mean().item(), 'learning_rate': self.optimiser.param_groups[0]['lr']}

    def _figures(self) -> dict[str, float]:
        """Return what is due at this step."""
        values = self.loss_figures()
        if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
            values |= self.world.share(self.validate() if self.world.leads else None)
        return values

    def _note(self, values: dict[str, float], board: object, progress: TrainingProgress) -> None:
        self.points.append(Point(self.step, values))
        if self.config.patience and self._folder and best_of(self.points, self.config.metric) is self.points[-1]:
            self._keep()
        progress.note(self.step, values)
        if board is not None:
            for name, value in values.items():
                board.add_scalar(name, value, self.step)

    def _board(self) -> AbstractContextManager:
        """Open TensorBoard's file, if there is a folder for it."""
        if not self._folder:
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter
        return SummaryWriter(str(self._folder / EVENTS), purge_step=self.step)

    def _identity(self) -> Mapping[str, object]:
        """Return what a training must share with the one that it resumes."""
        settings = {key: value for key, value in to_values(self.config).items() if key not in MAY_CHANGE}
        return _plain({**settings, **self.objective.identity()})


def _optimiser(module: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """Make AdamW over all that has a gradient; only matrices decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{'params': matrices, 'weight_decay': config.weight_decay}, {'params': others, 'weight_decay': 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def _plain(value: object) -> object:
    """Turn tuples into lists, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
