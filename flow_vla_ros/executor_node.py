"""Turns action chunks into commands at control rate, within limits."""

from __future__ import annotations

from collections.abc import Iterable
import gc
import time

import numpy as np
from std_srvs.srv import Trigger

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ActionNotFinite, ChunkError, Code, ConfigError
from flow_vla_core.execution import ChunkFollower, Command, ExecutionState
from flow_vla_ros import codecs, qos
from flow_vla_ros.command_bridge import CommandBridge
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.state_inbox import StateInbox
from flow_vla_ros.trace import Trace

__all__ = ['ExecutorNode', 'main']

LATE = 1.5           # periods
LONGEST_STOP = 2.0   # s, of slowing down when the node is deactivated
GRAVE = (Code.EMERGENCY_STOP, Code.CLOCK_JUMP, Code.STATE_STALE, Code.COMMAND_NOT_FINITE)


class ExecutorNode(FlowLifecycleNode):
    """Follows chunks with its own timer; owns limits, watchdog and emergency stop.

    Every control period it publishes a command, at rest too, and while it is active only. When chunks stop coming it
    finishes the plan, slows down and holds. On deactivation it slows the robot down first, so that the last command
    on the wire is a safe one. ``~/estop`` latches, also over deactivation, until ``~/reset_estop``.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('control_hz', 0.0, "control rate, 20 to 200 Hz; 0: the contract's", minimum=0.0, maximum=200.0),
        Parameter('interpolation', 'linear', 'of velocities between the steps of a chunk', choices=('linear', 'hold')),
        Parameter('future_tolerance', -1.0, 'a chunk may be stamped so far ahead of the clock, s; -1: one policy step',
                  minimum=-1.0, maximum=10.0),
        Parameter('trust', 0.0, 'a chunk is followed up to this age, s; 0: to its end', minimum=0.0, maximum=60.0),
        Parameter('status_hz', 10.0, 'rate of ~/status, Hz', minimum=0.1, maximum=100.0),
        Parameter('real_time_factor', 1.0, 'simulated seconds per second, for counting late ticks', minimum=0.01,
                  maximum=100.0),
        Parameter('trace_file', '', 'CSV file with one row for each control tick; none if empty'),
    )

    def __init__(self, name: str | None = None, **arguments: object) -> None:
        super().__init__(name, **arguments)
        self._estopped = False

    def on_setup(self, parameters: Parameters) -> None:
        """Load the contract and open the topics."""
        self._contract = RobotContract.load(find_contract(parameters.contract))
        hertz = parameters.control_hz or self._contract.rates.control_hz
        if not 20 <= hertz <= 200:
            raise ConfigError(f'control_hz: {hertz:g} is not allowed; allowed: 20 to 200')
        self._period = 1 / hertz
        self._late_after = LATE * self._period / parameters.real_time_factor
        self._follower = ChunkFollower(
            self._contract, control_hz=hertz, interpolation=parameters.interpolation,
            future_tolerance=_nanoseconds(parameters.future_tolerance) if parameters.future_tolerance >= 0 else None,
            trust=_nanoseconds(parameters.trust) or None)
        if self._estopped:
            self._follower.estop()
        self._commands = CommandBridge(self, self._contract, hertz)
        names = [stream.name for stream in self._contract.state] if parameters.trace_file else self._follower.needs
        self._state = StateInbox(self, self._contract, names)
        self._trace = Trace(parameters.trace_file, _columns(self._contract))
        self._diagnostics = DiagnosticsOutbox(self, self._contract.label)
        self._status = self.create_publisher(ExecutionStatus, '~/status', qos.STATUS)
        self.create_subscription(ChunkMessage, 'action_chunk', self._on_chunk, qos.CHUNK)
        self.create_service(Trigger, '~/estop', self._on_estop)
        self.create_service(Trigger, '~/reset_estop', self._on_reset_estop)
        self._status_period = 1 / parameters.status_hz
        self._forget()
        # What exists by now stays: the collector never walks it during a tick.
        gc.collect()
        gc.freeze()

    def on_start(self) -> None:
        """Begin to publish commands."""
        self._forget()
        self._timers_of_activity = [
            self.create_timer(self._period, self._tick),
            self.create_timer(self._status_period, self._publish_status, clock=wall_clock()),
            self.create_timer(1.0, self._publish_diagnostics, clock=wall_clock())]

    def on_stop(self) -> None:
        """Slow the robot down and hold."""
        for timer in self._timers_of_activity:
            self.destroy_timer(timer)
        self._follower.drop_plan()
        start = self.get_clock().now().nanoseconds
        for tick in range(1, 1 + round(LONGEST_STOP / self._period)):
            now = start + tick * round(self._period * 1e9)
            self._send(self._follower.command(now, self._state.fresh(start)), now)
            if not self._follower.moving:
                break
            time.sleep(self._period)
        self._command = None
        self._publish_status()
        self._trace.flush()

    def on_teardown(self) -> None:
        """Close the trace."""
        self._trace.close()

    def _forget(self) -> None:
        self._follower.clear()
        self._command: Command | None = None
        self._refusal: tuple[Code, str] | None = None
        self._reported: tuple | None = None
        self._last_tick: float | None = None
        self._ticks = self._late = self._limited = self._accepted = self._refused = 0

    def _on_chunk(self, message: ChunkMessage) -> None:
        if not self.active:
            return
        try:
            self._follower.accept(codecs.message_to_chunk(message, self._contract), self.get_clock().now().nanoseconds)
        except ChunkError as error:
            self._refused += 1
            self._refusal = (error.code, str(error))
            self.get_logger().warning(f'refused: {error}', throttle_duration_sec=1.0)
            self._publish_status()
        else:
            self._accepted += 1
            self._refusal = None

    def _on_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._estopped = True
        self._follower.estop()
        self.get_logger().warning('emergency stop')
        response.success, response.message = True, 'stopped until reset_estop is called'
        return response

    def _on_reset_estop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._estopped = False
        self._follower.reset_estop()
        self.get_logger().info('emergency stop reset')
        response.success, response.message = True, 'waiting for a new chunk'
        return response

    def _tick(self) -> None:
        now = self.get_clock().now().nanoseconds
        if now == 0:  # simulated time has not begun
            return
        late = self._count_tick()
        measured = self._state.fresh(now)
        command = self._follower.command(now, measured)
        self._limited += command.limited
        self._command = command
        if self._send(command, now) and self._trace.enabled:
            self._trace.write(self._row(now, command, late))
        if self._summary()[:2] != self._reported:
            self._publish_status()

    def _count_tick(self) -> bool:
        before, self._last_tick = self._last_tick, time.monotonic()
        late = before is not None and self._last_tick - before > self._late_after
        self._ticks += 1
        self._late += late
        return late

    def _send(self, command: Command, now: int) -> bool:
        try:
            self._commands.publish(command.values, now, command.parts)
        except ActionNotFinite as error:
            self._refusal = (Code.COMMAND_NOT_FINITE, str(error))
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return False
        return True

    def _summary(self) -> tuple[ExecutionState, Code, str]:
        command = self._command
        state, code = (ExecutionState.IDLE, Code.NO_CHUNK) if command is None else (command.state, command.code)
        if code not in GRAVE and self._refusal is not None:
            return state, *self._refusal
        return state, code, EXPLANATIONS.get(code, '')

    def _publish_status(self) -> None:
        state, code, message = self._summary()
        now = self.get_clock().now().nanoseconds
        status = ExecutionStatus(state=state, code=code, message=message, ticks=self._ticks, late_ticks=self._late,
                                 limited_ticks=self._limited, accepted_chunks=self._accepted,
                                 refused_chunks=self._refused)
        status.header.stamp = codecs.to_time(now)
        if self._command is not None and self._command.state == ExecutionState.FOLLOWING:
            status.chunk_id, status.chunk_step = self._command.chunk_id, self._command.chunk_step
            status.chunk_age = codecs.to_duration(max(now - self._command.chunk_stamp, 0))
        self._status.publish(status)
        self._reported = (state, code)

    def _publish_diagnostics(self) -> None:
        self._trace.flush()
        state, code, message = self._summary()
        ages = {f'{name}: age': f'{age:.3f} s' for name, age in
                self._state.ages(self.get_clock().now().nanoseconds).items()}
        self._diagnostics.publish(code in (Code.OK, Code.NO_CHUNK), code, message, {
            'state': state.name, 'ticks': self._ticks, 'late ticks': self._late, 'limited ticks': self._limited,
            'accepted chunks': self._accepted, 'refused chunks': self._refused, **ages})

    def _row(self, now: int, command: Command, late: bool) -> Iterable[object]:
        newest = self._state.newest()
        measured = (newest.get(stream.name, np.full(len(stream.names), np.nan)) for stream in self._contract.state)
        return (now, time.time_ns(), command.chunk_id, command.chunk_step, command.chunk_stamp, command.state.name,
                command.code.name, int(command.limited), int(late), *(f'{value:.6g}' for value in command.values),
                *(f'{value:.6g}' for values in measured for value in values))


EXPLANATIONS = {
    Code.NO_CHUNK: 'no chunk to follow',
    Code.STATE_STALE: 'the measured position that the workspace limit needs is missing or too old',
    Code.EMERGENCY_STOP: 'emergency stop, until reset_estop is called',
    Code.CLOCK_JUMP: 'ROS time went backwards, waiting for a new chunk',
}


def _columns(contract: RobotContract) -> list[str]:
    return ['stamp', 'wall_time', 'chunk_id', 'chunk_step', 'observation_stamp', 'state', 'code', 'limited', 'late',
            *(f'command.{part.name}.{name}' for part in contract.actions for name in part.names),
            *(f'measured.{stream.name}.{name}' for stream in contract.state for name in stream.names)]


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def main() -> None:
    """Run the node."""
    run(ExecutorNode)


if __name__ == '__main__':
    main()
