"""Ways to run a policy: operation by operation, compiled, or as a CUDA graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flow_vla_core.engine.modes import Free, Mode
from flow_vla_core.engine.request import Request
from flow_vla_core.errors import ConfigError

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['Compiled', 'Eager', 'Program', 'Runner', 'Willing', 'is_drawing', 'program']

LOG = logging.getLogger(__name__)
Program = Callable[[Request], Tensor]


def program(policy: FlowVLA, mode: Mode, steps: int, generator: torch.Generator | None = None) -> Program:
    """Return what makes chunks (N, H, A) of a request: encode once, integrate, undo the normalisation."""
    def run(request: Request) -> Tensor:
        condition = policy.observe(request.images, request.state, request.language)
        count = len(request.noise)
        condition = condition if count == 1 else condition.expand(count)
        return mode.decode(policy, condition, request.noise, steps, request.left, request.firm, generator).float()

    return run


def is_drawing(policy: FlowVLA, mode: Mode, request: Request, steps: int) -> bool:
    """Tell whether the family draws random numbers besides the noise that it begins from.

    Whatever is recorded once and repeated would draw the same ones each time.
    """
    source = torch.Generator()
    before = source.get_state()
    program(policy, mode, steps, source)(request)
    return not torch.equal(source.get_state(), before)


class Runner(ABC):
    """Declares how requests become chunks.

    Args:
        policy: in evaluation mode, on its device.
        mode: how chunks go on from the plan in force.
        generator: source of randomness, for families that draw while they sample.
    """

    def __init__(self, policy: FlowVLA, mode: Mode, generator: torch.Generator) -> None:
        self.policy, self.mode, self.generator = policy, mode, generator
        self.device = next(policy.parameters()).device

    @abstractmethod
    def run(self, request: Request, steps: int) -> Tensor:
        """Make chunks (N, H, A) on the CPU.

        Args:
            request: on the CPU; where nothing in ``firm`` is above 0, there is no plan to go on from.
            steps: effort.
        """

    @abstractmethod
    def prepare(self, request: Request, steps: int) -> None:
        """Do what has to be done once before requests of these shapes run with so many steps.

        Raises:
            ConfigError: if it can't be done here; says why.
        """

    @abstractmethod
    def describe(self) -> str:
        """Say in a few words how it runs."""

    def mode_of(self, request: Request) -> Mode:
        """Return the mode, or `Free` where there is no plan to go on from."""
        return self.mode if bool(request.firm.any()) else Free(0.0)


class Eager(Runner):
    """Runs operation by operation."""

    def run(self, request: Request, steps: int) -> Tensor:
        """Copy, compute, copy back."""
        return program(self.policy, self.mode_of(request), steps, self.generator)(request.to(self.device)).cpu()

    def prepare(self, request: Request, steps: int) -> None:
        """Run once."""
        self.run(request, steps)

    def describe(self) -> str:
        """Name the device."""
        return f'eager on {self.device.type}'


class Compiled(Runner):
    """Runs what `torch.compile` makes of the policy, once for each number of steps and with and without a plan.

    Args:
        policy: as for `Runner`, like mode and generator.
        mode: not one that takes gradients.
        generator: not used: what draws while it samples is not compiled.
        backend: of `torch.compile`.
    """

    def __init__(self, policy: FlowVLA, mode: Mode, generator: torch.Generator, backend: str = 'inductor') -> None:
        super().__init__(policy, mode, generator)
        self._backend = backend
        self._programs: dict[tuple[int, type[Mode]], Program] = {}

    def run(self, request: Request, steps: int) -> Tensor:
        """Copy, compute, copy back."""
        key = steps, type(self.mode_of(request))
        if key not in self._programs:
            self.prepare(request, steps)
        return self._programs[key](request.to(self.device)).cpu()

    def prepare(self, request: Request, steps: int) -> None:
        """Compile, which takes a minute or so and needs a C++ compiler on a CPU."""
        mode, here = self.mode_of(request), request.to(self.device)
        if is_drawing(self.policy, mode, here, steps):
            raise ConfigError(f'compiled: {type(self.policy.generator).__name__} draws while it samples')
        try:
            made = torch.compile(program(self.policy, mode, steps), dynamic=False, backend=self._backend)
            made(here)
        except Exception as error:  # the compiler's own errors have no common root
            raise ConfigError(f'compiled: {type(error).__name__}: {_first_line(error)}') from error
        self._programs[steps, type(mode)] = made

    def describe(self) -> str:
        """Name the device."""
        return f'compiled on {self.device.type}'


class Willing(Runner):
    """Runs as one of two does: the first if it can be prepared, else the second, and tells why.

    Args:
        first: that is tried.
        second: that always can.
    """

    def __init__(self, first: Runner, second: Runner) -> None:
        super().__init__(first.policy, first.mode, first.generator)
        self._now, self._second, self._reason = first, second, ''

    def run(self, request: Request, steps: int) -> Tensor:
        """Run, after a change of mind if it has to be."""
        try:
            return self._now.run(request, steps)
        except ConfigError as error:
            self._give_in(error)
            return self._now.run(request, steps)

    def prepare(self, request: Request, steps: int) -> None:
        """Prepare the first, or else the second."""
        try:
            self._now.prepare(request, steps)
        except ConfigError as error:
            self._give_in(error)
            self._now.prepare(request, steps)

    def describe(self) -> str:
        """Say how, and why not otherwise."""
        return self._now.describe() + self._reason

    def _give_in(self, error: ConfigError) -> None:
        if self._now is self._second:
            raise error
        self._now, self._reason = self._second, f' ({error})'
        LOG.warning('runs %s: %s', self._second.describe(), error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [''])[0]
