"""Puts other checkpoints in the place of the one in force while a policy acts, between two inferences."""

from __future__ import annotations

from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import String

from flow_vla_ros import qos
from flow_vla_ros.engines import EngineLoader, Loaded, horizon_of
from flow_vla_ros.inference import ActingEngine, Inference

__all__ = ['CheckpointSwitch']

NAME = 'checkpoint'  # of the parameter and of the topic


class CheckpointSwitch:
    """Hears of checkpoints, loads them in the background and swaps them in; one that can't be used is refused.

    They are named by setting the node's parameter ``checkpoint`` and, if asked for, on the topic ``checkpoint``. The
    parameter then says which one is in force; `refusal` says why the last one was refused, until another is in force.
    Whoever names the one in force again calls off those that are still being loaded.

    Args:
        node: hosts everything; its parameter names the checkpoint in force.
        inference: gets the new engines.
        load: folder -> engine; called in a thread of its own, may raise anything.
        is_free: tells whether no inference is running.
        on_change: called after a swap or a refusal; told whether chunks have another length now.
    """

    def __init__(self, node: Node, inference: Inference, load: Callable[[str], ActingEngine],
                 is_free: Callable[[], bool], on_change: Callable[[bool], None]) -> None:
        self._node, self._inference, self._is_free, self._on_change = node, inference, is_free, on_change
        self.checkpoint, self.refusal = node.get_parameter(NAME).value, ''
        self._wanted = self.checkpoint  # the one that was named last
        self._next: Loaded | None = None
        self._is_telling = False
        self._loader = EngineLoader(load, node.create_guard_condition(self._on_loaded).trigger)
        node.add_on_set_parameters_callback(self._on_set)

    def follow(self) -> None:
        """Take over what is named on the topic as well."""
        self._node.create_subscription(String, NAME, lambda message: self.ask(message.data), qos.LATCHED)

    def ask(self, checkpoint: str) -> None:
        """Ask for another checkpoint, given its folder."""
        if not checkpoint or checkpoint == self._wanted:
            return
        self._wanted = checkpoint
        if checkpoint == self.checkpoint:
            self._next = None
        else:
            self._loader.ask(checkpoint)

    def swap(self) -> None:
        """Put the checkpoint that was loaded, if any, into force; only while no inference is running."""
        if self._next is None:
            return
        loaded, self._next = self._next, None
        longer = horizon_of(loaded.engine) != horizon_of(self._inference.engine)
        self._inference.engine, self.checkpoint, self.refusal = loaded.engine, loaded.checkpoint, ''
        self._node.get_logger().info(f'checkpoint in force: {loaded.checkpoint}')
        self._tell(longer)

    def close(self) -> None:
        """End the thread and let go of the node's parameter."""
        self._node.remove_on_set_parameters_callback(self._on_set)
        self._loader.close()

    def _on_set(self, values: list[Parameter]) -> SetParametersResult:
        for value in values:
            if value.name == NAME and not self._is_telling:
                self.ask(value.value)
        return SetParametersResult(successful=True)

    def _on_loaded(self) -> None:
        for loaded in self._loader.take():
            if self._wanted == self.checkpoint:  # it was called off
                continue
            if loaded.engine is not None:
                self._next = loaded
                continue
            if loaded.checkpoint == self._wanted:
                self._wanted = self.checkpoint  # it may be named again
            self.refusal = f'refused {loaded.checkpoint}: {loaded.message.splitlines()[0]}'
            self._node.get_logger().error(f'refused {loaded.checkpoint}, {self.checkpoint} stays in force: '
                                          f'{loaded.message}')
            self._tell(False)
        if self._is_free():
            self.swap()

    def _tell(self, other_length: bool) -> None:
        self._is_telling = True
        self._node.set_parameters([Parameter(NAME, value=self.checkpoint)])
        self._is_telling = False
        self._on_change(other_length)
