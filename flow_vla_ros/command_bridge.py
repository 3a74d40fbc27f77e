"""Hosts the outlets for the commands of a contract on a node: encodes everything, then sends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import numpy as np
from rclpy.action import ActionClient
from rclpy.node import Node

from flow_vla_core.contract import ActionPart, Goals, RobotContract
from flow_vla_core.errors import ActionNotFinite
from flow_vla_ros import codecs, qos

__all__ = ['CommandBridge', 'GoalOutlet', 'Outlet', 'TopicOutlet']


class Outlet(ABC):
    """Declares how the command of one action part leaves the node."""

    @abstractmethod
    def encode(self, values: np.ndarray, velocities: np.ndarray | None, stamp: int) -> Any:
        """Encode values (dim,), with how they change (dim,), under a stamp, ns; None if nothing is to be sent."""

    @abstractmethod
    def send(self, message: Any) -> None:
        """Send what was encoded."""

    @abstractmethod
    def destroy(self) -> None:
        """Remove from the node what was made there."""


class TopicOutlet(Outlet):
    """Publishes each command.

    Args:
        node: hosts the publisher.
        part: says topic and message.
        reach_in: time in which a trajectory controller is to reach each command, ns.
    """

    def __init__(self, node: Node, part: ActionPart, reach_in: int) -> None:
        self._node, self._encode = node, codecs.encoder(part, reach_in)
        self._publisher = node.create_publisher(codecs.message_type(part.message), part.topic, qos.COMMAND)

    def encode(self, values: np.ndarray, velocities: np.ndarray | None, stamp: int) -> Any:
        """Encode the command."""
        return self._encode(values, velocities, stamp)

    def send(self, message: Any) -> None:
        """Publish it."""
        self._publisher.publish(message)

    def destroy(self) -> None:
        """Remove the publisher."""
        self._node.destroy_publisher(self._publisher)


class GoalOutlet(Outlet):
    """Sends a goal when the command has changed by more than a threshold, and never faster than a rate.

    A newer goal replaces the one before; what becomes of a goal is the gripper's affair.

    Args:
        node: hosts the action client.
        part: says the action, threshold, rate and effort.

    Raises:
        ConfigError: if the action's package is not installed.
    """

    def __init__(self, node: Node, part: ActionPart) -> None:
        goals = part.goals or Goals()
        self._node, self._part = node, part
        self._threshold = goals.threshold or 0.01 * (part.limits.max[0] - part.limits.min[0])
        self._interval = round(1e9 / goals.rate)
        self._last: tuple[int, float] | None = None
        self._client = ActionClient(node, codecs.action_type(part.message), part.topic)

    def encode(self, values: np.ndarray, velocities: np.ndarray | None, stamp: int) -> Any:
        """Encode the goal, if it is time for one."""
        if self._last is not None:
            before, value = self._last
            if 0 <= stamp - before < self._interval or abs(values[0] - value) <= self._threshold:
                return None
        if not self._client.server_is_ready():
            self._node.get_logger().warning(f'nobody serves the action {self._part.topic}: a goal was not sent',
                                            throttle_duration_sec=5.0)
            return None
        self._last = stamp, float(values[0])
        return codecs.encode_action(self._part, values, stamp)

    def send(self, message: Any) -> None:
        """Send the goal, without waiting for an answer; a goal that is turned down is sent again."""
        self._client.send_goal_async(message).add_done_callback(self._on_answer)

    def destroy(self) -> None:
        """Remove the client."""
        self._client.destroy()

    def _on_answer(self, future: Any) -> None:
        if not future.result().accepted:
            self._last = None
            self._node.get_logger().warning(f'the action {self._part.topic} turned a goal down',
                                            throttle_duration_sec=5.0)


class CommandBridge:
    """Sends an action vector as one command for each of the contract's action parts.

    Args:
        node: hosts publishers and action clients.
        contract: says which topics, actions and messages.
        control_hz: of the commands, in which a trajectory controller is to reach each; the contract's if None.

    Raises:
        ConfigError: if the package of a message or action is not installed.
    """

    def __init__(self, node: Node, contract: RobotContract, control_hz: float | None = None) -> None:
        self._dim = contract.action_dim
        reach_in = round(1e9 / (control_hz or contract.rates.control_hz))
        self._outlets: list[tuple[str, slice, Outlet]] = [
            (part.name, contract.action_slices[part.name],
             GoalOutlet(node, part) if part.is_action else TopicOutlet(node, part, reach_in))
            for part in contract.actions]

    def publish(self, values: np.ndarray, stamp: int, parts: Collection[str] | None = None,
                velocities: np.ndarray | None = None) -> None:
        """Send (A,), or the named parts of it, under one stamp.

        Args:
            values: (A,) in the contract's units.
            stamp: of every command, ns.
            parts: names of the action parts to send; all if None.
            velocities: (A,) rate of change of each value that is a position, per s; None if not known.

        Raises:
            ActionNotFinite: with nothing sent, unless all values and velocities are finite.
        """
        self._check(values)
        if velocities is not None:
            self._check(velocities)
        messages = []
        for name, place, outlet in self._outlets:
            if parts is None or name in parts:
                rates = None if velocities is None else velocities[place]
                messages.append((outlet, outlet.encode(values[place], rates, stamp)))
        for outlet, message in messages:
            if message is not None:
                outlet.send(message)

    def destroy(self) -> None:
        """Remove everything from the node."""
        for _, _, outlet in self._outlets:
            outlet.destroy()

    def _check(self, values: np.ndarray) -> None:
        if np.shape(values) != (self._dim,) or not np.isfinite(values).all():
            raise ActionNotFinite(f'dropped a command, all parts of it: {np.array2string(np.asarray(values))}')
