"""Inference in one thread of its own, one job at a time, so that the thread of ROS never waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import queue
import threading
import time
import traceback
from typing import Protocol

import numpy as np
from rclpy.node import Node

from flow_vla_core.align import Aligned
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ActionNotFinite, Code, ObservationError
from flow_vla_core.messages import make_observation
from flow_vla_core.types import Continuation, Generated, Observation

__all__ = ['ActingEngine', 'Inference', 'Job', 'Outcome', 'Worker']


class ActingEngine(Protocol):
    """Is what is needed of an engine."""

    def act(self, observation: Observation, continuation: Continuation | None = None) -> Generated:
        """Return a chunk of actions (H, A) that continues what is left of the plan in force."""


@dataclass(frozen=True)
class Job:
    """Holds what one inference starts from.

    Args:
        aligned: messages of one reference time.
        instruction: words in force.
        epoch: tells jobs from before a break (of activity, or of the clock) from those after it.
        image_published: wall time at which the newest image was published, ns.
        complete: wall time at which the last sample was published, ns.
        continuation: what is left of the plan in force, for chunks that continue each other.
    """

    aligned: Aligned
    instruction: str
    epoch: int
    image_published: int
    complete: int
    continuation: Continuation | None = None


@dataclass(frozen=True)
class Outcome:
    """Holds how an inference ended.

    Args:
        job: what it was for.
        made: the chunk, None if it failed.
        code: why it failed, or ``OK``.
        message: the same in words.
        started: wall time, ns.
        ended: wall time, ns.
    """

    job: Job
    made: Generated | None
    code: Code
    message: str
    started: int
    ended: int


class Inference:
    """Decodes an observation and lets an engine answer it; whatever goes wrong becomes a code.

    Args:
        node: logs what is not expected to go wrong.
        contract: says how messages become an observation.
        engine: answers it; may be replaced between two jobs.
        blank_images: show the engine black images.
    """

    def __init__(self, node: Node, contract: RobotContract, engine: ActingEngine, blank_images: bool = False) -> None:
        self._node, self._contract, self._blank_images = node, contract, blank_images
        self.engine = engine

    def __call__(self, job: Job) -> Outcome:
        """Return the outcome of a job; never raise."""
        started = time.time_ns()
        made, code, message = None, Code.OK, ''
        try:
            made = self.engine.act(self._observe(job), job.continuation)
        except (ObservationError, ActionNotFinite) as error:
            code, message = error.code, str(error)
        except Exception as error:
            code, message = Code.INFERENCE_FAILED, f'{type(error).__name__}: {error}'
            self._node.get_logger().error(f'inference failed\n{traceback.format_exc()}', throttle_duration_sec=5.0)
        return Outcome(job, made, code, message, started, time.time_ns())

    def _observe(self, job: Job) -> Observation:
        observation = make_observation(self._contract, job.aligned, job.instruction)
        if not self._blank_images:
            return observation
        return replace(observation, images={name: np.zeros_like(image) for name, image in observation.images.items()})


class Worker:
    """Runs jobs in a thread of its own.

    Args:
        work: job -> result; it must not raise.
        on_result: called in the worker's thread when a result can be fetched with `take`.
    """

    def __init__(self, work: Callable[[Job], Outcome], on_result: Callable[[], None]) -> None:
        self._work, self._on_result = work, on_result
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.busy = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand over a job; only while not `busy`."""
        self.busy = True
        self._jobs.put(job)

    def take(self) -> list[Outcome]:
        """Return the results that have not been fetched yet; the worker is free again."""
        results = []
        while not self._results.empty():
            results.append(self._results.get())
            self.busy = False
        return results

    def close(self, timeout: float = 10.0) -> None:
        """End the thread after the job that it is at."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._results.put(self._work(job))
            self._on_result()
