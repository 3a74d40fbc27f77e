"""Hosts the command publishers of a contract on a node: encodes everything, then sends."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from rclpy.node import Node

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ActionNotFinite
from flow_vla_ros import codecs, qos

__all__ = ['CommandBridge']


class CommandBridge:
    """Publishes an action vector as one command for each of the contract's action parts.

    Args:
        node: hosts the publishers.
        contract: says which topics and messages.
        control_hz: of the commands, in which a trajectory controller is to reach each; the contract's if None.
    """

    def __init__(self, node: Node, contract: RobotContract, control_hz: float | None = None) -> None:
        self._node, self._contract = node, contract
        self._reach_in = round(1e9 / (control_hz or contract.rates.control_hz))
        self._publishers = [node.create_publisher(codecs.message_type(part.message), part.topic, qos.COMMAND)
                            for part in contract.actions]

    def publish(self, values: np.ndarray, stamp: int, parts: Collection[str] | None = None) -> None:
        """Send (A,), or the named parts of it, under one stamp.

        Args:
            values: (A,) in the contract's units.
            stamp: of every command, ns.
            parts: names of the action parts to send; all if None.

        Raises:
            ActionNotFinite: with nothing sent, unless all values are finite.
        """
        if np.shape(values) != (self._contract.action_dim,) or not np.isfinite(values).all():
            raise ActionNotFinite(f'dropped a command, all parts of it: {np.array2string(np.asarray(values))}')
        places = self._contract.action_slices
        messages = [(publisher, codecs.encode_action(part, values[places[part.name]], stamp, reach_in=self._reach_in))
                    for part, publisher in zip(self._contract.actions, self._publishers)
                    if parts is None or part.name in parts]
        for publisher, message in messages:
            publisher.publish(message)

    def destroy(self) -> None:
        """Remove the publishers from the node."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
