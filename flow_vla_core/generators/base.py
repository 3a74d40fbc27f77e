"""What every way to make action chunks has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.checks import all_finite
from flow_vla_core.errors import ConfigError, InputError, TrainingError
from flow_vla_core.generators.realtime import Guide
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['Continuing', 'FamilyConfig', 'Generator', 'Guidable', 'LikelihoodGenerator', 'Student', 'begin_with',
           'masked_mean', 'repeat', 'squared_error']


@dataclass(frozen=True)
class FamilyConfig(ABC):
    """Declares the settings of one family; each has a field ``family`` with its name, which no caller sets."""

    @abstractmethod
    def build(self, sizes: Sizes, network: NetworkConfig) -> Generator:
        """Make an untrained generator.

        Args:
            sizes: of chunk and condition.
            network: which network it is to use; a family that needs several makes each of this kind.

        Raises:
            ConfigError: for a setting that is out of range.
        """

    def kept(self, action_dim: int) -> tuple[int, ...]:
        """Return which of the A numbers of an action are learned as they are, where the others are normalised."""
        return ()

    @classmethod
    def dummy(cls, sizes: Sizes) -> FamilyConfig:
        """Return the smallest settings that work for these sizes, for tests."""
        return cls()

    @classmethod
    def fake_actions(cls, sizes: Sizes, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw chunks (B, H, A) of the kind that the family learns, for tests."""
        return torch.randn(batch, sizes.horizon, sizes.action_dim, generator=generator)


class Generator(nn.Module, ABC):
    """Declares how normalised chunks (B, H, A) are learned and made; it knows no camera and no unit.

    `loss` and `sample` check what they are given and hand it to the family's `_loss` and `_sample`.

    Args:
        sizes: of chunk and condition.
        steps: effort of a sample, the family's own.

    Raises:
        ConfigError: for fewer than one step.
    """

    def __init__(self, sizes: Sizes, steps: int = 1) -> None:
        super().__init__()
        self.sizes, self.steps = sizes, steps
        _check_steps(steps)

    def loss(self, actions: Tensor, condition: Condition, mask: Tensor | None = None,
             generator: torch.Generator | None = None) -> Tensor:
        """Return the training loss, a scalar.

        Args:
            actions: (B, H, A).
            condition: of the same B.
            mask: (B, H) bool, false for actions that don't count.
            generator: source of randomness.

        Raises:
            InputError: for other shapes, or for NaN or infinity.
        """
        self._check(actions, condition)
        if mask is not None and mask.shape != actions.shape[:2]:
            raise InputError(f'mask: shape {tuple(mask.shape)}; allowed: {tuple(actions.shape[:2])}')
        return self._loss(actions, condition, mask, generator)

    def sample(self, condition: Condition, *, noise: Tensor | None = None, steps: int | None = None,
               prefix: Tensor | None = None, guide: Guide | None = None,
               generator: torch.Generator | None = None) -> Tensor:
        """Make one chunk for each condition: (B, H, A).

        Args:
            condition: what to answer.
            noise: (B, H, A) to begin from; drawn if not given.
            steps: effort; None takes the generator's own.
            prefix: (B, D, A) actions that the chunk begins with, D below H; the rest is made to follow them where the
                family can.
            guide: what is left of the plan in force, which the chunk is led to go on from; not together with a prefix.
            generator: source of randomness.

        Raises:
            InputError: for other shapes; with a guide, inside `torch.inference_mode`.
            ConfigError: for fewer than one step, or a guide that the family can't follow.
        """
        self._check_condition(condition)
        noise = self._begin(condition, noise, generator)
        steps = self.steps if steps is None else steps
        _check_steps(steps)
        if guide is not None:
            return self._follow(guide, prefix, condition, noise, steps, generator)
        if prefix is not None and (prefix.ndim != 3 or prefix[:, :0].shape != noise[:, :0].shape
                                   or prefix.shape[1] >= noise.shape[1]):
            raise InputError(f'prefix: shape {tuple(prefix.shape)}; allowed: ({len(noise)}, less than '
                             f'{noise.shape[1]}, {noise.shape[2]})')
        return self._sample(condition, noise, steps, None if prefix is None else prefix.to(noise), generator)

    @property
    def guidable(self) -> bool:
        """Whether chunks can be led by a `Guide`."""
        return isinstance(self, Guidable)

    @property
    def is_fixed(self) -> bool:
        """Whether a sample surely takes the same operations whatever the numbers are, so that it can be recorded."""
        return False

    def after_step(self) -> None:
        """Hear that the optimiser has made a step; a family with averaged targets takes the new weights in here."""

    @abstractmethod
    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        """Compute the loss of checked inputs."""

    @abstractmethod
    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        """Make chunks out of noise (B, H, A); all arguments are checked."""

    def _begin(self, condition: Condition, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
        shape = (len(condition), self.sizes.horizon, self.sizes.action_dim)
        if noise is None:
            return torch.randn(shape, generator=generator).to(condition.vector)
        if noise.shape != shape:
            raise InputError(f'noise: shape {tuple(noise.shape)}; allowed: {shape}')
        return noise

    def _follow(self, guide: Guide, prefix: Tensor | None, condition: Condition, noise: Tensor, steps: int,
                generator: torch.Generator | None) -> Tensor:
        if not self.guidable:
            raise ConfigError(f'realtime: {type(self).__name__} integrates no field that a guide could steer; allowed: '
                              'a prefix')
        if prefix is not None:
            raise InputError('prefix and guide: both are given; allowed: one of them')
        left, (batch, horizon, width) = guide.actions.shape, noise.shape
        if (left[0], left[2]) != (batch, width) or left[1] > horizon:
            raise InputError(f'guide: shape {tuple(left)}; allowed: ({batch}, at most {horizon}, {width})')
        return self._sample_guided(condition, noise, steps, guide.to(noise), generator)

    def _check(self, actions: Tensor, condition: Condition) -> None:
        self._check_condition(condition)
        shape = (len(condition), self.sizes.horizon, self.sizes.action_dim)
        if actions.shape != shape:
            raise InputError(f'actions: shape {tuple(actions.shape)}; allowed: {shape}')
        for name, values in (('actions', actions), ('condition', condition.vector)):
            if not all_finite(values):
                raise InputError(f'{name}: hold NaN or infinity')

    def _check_condition(self, condition: Condition) -> None:
        vector, width = condition.vector, self.sizes.condition_dim
        if vector.ndim != 2 or vector.shape[1] != width:
            raise InputError(f'condition: shape {tuple(vector.shape)}; allowed: (any, {width})')


class Guidable(Generator):
    """Declares a generator that integrates a field, which a plan in force can steer while it does."""

    @abstractmethod
    def _sample_guided(self, condition: Condition, noise: Tensor, steps: int, guide: Guide,
                       generator: torch.Generator | None) -> Tensor:
        """Make chunks out of noise (B, H, A) that go on from a plan; all arguments are checked."""


class Continuing(Generator):
    """Declares a generator whose chunks can go on from a prefix whose length is not known before it runs."""

    @abstractmethod
    def go_on(self, condition: Condition, noise: Tensor, steps: int, begun: Tensor, known: Tensor) -> Tensor:
        """Make chunks (B, H, A) that begin with what is known, by the same operations whatever is known.

        Args:
            condition: what to answer.
            noise: (B, H, A) to begin from.
            steps: effort.
            begun: (B, H, A), of which only the known ones count.
            known: (H,) bool, true for the first few.
        """


class LikelihoodGenerator(Generator):
    """Declares a generator that knows the density of its chunks."""

    def log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        """Return the logarithm of the density of chunks (B, H, A), in nats: (B,).

        Raises:
            InputError: for other shapes, or for NaN or infinity.
        """
        self._check(actions, condition)
        return self._log_prob(actions, condition)

    @abstractmethod
    def _log_prob(self, actions: Tensor, condition: Condition) -> Tensor:
        """Compute the log-density of checked inputs."""


class Student(Generator):
    """Declares a generator that learns from a trained one; it can make chunks without it, but not learn."""

    def learn_from(self, teacher: Generator) -> None:
        """Take a trained generator as teacher: frozen, no part of this one's weights, which begin as the teacher's.

        Args:
            teacher: of the same sizes.

        Raises:
            ConfigError: if it has other sizes or lacks what this family learns from.
        """
        if teacher.sizes != self.sizes:
            raise ConfigError(f'the teacher is made for {teacher.sizes}, the student for {self.sizes}')
        self._begin_as(teacher)
        teacher = teacher.eval().requires_grad_(False)
        self.__dict__['_teacher'] = teacher  # past nn.Module, so that its weights are neither saved nor trained

    @property
    def teacher(self) -> Generator:
        """The teacher. Raise `TrainingError` if there is none."""
        if '_teacher' not in self.__dict__:
            raise TrainingError(f'{type(self).__name__} learns from a trained generator; name one with learn_from')
        return self.__dict__['_teacher']

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Student:
        """Take the teacher along to another device or type."""
        if '_teacher' in self.__dict__:
            self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @abstractmethod
    def _begin_as(self, teacher: Generator) -> None:
        """Copy the teacher's weights as far as they fit."""


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, H, A) over the actions that count (B, H)."""
    if mask is None:
        return values.mean()
    weights = mask[..., None].to(values.dtype)
    return (values * weights).sum() / (weights.sum() * values.shape[-1]).clamp(min=1)


def squared_error(found: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Average the squares of found - target (B, H, A) over the actions that count (B, H)."""
    if mask is None:
        return functional.mse_loss(found, target)
    return masked_mean((found - target).square(), mask)


def begin_with(prefix: Tensor | None, values: Tensor) -> Tensor:
    """Put (B, D, A) in the place of the first D of (B, H, A)."""
    return values if prefix is None else torch.cat([prefix.to(values), values[:, prefix.shape[1]:]], 1)


def repeat(draws: int, actions: Tensor, condition: Condition,
           mask: Tensor | None) -> tuple[Tensor, Condition, Tensor | None]:
    """Repeat every example for several draws of noise and time, which make better use of costly encoders."""
    if draws == 1:
        return actions, condition, mask
    return (actions.repeat_interleave(draws, 0), condition.expand(draws),
            None if mask is None else mask.repeat_interleave(draws, 0))


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ConfigError(f'steps: {steps}; allowed: 1 or more')
