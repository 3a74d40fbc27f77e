"""A small ROS graph for tests: nodes on one executor, spun until something is true."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

__all__ = ['RosGraph', 'spin_until']

DEADLINE, REPEAT = 60.0, 15.0  # s


def spin_until(executor: SingleThreadedExecutor, predicate: Callable[[], Any], deadline: float = 60.0) -> Any:
    """Spin until the predicate is true and return its value; fail after ``deadline`` s."""
    end = time.monotonic() + deadline
    while not (value := predicate()):
        if time.monotonic() > end:
            raise AssertionError(f'not true within {deadline} s: {predicate}')
        executor.spin_once(timeout_sec=0.05)
    return value


class RosGraph:
    """Holds the nodes of one test and spins them all.

    Example: ``graph.add(SomeNode())``, ``graph.inbox(String, 'topic')``, ``graph.spin_until(lambda: ...)``.
    """

    def __init__(self) -> None:
        self.executor = SingleThreadedExecutor()
        self.nodes: list[Node] = []
        self._probe: Node | None = None
        self._clients: dict[str, Any] = {}

    @property
    def probe(self) -> Node:
        """A bare node to publish and listen with."""
        if self._probe is None:
            self._probe = self.add(rclpy.create_node('probe'))
        return self._probe

    def add(self, node: Any) -> Any:
        """Spin a node with the others, and destroy it at the end."""
        self.executor.add_node(node)
        self.nodes.append(node)
        return node

    def remove(self, node: Any) -> None:
        """Bring a node to its end, as if its process had gone."""
        self.executor.remove_node(node)
        self.nodes.remove(node)
        if hasattr(node, 'shut_down'):
            node.shut_down()
        node.destroy_node()

    def inbox(self, message: type, topic: str, qos: Any = 100) -> list[Any]:
        """Return a list to which everything that arrives on a topic is appended."""
        received: list[Any] = []
        self.probe.create_subscription(message, topic, received.append, qos)
        return received

    def outbox(self, message: type, topic: str, qos: Any = 10, readers: int = 1) -> Any:
        """Return a publisher that is connected to at least so many subscriptions."""
        publisher = self.probe.create_publisher(message, topic, qos)
        self.spin_until(lambda: publisher.get_subscription_count() >= readers)
        return publisher

    def call(self, service: type, name: str, request: Any = None) -> Any:
        """Call a service and return its answer; fail after `DEADLINE` s.

        The client is kept for the next call: an answer is lost while the server has not heard of a new client yet, so
        the call is repeated where none comes.
        """
        client = self._clients.get(name) or self._connect(service, name)
        calls: list[Any] = []
        end = time.monotonic() + DEADLINE
        while not any(call.done() for call in calls):
            assert time.monotonic() < end, f'{name}: no answer within {DEADLINE} s'
            calls.append(client.call_async(request or service.Request()))
            patience = time.monotonic() + REPEAT
            while time.monotonic() < patience and not any(call.done() for call in calls):
                self.executor.spin_once(timeout_sec=0.05)
        return next(call.result() for call in calls if call.done())

    def _connect(self, service: type, name: str) -> Any:
        client = self._clients[name] = self.probe.create_client(service, name)
        self.spin_until(client.service_is_ready)
        return client

    def spin_until(self, predicate: Callable[[], Any], deadline: float = 60.0) -> Any:
        """Spin until the predicate is true and return its value; fail after ``deadline`` s."""
        return spin_until(self.executor, predicate, deadline)

    def close(self) -> None:
        """Bring every node to its end."""
        for node in reversed(list(self.nodes)):
            self.remove(node)
        self.executor.shutdown()
