"""Settings of a training."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training.schedule import SCHEDULES

__all__ = ['ActorWeights', 'LoopConfig', 'OutcomeWeights', 'TrainConfig']

POSITIVE = ('steps', 'batch_size', 'accumulate', 'learning_rate', 'clip', 'validate_every', 'validation_batches',
            'checkpoint_every', 'checkpoint_minutes', 'log_every')
SHARES = ('weight_decay', 'final_rate', 'average', 'holdout')
NOT_NEGATIVE = ('warm_up', 'shift', 'state_noise', 'prefetch', 'patience', 'seed')


@dataclass(frozen=True)
class LoopConfig:
    """Says how something is trained, whatever it is.

    Args:
        steps: optimiser steps in all.
        batch_size: examples in each.
        accumulate: parts that a batch is cut into, one after another or in several processes; the result is the same.
        learning_rate: highest, after the warm-up.
        schedule: course of the rate, one of `flow_vla_core.training.schedule.SCHEDULES`.
        warm_up: steps over which the rate rises.
        final_rate: rate at the end, as a share of the highest.
        weight_decay: of AdamW, on matrices only.
        clip: largest norm of the gradient.
        average: decay of the exponential moving average of the weights; smaller while the training is young.
        spectral: largest spectral norm of the matrix of a linear layer or convolution; None does not bound it.
        half: run the networks in bfloat16 where that is safe.
        compile: let torch compile the networks; needs a C++ compiler.
        validate_every: steps between two validations.
        patience: validations without a better ``metric`` after which the training ends, its checkpoint being that of
            the best one; 0 goes on to the last step, whose weights are the checkpoint.
        metric: of the validation, the lower the better.
        checkpoint_every: steps between two checkpoints, at most.
        checkpoint_minutes: wall time between two checkpoints, at most.
        log_every: steps between two points of the curves.
        seed: of everything that is random.

    Raises:
        ConfigError: for a value out of range.

    Example:
        >>> LoopConfig(steps=100, schedule='one_cycle').batch_size
        64
    """

    steps: int = 20000
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 1e-3
    schedule: str = 'cosine'
    warm_up: int = 300
    final_rate: float = 0.02
    weight_decay: float = 0.001
    clip: float = 1.0
    average: float = 0.999
    spectral: float | None = None
    half: bool = False
    compile: bool = False
    validate_every: int = 500
    patience: int = 0
    metric: str = 'chunk_error'
    checkpoint_every: int = 1000
    checkpoint_minutes: float = 5.0
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            value = getattr(self, name)
            if name in POSITIVE and not value > 0:
                raise ConfigError(f'{name}: {value!r}; allowed: above 0')
            if name in SHARES and not 0 <= value < 1:
                raise ConfigError(f'{name}: {value!r}; allowed: from 0 to below 1')
            if name in NOT_NEGATIVE and value < 0:
                raise ConfigError(f'{name}: {value!r}; allowed: 0 or above')
        if self.batch_size % self.accumulate:
            raise ConfigError(f'accumulate: {self.accumulate}; batch_size {self.batch_size} is no multiple of it')
        if self.spectral is not None and not self.spectral > 0:
            raise ConfigError(f'spectral: {self.spectral!r}; allowed: above 0, or none')
        if self.schedule not in SCHEDULES:
            raise ConfigError(f'schedule: {self.schedule!r}; {closest(self.schedule, SCHEDULES)}')


@dataclass(frozen=True)
class ActorWeights:
    """Says how often windows are drawn by who acted in them, one beside the other.

    Args:
        person: a person, also one who took over.
        policy: the policy.
        nobody: nobody is known to have acted, as in demonstrations that were recorded without an executor.
        before: steps of the policy before a person took over that are not trained on; what a person wanted to end is no
            example.

    Raises:
        ConfigError: for a negative number.

    Example:
        >>> ActorWeights(policy=0.0).person
        1.0
    """

    person: float = 1.0
    policy: float = 1.0
    nobody: float = 1.0
    before: int = 0

    def __post_init__(self) -> None:
        _refuse_negative('actors', self)


@dataclass(frozen=True)
class OutcomeWeights:
    """Says how often windows are drawn by the outcome of their episode, one beside the other.

    Args:
        success: it was marked as a success.
        failure: it was marked as a failure.
        unknown: it was not marked.

    Raises:
        ConfigError: for a negative number.

    Example:
        >>> OutcomeWeights(failure=0.25).success
        1.0
    """

    success: float = 1.0
    failure: float = 1.0
    unknown: float = 1.0

    def __post_init__(self) -> None:
        _refuse_negative('outcomes', self)


def _refuse_negative(place: str, weights: ActorWeights | OutcomeWeights) -> None:
    for item in fields(weights):
        if not getattr(weights, item.name) >= 0:
            raise ConfigError(f'{place}.{item.name}: {getattr(weights, item.name)!r}; allowed: 0 or above')


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Says what policy is trained, and how; the loop's settings come first.

    Args:
        policy: sizes of the policy.
        shift: largest random shift of the images, pixels.
        state_noise: standard deviation of noise on the state, in its own standard deviations.
        balance: draw each instruction equally often, however many windows it has.
        actors: how often windows are drawn by who acted in them.
        outcomes: how often windows are drawn by the outcome of their episode.
        holdout: share of each instruction's episodes that is kept for validation.
        validation_batches: batches in each validation, at most.
        prefetch: batches that are fetched early, while the ones before are trained on.

    Raises:
        ConfigError: for a value out of range.

    Example:
        >>> TrainConfig(steps=100).policy.horizon
        12
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    shift: int = 4
    state_noise: float = 0.0
    balance: bool = True
    actors: ActorWeights = field(default_factory=ActorWeights)
    outcomes: OutcomeWeights = field(default_factory=OutcomeWeights)
    holdout: float = 0.05
    validation_batches: int = 8
    prefetch: int = 2
