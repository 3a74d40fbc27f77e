"""Lets the robot follow a leader arm that a person moves."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from flow_vla.msg import ExecutionStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ObservationError
from flow_vla_core.teleoperation import Leader, LeaderSettings, load_settings
from flow_vla_core.types import Actor
from flow_vla_ros import qos
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.robot_view import RobotView
from flow_vla_ros.teleop_drive import ChunkOutlet

__all__ = ['LeaderNode', 'main']


class Heard(NamedTuple):
    """Is what was heard of the leader last.

    Args:
        arrival: of the message, on the monotonic clock, s.
        stamp: of its arrival, ROS time, ns.
        positions: joint -> position, rad or what the leader's driver publishes.
    """

    arrival: float
    stamp: int
    positions: dict[str, float]


class LeaderNode(FlowLifecycleNode):
    """Turns the leader's JointState into chunks, from `~/take_over` until `~/release`.

    Taking over is refused, with the joint and the distance, while leader and robot are too far apart. When the leader
    is lost, or somebody else ends the person's control, nothing more is sent until it is taken over anew.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('bindings', '', 'which joint moves what: a file, or a name in config/teleop; empty: the same names'),
        Parameter('leader_topic', 'leader/joint_states', "where the leader's JointState comes"),
        Parameter('rate', 40.0, 'of chunks, Hz', minimum=5.0, maximum=100.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Load contract and bindings and open the topics."""
        contract = RobotContract.load(find_contract(parameters.contract))
        self._settings = load_settings(LeaderSettings, parameters.bindings)
        self._leader, self._rate = Leader(contract, self._settings), parameters.rate
        self._view, self._outlet = RobotView(self, contract), ChunkOutlet(self, contract)
        self._heard: Heard | None = None
        self._in_control = False
        self._release_client = self.create_client(Trigger, 'executor/release')
        self.create_subscription(JointState, parameters.leader_topic, self._on_leader, qos.SENSOR)
        self.create_subscription(ExecutionStatus, 'executor/status', self._on_execution, qos.STATUS)
        self.create_service(Trigger, '~/take_over', self._on_take_over)
        self.create_service(Trigger, '~/release', self._on_release)

    def on_start(self) -> None:
        """Wait to be told to take over."""
        self._timer = self.create_timer(1 / self._rate, self._tick, clock=wall_clock())

    def on_stop(self) -> None:
        """Send nothing more; without chunks the executor brings the robot to rest."""
        self.destroy_timer(self._timer)
        self._leader.stop()

    def _on_leader(self, message: JointState) -> None:
        now = self.get_clock().now().nanoseconds
        self._heard = Heard(time.monotonic(), now, dict(zip(message.name, message.position)))

    def _on_execution(self, status: ExecutionStatus) -> None:
        before, self._in_control = self._in_control, status.source == Actor.PERSON
        if before and not self._in_control and self._leader.started:
            self._stop('the executor has ended it')

    def _on_take_over(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            self._take_over()
        except ObservationError as error:
            response.success, response.message = False, str(error)
            return response
        response.success = True
        response.message = 'the robot follows' if self._leader.met else 'the robot closes in on the leader'
        return response

    def _take_over(self) -> None:
        if not self.active:
            raise ObservationError('the node is not active')
        if self._lost():
            raise ObservationError(f'nothing from the leader for {self._settings.timeout:g} s')
        self._leader.start(self._target(), self._view.posture(self.get_clock().now().nanoseconds)[0])

    def _on_release(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._leader.started
        response.message = 'handed back' if response.success else 'the robot does not follow the leader'
        self._leader.stop()
        if self._release_client.service_is_ready():
            self._release_client.call_async(Trigger.Request())
        return response

    def _tick(self) -> None:
        if not self._leader.started:
            return
        if self._lost():
            self._stop(f'nothing from the leader for {self._settings.timeout:g} s')
            return
        try:
            chunk = self._leader.chunk(self._target(), self.get_clock().now().nanoseconds, self._heard.stamp)
        except ObservationError as error:
            self._stop(str(error))
        else:
            self._outlet.send(chunk)

    def _target(self) -> np.ndarray:
        return self._leader.target(self._heard.positions)

    def _lost(self) -> bool:
        return self._heard is None or time.monotonic() - self._heard.arrival > self._settings.timeout

    def _stop(self, reason: str) -> None:
        self._leader.stop()
        self.get_logger().warning(f'the leader is not followed any more: {reason}')


def main() -> None:
    """Run the node."""
    run(LeaderNode)


if __name__ == '__main__':
    main()
