"""A policy as a recorded list of operations, without Python between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
import warnings

import torch
from torch import Tensor, nn

from flow_vla_core.engine.arranged import arranged
from flow_vla_core.engine.modes import Mode
from flow_vla_core.engine.request import Request
from flow_vla_core.engine.runners import Runner, is_drawing, program
from flow_vla_core.errors import ConfigError

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['Traced']

TOLERANCE = 1e-3  # of the scale of an action, between what was recorded and what it was recorded from


class Traced(Runner):
    """Records the operations of a chunk once with `torch.jit.trace`, and folds what is constant, as embedded times are.

    Weights are laid out by `arranged`. What was recorded is used if it agrees with the policy on other numbers.

    Args:
        policy: on the CPU.
        mode: how chunks go on from the plan in force; not one that takes gradients.
        generator: not used: what draws while it samples can't be recorded.

    Raises:
        ConfigError: from `prepare`, if the policy can't be recorded; says why.
    """

    def __init__(self, policy: FlowVLA, mode: Mode, generator: torch.Generator) -> None:
        super().__init__(policy, mode, generator)
        self._arranged = arranged(policy)
        self._recorded: dict[tuple[int, type[Mode]], Callable[..., Tensor]] = {}

    def run(self, request: Request, steps: int) -> Tensor:
        """Replay the operations; what is missing is recorded first."""
        key = steps, type(self.mode_of(request))
        if key not in self._recorded:
            self.prepare(request, steps)
        return self._recorded[key](*request.tensors())

    def prepare(self, request: Request, steps: int) -> None:
        """Record, and compare on other numbers."""
        mode = self.mode_of(request)
        if (steps, type(mode)) in self._recorded:
            return
        if not mode.is_fixed(self.policy.generator):
            raise ConfigError(f'traced: what {type(self.policy.generator).__name__} does depends on the numbers, or '
                              'takes gradients')
        if is_drawing(self.policy, mode, request, steps):
            raise ConfigError(f'traced: {type(self.policy.generator).__name__} draws while it samples')
        recorded = _record(_Whole(self._arranged, mode, steps, tuple(request.images)), request)
        other = _other_numbers(request)
        wanted = program(self.policy, mode, steps)(other)
        moved = (recorded(*other.tensors()) - wanted) / self.policy.normalise_actions.scale
        if not moved.abs().max() <= TOLERANCE:
            raise ConfigError(f"traced: actions differ by {moved.abs().max():.3g} of their scale from the policy's")
        self._recorded[steps, type(mode)] = recorded

    def describe(self) -> str:
        """Name the device."""
        return 'traced on cpu'


class _Whole(nn.Module):
    """Is a program that takes a request's tensors one by one, which recording needs."""

    def __init__(self, policy: FlowVLA, mode: Mode, steps: int, cameras: tuple[str, ...]) -> None:
        super().__init__()
        self.policy, self.cameras = policy, cameras
        self._run = program(policy, mode, steps)

    def forward(self, *tensors: Tensor) -> Tensor:
        count = len(self.cameras)
        return self._run(Request(dict(zip(self.cameras, tensors[:count])), *tensors[count:]))


def _record(whole: nn.Module, request: Request) -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # shapes are constant on purpose
        try:
            return torch.jit.freeze(torch.jit.trace(whole.eval(), request.tensors(), check_trace=False).eval())
        except (RuntimeError, AttributeError) as error:
            raise ConfigError(f'traced: {str(error).splitlines()[0]}') from error


def _other_numbers(request: Request) -> Request:
    """Return a request of the same shapes about something else, which goes on from one action more if from any."""
    source = torch.Generator().manual_seed(1)
    images = {name: torch.randint(0, 256, image.shape, generator=source, dtype=torch.uint8)
              for name, image in request.images.items()}
    state, noise, left = (part + torch.randn(part.shape, generator=source)
                          for part in (request.state, request.noise, request.left))
    return Request(images, state, -request.language, noise, left, request.firm.roll(1).cummax(0).values)
