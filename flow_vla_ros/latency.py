"""Latency that tests and benchmarks add to an inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import threading
import time

import numpy as np

from flow_vla_ros.inference import Job, Outcome
from flow_vla_ros.parameters import Parameters

__all__ = ['DelayedWork', 'InjectedLatency']


@dataclass(frozen=True)
class InjectedLatency:
    """Says how much later chunks are to come: ``fixed + U(0, jitter)``, and ``spike`` more for every n-th chunk.

    Args:
        fixed: s.
        jitter: s, uniformly distributed.
        spike: s.
        spike_every: n; 0 for no spikes.

    Example:
        >>> InjectedLatency(fixed=0.1, spike=0.5, spike_every=3).draw(3, np.random.default_rng(0))
        0.6
    """

    fixed: float = 0.0
    jitter: float = 0.0
    spike: float = 0.0
    spike_every: int = 0

    @classmethod
    def of(cls, parameters: Parameters) -> InjectedLatency:
        """Take it from the parameters of a node."""
        return cls(parameters.latency, parameters.latency_jitter, parameters.latency_spike,
                   parameters.latency_spike_every)

    def draw(self, count: int, random: np.random.Generator) -> float:
        """Return the latency of chunk number ``count`` (from 1), s."""
        spike = self.spike if self.spike_every and count % self.spike_every == 0 else 0.0
        return self.fixed + self.jitter * random.random() + spike


class DelayedWork:
    """Does a job and holds its outcome back, in wall time, as if the inference itself were slower.

    Args:
        work: job -> outcome.
        latency: how long.
        seed: of the jitter.
    """

    def __init__(self, work: Callable[[Job], Outcome], latency: InjectedLatency, seed: int = 0) -> None:
        self._work, self._latency = work, latency
        self._random = np.random.default_rng(seed)
        self._interrupted = threading.Event()
        self._count = 0

    def __call__(self, job: Job) -> Outcome:
        """Return the outcome, late; never raise."""
        outcome = self._work(job)
        self._count += 1
        seconds = self._latency.draw(self._count, self._random)
        if not seconds:
            return outcome
        self._interrupted.wait(seconds)
        return replace(outcome, ended=time.time_ns())

    def interrupt(self) -> None:
        """Let the outcome that is held back go, and hold back none from now on."""
        self._interrupted.set()
