"""One thread that does one job at a time, so that the thread of ROS never waits."""

from __future__ import annotations

from collections.abc import Callable
import queue
import threading
from typing import Any

__all__ = ['Worker']


class Worker:
    """Runs jobs in a thread of its own.

    Args:
        work: job -> result; it must not raise.
        on_result: called in the worker's thread when a result can be fetched with `take`.
    """

    def __init__(self, work: Callable[[Any], Any], on_result: Callable[[], None]) -> None:
        self._work, self._on_result = work, on_result
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.busy = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)
        self._thread.start()

    def submit(self, job: Any) -> None:
        """Hand over a job; only while not `busy`."""
        self.busy = True
        self._jobs.put((job,))

    def take(self) -> list[Any]:
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
        while (item := self._jobs.get()) is not None:
            self._results.put(self._work(item[0]))
            self._on_result()
