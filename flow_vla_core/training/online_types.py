"""How a training goes along with episodes that arrive, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from flow_vla_core.errors import ConfigError
from flow_vla_core.training.config import TrainConfig

__all__ = ['OnlineConfig', 'OnlineProgress', 'State']


class State(IntEnum):
    """Numbers what a training from topics does; the same as in TrainingStatus.msg."""

    WAITING = 0
    TRAINING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True)
class OnlineConfig:
    """Says how a training goes along with episodes that arrive.

    Args:
        train: settings of the training; ``steps`` is its whole length.
        start_episodes: from so many on a policy is made, with their statistics and words; less than one is one.
        words: instructions whose words the policy is to know besides.
        checkpoint: folder of a policy to go on from, with its statistics and words; None makes a new one.
        resume: go on from what is in the folder of the run, if there is anything.
        keep_checkpoints: that are left in the folder of the run.
        replay: steps are made up to this number of times that each frame received was drawn on average; 0: no limit.

    Raises:
        ConfigError: for a number out of range.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    start_episodes: int = 5
    words: tuple[str, ...] = ()
    checkpoint: Path | None = None
    resume: bool = False
    keep_checkpoints: int = 3
    replay: float = 0.0

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1 or self.replay < 0:
            raise ConfigError(f'keep_checkpoints: {self.keep_checkpoints}, replay: {self.replay}; allowed: 1 or more, '
                              '0 or more')


@dataclass(frozen=True)
class OnlineProgress:
    """Says how a training goes.

    Args:
        state: what it does.
        message: why it waits or has failed, and which episode was refused last.
        step: optimiser steps made.
        loss: mean over the steps since this was last asked for, or what it was then; NaN before the first step.
        learning_rate: of the step to come.
        steps_per_second: over the time since this was last asked for.
        episodes: in the buffer.
        frames: in the buffer.
        received: episodes since the start, those included that have left the buffer.
        refused: episodes that could not be used.
        checkpoint: folder of the last one written, empty before.
    """

    state: State = State.WAITING
    message: str = ''
    step: int = 0
    loss: float = float('nan')
    learning_rate: float = 0.0
    steps_per_second: float = 0.0
    episodes: int = 0
    frames: int = 0
    received: int = 0
    refused: int = 0
    checkpoint: str = ''
