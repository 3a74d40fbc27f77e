"""Runs a policy on single observations."""

from __future__ import annotations

from collections.abc import Collection
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flow_vla_core.engine.budget import Budget
from flow_vla_core.engine.choice import RUNNERS, choose
from flow_vla_core.engine.confidence import agreement, most_central
from flow_vla_core.engine.modes import MODES, pad
from flow_vla_core.engine.request import Request
from flow_vla_core.errors import ActionNotFinite, ConfigError, closest
from flow_vla_core.types import Continuation, Generated, Observation

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['Engine']


class Engine:
    """Runs a policy on single observations, with its own source of noise.

    The policy is put into evaluation mode and its weights are frozen.

    Args:
        policy: trained.
        device: ``auto`` takes CUDA where there is one.
        steps: solver steps; None takes the policy's own.
        seed: of the noise.
        allow_empty: answer an empty instruction instead of refusing it.
        realtime: how a chunk goes on from the plan in force: ``none``, ``guided`` or ``prefix``, see `MODES`; ``auto``
            is ``prefix`` for a policy that was trained with ``prefix_steps``, else ``none``.
        beta: bound of the guidance.
        budget: time for a chunk, s: as many steps are taken as fit, see `Budget`; None takes all of them.
        samples: chunks that are drawn at once. Of several the most central one is answered, and their `agreement` is
            the confidence; of one there is none.
        runner: one of `RUNNERS`, or ``auto`` for the fastest that the device has.
        half: evaluate the network in bfloat16 if that moves no action by more than 1 % of the range between the 1 % and
            99 % quantiles of the training data; None does so on CUDA only.

    Raises:
        ConfigError: for an unknown name, a number out of range, or a family that the mode does not serve.
    """

    def __init__(self, policy: FlowVLA, *, device: str = 'auto', steps: int | None = None, seed: int = 0,
                 allow_empty: bool = False, realtime: str = 'none', beta: float = 5.0, budget: float | None = None,
                 samples: int = 1, runner: str = 'auto', half: bool | None = None) -> None:
        _check_name('realtime', realtime, ('auto', *MODES))
        _check_name('runner', runner, ('auto', *RUNNERS))
        _check_count('steps', steps)
        _check_count('samples', samples)
        if not beta >= 0:
            raise ConfigError(f'beta: {beta}; allowed: 0 or more')
        self.device, self.samples, self.allow_empty = _find_device(device), samples, allow_empty
        self.policy = policy.to(self.device).eval().requires_grad_(False)
        self.steps = policy.generator.steps if steps is None else steps
        self.realtime = _suited(policy) if realtime == 'auto' else realtime
        self.mode, self._generator = MODES[self.realtime](beta), torch.Generator()
        self.budget = Budget(budget, self.steps)
        if not self.mode.serves(policy.generator):
            raise ConfigError(f"realtime: {realtime!r}; {type(policy.generator).__name__} integrates no field that a "
                              "plan in force could steer; allowed: 'none', 'prefix'")
        self._leads = self.realtime != 'none'
        self._spread = torch.tensor(policy.statistics['actions'].std)
        self._words: tuple[str, Tensor] | None = None
        self._runner = choose(runner, self.policy, self.mode, self._generator, half)
        self.seed(seed)

    @property
    def runner(self) -> str:
        """How the policy runs, in a few words."""
        return self._runner.describe()

    def seed(self, seed: int) -> None:
        """Make the noise that follows repeatable."""
        self._generator.manual_seed(seed)

    @torch.no_grad()
    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        """Make a chunk (H, A) float32 in the contract's units.

        Args:
            observation: what the robot sees.
            continuation: what is left of the plan in force; None if there is none.

        Raises:
            InstructionMissing: if the instruction is empty and that is not allowed.
            InstructionUnknown: for words that the policy was not trained on.
            InputError: for a continuation that makes no sense.
            ActionNotFinite: if the policy produced NaN or infinity.
        """
        begun, steps = time.perf_counter(), self.budget.steps()
        request = self._request(observation, continuation)
        chunks = self._runner.run(request, steps)
        actions = most_central(chunks).numpy()
        if not np.isfinite(actions).all():
            raise ActionNotFinite('the policy produced an action that is not finite')
        self.budget.note(steps, time.perf_counter() - begun)
        return Generated(actions, agreement(chunks, self._spread, request.firm))

    @torch.no_grad()
    def warm_up(self, rounds: int = 3) -> None:
        """Run on random input, so that no observation pays for what happens only once; noise stays as it was.

        Args:
            rounds: chunks of each kind: with and without a plan in force, and with a budget of every number of steps.
        """
        kept = self._generator.get_state()
        times = {steps: self._rehearse(steps, rounds) for steps in self.budget.choices()}
        self.budget.calibrate(times)
        self._generator.set_state(kept)

    def _rehearse(self, steps: int, rounds: int) -> list[float]:
        """Return what chunks lasted, s."""
        times = []
        for led in (False, True)[:1 + self._leads]:
            request = self._fake_request(led)
            self._runner.prepare(request, steps)
            times = [self._time(request, steps) for _ in range(rounds)]
        return times

    def _time(self, request: Request, steps: int) -> float:
        begun = time.perf_counter()
        self._runner.run(request, steps)
        return time.perf_counter() - begun

    def _request(self, observation: Observation, continuation: Continuation | None) -> Request:
        images = {name: torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))[None]
                  for name, image in observation.images.items()}
        return self._complete(images, torch.from_numpy(observation.state)[None],
                              self._read(observation.instruction), continuation)

    def _fake_request(self, led: bool) -> Request:
        batch, actions = self.policy.fake_batch(1, torch.Generator().manual_seed(0))
        language = self.policy.language(batch.words.to(self.device)).float().cpu()
        horizon = actions.shape[1]
        left = Continuation(actions[0].numpy(), min(1, horizon - 1), 1) if led else None
        return self._complete(batch.images, batch.state, language, left)

    def _complete(self, images: dict[str, Tensor], state: Tensor, language: Tensor,
                  continuation: Continuation | None) -> Request:
        """Add noise, and what is left of the plan in force."""
        shape = self.samples, self.policy.config.horizon, self.policy.contract.action_dim
        noise = torch.randn(shape, generator=self._generator)
        left, firm = torch.zeros(1, *shape[1:]), torch.zeros(shape[1])
        if continuation is not None and self._leads:
            left, firm = pad(continuation.actions, shape), self.mode.firm(continuation, shape[1])
        return Request(images, state, language, noise, left, firm)

    def _read(self, text: str) -> Tensor:
        """Encode an instruction, again only if it changes."""
        if self._words is None or self._words[0] != text:
            words = self.policy.vocabulary.batch([text], allow_empty=self.allow_empty)
            self._words = text, self.policy.language(words.to(self.device)).float().cpu()
        return self._words[1]


def _suited(policy: FlowVLA) -> str:
    return 'prefix' if getattr(policy.config.generator, 'prefix_steps', 0) else 'none'


def _find_device(name: str) -> torch.device:
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r}; allowed: 'auto', 'cpu', 'cuda', 'cuda:0', ...") from error
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'device: {name!r}; CUDA devices here: {torch.cuda.device_count()}')
    return device


def _check_name(key: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ConfigError(f'{key}: {value!r}; {closest(value, allowed)}')


def _check_count(key: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f'{key}: {value}; allowed: 1 or more')
