"""The whole of a chunk as one CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flow_vla_core.engine.modes import Mode
from flow_vla_core.engine.request import Request
from flow_vla_core.engine.runners import Runner, is_drawing, program
from flow_vla_core.errors import ConfigError

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['Graph', 'Mailbox']

WARM_UPS = 3  # runs before a capture, in which libraries choose their kernels and take their memory


class Mailbox:
    """Keeps one request and one answer at fixed addresses: pinned ones on this side, others on the device.

    Args:
        request: of the shapes that will come, on the CPU.
        answer: (N, H, A), shape of what is made.
        device: where it is made; on the CPU both sides are the same.

    Example:
        >>> blank = torch.zeros(1, 4, 2)
        >>> request = Request({}, torch.zeros(1, 1, 3), torch.zeros(1, 8), blank, blank, torch.zeros(4))
        >>> box = Mailbox(request, (1, 4, 2), torch.device('cpu'))
        >>> box.post(request.map(torch.ones_like))
        >>> box.there.noise.sum()
        tensor(8.)
    """

    def __init__(self, request: Request, answer: tuple[int, ...], device: torch.device) -> None:
        self.pinned = device.type == 'cuda'
        self.here = request.map(self._keep)
        self.there = request.map(lambda part: part.to(device, copy=True))
        self._answer = self._keep(torch.zeros(answer))

    def post(self, request: Request) -> None:
        """Send a request: copy it to the fixed addresses here, and from there to the device without waiting.

        Raises:
            ConfigError: for a request of other shapes.
        """
        for mine, theirs in zip(self.here.tensors(), request.tensors(), strict=True):
            if mine.shape != theirs.shape:
                raise ConfigError(f'graph: a request of shape {tuple(theirs.shape)}; allowed: {tuple(mine.shape)}')
            mine.copy_(theirs)
        for mine, theirs in zip(self.there.tensors(), self.here.tensors()):
            mine.copy_(theirs, non_blocking=True)

    def collect(self, made: Tensor) -> Tensor:
        """Fetch what was made, and wait for it: a copy (N, H, A) on the CPU."""
        self._answer.copy_(made, non_blocking=True)
        if self.pinned:
            torch.cuda.current_stream(made.device).synchronize()
        return self._answer.clone()

    def _keep(self, part: Tensor) -> Tensor:
        return part.detach().cpu().clone().pin_memory() if self.pinned else part.detach().clone()


@dataclass(frozen=True)
class _Recorded:
    """Holds a captured graph and where its answer appears."""

    graph: torch.cuda.CUDAGraph
    made: Tensor


class Graph(Runner):
    """Runs normalisation, encoders and all steps as one CUDA graph, replayed on buffers at fixed addresses.

    One graph for each number of steps, with and without a plan to go on from; in guided mode the vector-Jacobian
    products are part of it. How long a plan is, and the delay, are numbers in the buffers, not shapes.

    Args:
        policy: on a CUDA device.
        mode: how chunks go on from the plan in force.
        generator: not used: what draws while it samples can't be recorded.

    Raises:
        ConfigError: if the policy is not on a CUDA device; from `prepare`, if it can't be captured.
    """

    def __init__(self, policy: FlowVLA, mode: Mode, generator: torch.Generator) -> None:
        super().__init__(policy, mode, generator)
        if self.device.type != 'cuda':
            raise ConfigError(f"graph: the policy is on {self.device.type!r}; allowed: 'cuda'")
        self._mail: Mailbox | None = None
        self._recorded: dict[tuple[int, type[Mode]], _Recorded] = {}

    def run(self, request: Request, steps: int) -> Tensor:
        """Copy, replay, copy back; a graph that is missing is captured first."""
        key = steps, type(self.mode_of(request))
        if key not in self._recorded:
            self.prepare(request, steps)
        with torch.cuda.device(self.device):
            self._mail.post(request)
            recorded = self._recorded[key]
            recorded.graph.replay()
            return self._mail.collect(recorded.made)

    def prepare(self, request: Request, steps: int) -> None:
        """Run a few times beside the main stream, then capture; other threads may use the device meanwhile."""
        mode = self.mode_of(request)
        if (steps, type(mode)) in self._recorded:
            return
        if self._mail is None:
            self._mail = Mailbox(request, tuple(request.noise.shape), self.device)
        with torch.cuda.device(self.device):
            self._mail.post(request)
            if is_drawing(self.policy, mode, self._mail.there, steps):
                raise ConfigError(f'graph: {type(self.policy.generator).__name__} draws while it samples')
            try:
                self._recorded[steps, type(mode)] = self._capture(mode, steps)
            except RuntimeError as error:
                raise ConfigError(f'graph: {str(error).splitlines()[0]}') from error

    def describe(self) -> str:
        """Name the device."""
        return f'CUDA graph on {torch.cuda.get_device_name(self.device)}'

    def _capture(self, mode: Mode, steps: int) -> _Recorded:
        run, beside = program(self.policy, mode, steps), torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run(self._mail.there)
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            made = run(self._mail.there)
        return _Recorded(graph, made)
