"""Training on episodes while they arrive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
import shutil
import threading
import time

import torch
from torch import Tensor

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import DataError, FlowVLAError
from flow_vla_core.policy import FlowVLA
from flow_vla_core.training.buffer import EpisodeBuffer
from flow_vla_core.training.build import build_policy
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.live_objective import LivePolicyObjective
from flow_vla_core.training.online_types import OnlineConfig, OnlineProgress, State
from flow_vla_core.training.precision import check_device
from flow_vla_core.training.report import Point
from flow_vla_core.training.run_folder import CHECKPOINT, check_folder
from flow_vla_core.training.spectral import folded
from flow_vla_core.training.trainer import FlowTrainer

__all__ = ['OnlineTraining']

CHECKPOINTS = 'checkpoints'
FRAMES = 'frames_received'  # of a run, from its first start on


class OnlineTraining:
    """Trains a policy on what a buffer holds, while episodes come in from another thread.

    Leaves in ``out`` what `FlowTrainer` leaves there, and ``checkpoints/step_NNNNNN``: each in a folder of its own that
    never changes, the last few of them.

    Args:
        contract: of the robot.
        buffer: for the episodes; those that it holds already count as received.
        config: how.
        out: folder of the run.
        device: where to train.
        on_checkpoint: gets the folder of each checkpoint that is written, in the thread of `run`.

    Raises:
        ConfigError: if ``out`` holds a run and is not to be gone on with, or the device can't do what is asked for.
        CheckpointError: if there is no policy to go on from, or it is not made for the contract.
    """

    def __init__(self, contract: RobotContract, buffer: EpisodeBuffer, config: OnlineConfig, out: Path,
                 device: str = 'cpu', on_checkpoint: Callable[[Path], None] = lambda folder: None) -> None:
        self.contract, self.config, self.out, self._device = contract, config, Path(out), device
        self._buffer, self._on_checkpoint = buffer, on_checkpoint
        check_device(config.train, device)
        self._policy, self._resumes = self._find_policy()
        self._trainer: FlowTrainer | None = None
        self._changed = threading.Condition()
        self._grown = False
        self._stopping = False
        self._state, self._failure, self._refusal = State.WAITING, '', ''
        self._counts = Counter(received=len(buffer.episodes))
        self._frames_received = 0 if self._resumes else buffer.frames  # a run counts each frame once
        self._losses: list[Tensor] = []
        self._loss = float('nan')
        self._asked, self._asked_step = time.monotonic(), 0
        self._checkpoint = ''

    def receive(self, episode: Episode) -> None:
        """Take in an episode; one that can't be used is counted and told of. May be called from any thread."""
        with self._changed:
            self._counts['received'] += 1
            try:
                self._check(episode)
                self._buffer.add(episode)
            except FlowVLAError as error:
                self._refuse(str(error))
                return
            self._frames_received += len(episode)
            self._grown = True
            self._changed.notify_all()

    def refuse(self, reason: str) -> None:
        """Count an episode that could not be made, and tell why. May be called from any thread."""
        with self._changed:
            self._counts['received'] += 1
            self._refuse(reason)

    def run(self) -> None:
        """Wait for episodes and train until all steps are made, `stop`, or an error, which `progress` tells."""
        try:
            if self._wait_until(lambda: len(self._buffer.episodes) >= self._needed):
                self._train()
        except FlowVLAError as error:
            self._failure, self._state = str(error), State.FAILED
        except Exception as error:
            self._failure, self._state = f'{type(error).__name__}: {error}', State.FAILED
            raise

    def stop(self) -> None:
        """Let `run` save and end after the step that it is at."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def progress(self) -> OnlineProgress:
        """Say how it goes. May be called from any one thread."""
        with self._changed:
            losses, self._losses = self._losses, []
            self._loss = torch.stack(losses).mean().item() if losses else self._loss
            trainer, step, now = self._trainer, self._trainer.step if self._trainer else 0, time.monotonic()
            speed = (step - self._asked_step) / max(now - self._asked, 1e-9)
            self._asked, self._asked_step = now, step
            return OnlineProgress(
                self._state, self._message(), step, self._loss,
                trainer.learning_rate if trainer else 0.0, speed, len(self._buffer.episodes), self._buffer.frames,
                self._counts['received'], self._counts['refused'], self._checkpoint)

    @property
    def _needed(self) -> int:
        return 1 if self._policy is not None else max(1, self.config.start_episodes)

    def _find_policy(self) -> tuple[FlowVLA | None, bool]:
        """Return a policy to begin with, and whether it is that of the run itself."""
        there = check_folder(self.out, self.config.resume)
        folder = self.out / CHECKPOINT if there else self.config.checkpoint
        return (None if folder is None else load_checkpoint(folder, self.contract)), there

    def _check(self, episode: Episode) -> None:
        if len(episode) < self.contract.history:
            raise DataError(f'{episode.source}: {len(episode)} frames, the policy sees {self.contract.history} at once')
        if self._policy is not None:
            self._policy.vocabulary.encode(episode.instruction)

    def _refuse(self, reason: str) -> None:
        self._counts['refused'] += 1
        self._refusal = reason

    def _message(self) -> str:
        if self._failure:
            return self._failure
        waiting = f'{len(self._buffer.episodes)} of {self._needed} episodes' if self._state == State.WAITING else ''
        refusal = f'refused: {self._refusal}' if self._refusal else ''
        return '; '.join(filter(None, (waiting, refusal)))

    def _wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait for something that episodes bring; return whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or ready())
            return not self._stopping

    def _train(self) -> None:
        trainer = self._begin()
        with self._changed:
            self._trainer, self._state = trainer, State.TRAINING
            self._asked, self._asked_step = time.monotonic(), trainer.step
        saved = trainer.step
        while trainer.step < trainer.config.steps and self._wait_until(self._may_step):
            self._exchange(trainer)
            self._step(trainer)
            if trainer.step % trainer.config.checkpoint_every == 0:
                saved = self._save(trainer)
        if saved != trainer.step:
            self._save(trainer)
        self._state = State.DONE if trainer.step >= trainer.config.steps else self._state

    def _begin(self) -> FlowTrainer:
        with self._changed:
            episodes = list(self._buffer.episodes)
            self._grown = False
            if self._policy is None:
                self._policy = build_policy(self.config.train, self.contract, episodes, words=self.config.words)
            policy = self._policy
        config = replace(self.config.train, policy=policy.config)
        objective = LivePolicyObjective(policy, self._windows(episodes, config), None, config)
        trainer = FlowTrainer(objective, config, self.out, self._device)
        if self._resumes:
            trainer.resume()
            with self._changed:
                self._frames_received += int(trainer.kept.get(FRAMES, 0))
        trainer.begin()
        return trainer

    def _windows(self, episodes: Sequence[Episode], config: TrainConfig) -> Windows:
        return Windows(episodes, config.policy.horizon, self.contract.history)

    def _may_step(self) -> bool:
        drawn = self._trainer.step * self._trainer.config.batch_size
        return not self.config.replay or drawn <= self.config.replay * self._frames_received

    def _exchange(self, trainer: FlowTrainer) -> None:
        with self._changed:
            if not self._grown:
                return
            episodes, self._grown = list(self._buffer.episodes), False
        known = [episode for episode in episodes if self._knows(episode)]
        trainer.objective.exchange(self._windows(known, trainer.config))

    def _knows(self, episode: Episode) -> bool:
        """Tell whether a policy knows the words of an episode that may have come before there was a policy."""
        try:
            self._policy.vocabulary.encode(episode.instruction)
        except FlowVLAError:
            return False
        return True

    def _step(self, trainer: FlowTrainer) -> None:
        began = time.monotonic()
        loss = trainer.train_step()
        trainer.seconds += time.monotonic() - began
        with self._changed:
            self._losses.append(loss)
        if values := trainer.loss_figures():
            trainer.points.append(Point(trainer.step, {**values, 'episodes': float(len(self._buffer.episodes))}))

    def _save(self, trainer: FlowTrainer) -> int:
        trainer.kept[FRAMES] = self._frames_received
        trainer.save()
        folder = self.out / CHECKPOINTS / f'step_{trainer.step:06d}'
        trainer.objective.save(folder, folded(trainer.average.module))
        self._checkpoint = str(folder)
        written = sorted((self.out / CHECKPOINTS).glob('step_*'), key=lambda path: int(path.name.removeprefix('step_')))
        for old in written[:-self.config.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)
        self._on_checkpoint(folder)
        return trainer.step
