"""A node of a benchmark that waits for what other nodes do."""

from __future__ import annotations

from collections.abc import Callable
import os
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor

from flow_vla_core.errors import FlowVLAError
from flow_vla_ros.bringup import ManagedProcesses

__all__ = ['Listener']


class Listener:
    """Hosts a node in a context of its own and spins it while it waits; a context manager.

    Args:
        name: of the node.
        processes: waiting ends with an error as soon as one of them has ended; None looks after none.
        domain: of ROS; that of the environment if None.
    """

    def __init__(self, name: str, processes: ManagedProcesses | None = None, domain: int | None = None) -> None:
        self._processes = processes
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(os.environ['ROS_DOMAIN_ID']) if domain is None else domain)
        self.node = rclpy.create_node(name, context=self._context)
        self._spinner = SingleThreadedExecutor(context=self._context)
        self._spinner.add_node(self.node)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait(self, predicate: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
        """Wait for a predicate; raise `FlowVLAError`, which says what was waited for, if it does not become true."""
        if not self.becomes_true(predicate, seconds):
            raise FlowVLAError(f'waited {seconds:g} s in vain for {what() if callable(what) else what}')

    def becomes_true(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Wait for a predicate, at most for some time; return whether it became true."""
        end = time.monotonic() + seconds
        while not predicate():
            if self._processes is not None and (ended := self._processes.poll()):
                raise FlowVLAError(f'{", ".join(ended)} ended')
            if time.monotonic() > end:
                return False
            self._spinner.spin_once(timeout_sec=0.05)
        return True

    def listen(self, seconds: float) -> None:
        """Take what comes for some time."""
        self.becomes_true(lambda: False, seconds)
