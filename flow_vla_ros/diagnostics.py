"""One line about a node on ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from flow_vla_core.errors import Code
from flow_vla_ros import qos

__all__ = ['DiagnosticsOutbox', 'wall_clock']


class DiagnosticsOutbox:
    """Publishes a node's state of health.

    Args:
        node: hosts the publisher.
        hardware: the robot's name.
    """

    def __init__(self, node: Node, hardware: str) -> None:
        self._node, self._hardware = node, hardware
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)

    def publish(self, healthy: bool, code: Code, message: str, values: Mapping[str, object]) -> None:
        """Send one status: OK or WARN, code and message, and numbers to look at."""
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if healthy else DiagnosticStatus.WARN,
            name=self._node.get_fully_qualified_name(), hardware_id=self._hardware,
            message=message or code.name, values=[KeyValue(key='code', value=f'{code.value} {code.name}'), *(
                KeyValue(key=key, value=str(value)) for key, value in values.items())])
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)


def wall_clock() -> Clock:
    """Return a clock for what goes on while simulated time stands still."""
    return Clock(clock_type=ClockType.STEADY_TIME)
