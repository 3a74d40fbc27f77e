"""Turns action chunks into commands at control rate, within limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
import gc
import time

import numpy as np
from rclpy.parameter import Parameter as Setting
from std_msgs.msg import Bool, Float64
from std_srvs.srv import Trigger

from flow_vla.msg import ActionChunk as ChunkMessage
from flow_vla.msg import ExecutionStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ActionNotFinite, ChunkError, ChunkJump, Code, ConfigError
from flow_vla_core.execution import INTERPOLATIONS, Authority, ChunkFollower, Command
from flow_vla_core.types import Actor
from flow_vla_ros import codecs, qos
from flow_vla_ros.command_bridge import CommandBridge
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.execution_report import ExecutionReport
from flow_vla_ros.execution_trace import ExecutionTrace
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.realtime import be_ordinary, be_punctual
from flow_vla_ros.state_inbox import StateInbox
from flow_vla_ros.watchdogs import EchoWatch, StateWatch

__all__ = ['ExecutorNode', 'main']

LATE = 1.5           # periods
LONGEST_STOP = 2.0   # s, of slowing down when the node is deactivated


class ExecutorNode(FlowLifecycleNode):
    """Follows chunks with its own timer; owns limits, watchdogs and emergency stop.

    Every control period it publishes a command, at rest too, and while it is active only. When chunks stop coming it
    finishes the plan, slows down and holds. When the state that commands depend on or the echo of commands stops
    coming it drops the plan at once, and waits for a new chunk. On deactivation it slows the robot down first, so that
    the last command on the wire is a safe one.

    A person's chunks, on ``teleop/action_chunk``, go the same way, before the policy's: the first takes over at once,
    until ``~/release``, or ``hand_back`` without a further one. Then the policy has to answer what it sees later.

    ``~/estop``, or True on the topic ``estop``, latches, also over deactivation, until ``~/reset_estop``. ``~/hold``
    slows down and waits for a chunk that was made from what the robot sees after the call. ``~/speed``, or the
    parameter of that name, scales all motion.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('control_hz', 0.0, "control rate, 20 to 200 Hz; 0: the contract's", minimum=0.0, maximum=200.0),
        Parameter('schedule', 'asynchronous', 'which actions of which chunks are due',
                  choices=('asynchronous', 'synchronous', 'ensembling')),
        Parameter('execute', 0, 'actions of a chunk that the synchronous schedule executes; 0: all', minimum=0,
                  maximum=1000),
        Parameter('interpolation', 'auto', 'between the steps of a chunk; auto: cubic for what is driven by position, '
                  'linear for velocities', choices=INTERPOLATIONS),
        Parameter('future_tolerance', -1.0, 'a chunk may be stamped so far ahead of the clock, s; -1: one policy step',
                  minimum=-1.0, maximum=10.0),
        Parameter('trust', 0.0, 'a chunk is followed up to this age, s; 0: to its end', minimum=0.0, maximum=60.0),
        Parameter('least_confidence', 0.0, 'a chunk that is less sure is refused', minimum=0.0, maximum=1.0),
        Parameter('careful_below', 0.0, 'a chunk that is less sure goes at half speed', minimum=0.0, maximum=1.0),
        Parameter('hand_back', 0.0, 'a person who sends nothing for so long has let go, s; 0: only by ~/release',
                  minimum=0.0, maximum=3600.0),
        Parameter('speed', 1.0, 'scale of all motion, may be set at any time; 0 holds', minimum=0.0, maximum=1.0),
        Parameter('echo_topic', '', 'must keep coming, such as the state of a controller; none if empty'),
        Parameter('echo_type', 'sensor_msgs/JointState', 'type of the messages on echo_topic'),
        Parameter('echo_timeout', 0.5, 'longest silence on echo_topic, s', minimum=0.01, maximum=60.0),
        Parameter('priority', 0, 'SCHED_FIFO of the process, 1 to 99; 0: as an ordinary one', minimum=0, maximum=99),
        Parameter('lock_memory', False, 'keep the whole process in memory'),
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
        self._settings = parameters
        self._contract = RobotContract.load(find_contract(parameters.contract))
        hertz = parameters.control_hz or self._contract.rates.control_hz
        if not 20 <= hertz <= 200:
            raise ConfigError(f'control_hz: {hertz:g} is not allowed; allowed: 20 to 200')
        self._period = 1 / hertz
        self._report = ExecutionReport(LATE * self._period / parameters.real_time_factor)
        self._follower = _follower(self._contract, hertz, parameters)
        self._authority = Authority(_nanoseconds(parameters.hand_back) or None)
        if self._estopped:
            self._follower.estop()
        needs = self._follower.needs
        names = [stream.name for stream in self._contract.state] if parameters.trace_file else needs
        self._state = StateInbox(self, self._contract, names)
        self._state_watch = StateWatch(needs)
        self._echo_watch = EchoWatch(self, parameters.echo_topic, parameters.echo_type, parameters.echo_timeout)
        self._trace = ExecutionTrace(parameters.trace_file, self._contract)
        self._diagnostics = DiagnosticsOutbox(self, self._contract.label)
        self._status = self.create_publisher(ExecutionStatus, '~/status', qos.STATUS)
        self._listen()
        self._commands = CommandBridge(self, self._contract, hertz)
        self._prepare_process()

    def _listen(self) -> None:
        for topic, actor in (('action_chunk', Actor.POLICY), ('teleop/action_chunk', Actor.PERSON)):
            self.create_subscription(ChunkMessage, topic, partial(self._on_chunk, actor=actor), qos.CHUNK)
        self.create_subscription(Bool, 'estop', lambda message: message.data and self._estop(), qos.STATUS)
        self.create_subscription(Float64, '~/speed', self._on_speed, qos.STATUS)
        for act in (self._estop, self._reset_estop, self._hold, self._release):
            self.create_service(Trigger, f'~/{act.__name__[1:]}', partial(_answer, act))

    def _prepare_process(self) -> None:
        for complaint in be_punctual(self._settings.priority, self._settings.lock_memory):
            self.get_logger().warning(complaint)
        self.get_logger().info(f'commands at {1 / self._period:g} Hz')  # the first line costs several periods
        # What exists by now stays: the collector never walks it again.
        gc.collect()
        gc.freeze()

    def on_start(self) -> None:
        """Begin to publish commands."""
        self._follower.clear()
        self._report.clear()
        self._authority.clear()
        self._echo_watch.clear()
        gc.disable()
        self._timers_of_activity = [
            self.create_timer(self._period, self._tick),
            self.create_timer(1 / self._settings.status_hz, self._publish_status, clock=wall_clock()),
            self.create_timer(1.0, self._look_after, clock=wall_clock())]

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
        gc.enable()
        self._report.rest()
        self._publish_status()
        self._trace.flush()

    def on_teardown(self) -> None:
        """Close the trace, and be an ordinary process again."""
        self._trace.close()
        self._commands.destroy()
        gc.unfreeze()
        be_ordinary(self._settings.priority, self._settings.lock_memory)

    def _on_chunk(self, message: ChunkMessage, actor: Actor) -> None:
        if not self.active:
            return
        now = self.get_clock().now().nanoseconds
        code, complaint = self._complaint(now, self._state.fresh(now))
        if code != Code.OK:
            self._refuse(code, complaint)
            return
        try:
            chunk = codecs.message_to_chunk(message, self._contract)
            self._authority.check(chunk, actor, now)
            in_force = self._follower.accept(chunk, now, anew=self._authority.changes(actor))
        except ChunkError as error:
            self._refuse(error.code, str(error))
            if isinstance(error, ChunkJump) and actor == Actor.PERSON:
                self._follower.drop_plan()  # whoever reaches for the controls stops the policy in any case
                self._pass_to(actor, now)
        else:
            if in_force:
                self._pass_to(actor, now)
            self._report.accept(actor if in_force else Actor.NOBODY)

    def _pass_to(self, actor: Actor, now: int) -> None:
        if actor == Actor.PERSON and not self._authority.person_drives:
            self.get_logger().info('a person takes over')
        self._authority.take(actor, now)

    def _refuse(self, code: Code, message: str) -> None:
        self._report.refuse(code, message)
        if code != Code.CHUNK_OVERRULED:
            self.get_logger().warning(f'refused: {message}', throttle_duration_sec=1.0)
        self._publish_status()

    def _estop(self) -> tuple[bool, str]:
        known, self._estopped = self._estopped, True
        self._follower.estop()
        if not known:
            if self.active:
                self._tick()  # the safe command first: a line in the log can take longer than a period
            self.get_logger().warning('emergency stop')
        return True, 'stopped until reset_estop is called'

    def _reset_estop(self) -> tuple[bool, str]:
        self._estopped = False
        self._follower.reset_estop()
        self.get_logger().info('emergency stop reset')
        return True, 'waiting for a new chunk'

    def _hold(self) -> tuple[bool, str]:
        self._follower.drop_plan()
        self._authority.wait(self.get_clock().now().nanoseconds)
        return True, 'waiting for a chunk of a newer observation'

    def _release(self) -> tuple[bool, str]:
        if not self._authority.release(self.get_clock().now().nanoseconds):
            return False, 'no person drives'
        self._follower.drop_plan()
        self._report.release()
        self.get_logger().info('the person has let go')
        return True, 'waiting for a chunk of a newer observation'

    def _on_speed(self, message: Float64) -> None:
        (result,) = self.set_parameters([Setting('speed', value=message.data)])
        if not result.successful:
            self.get_logger().warning(f'refused the speed {message.data:g}: {result.reason}')

    def _tick(self) -> None:
        now = self.get_clock().now().nanoseconds
        if now == 0:  # simulated time has not begun
            return
        late = self._report.begin_tick()
        measured = self._state.fresh(now)
        complaint = self._complaint(now, measured)
        if complaint[0] != Code.OK:
            self._follower.drop_plan()
        if self._authority.expired(now):
            self._release()
        self._follower.speed = self.get_parameter('speed').value
        command = self._follower.command(now, measured)
        sent, source = self._send(command, now), self._authority.source(command.state)
        self._report.end_tick(command, complaint, source)
        if sent:
            self._trace.write(now, command, late, self._report.work_ms, source, self._state.newest())
        if self._report.changed:
            self._publish_status()

    def _complaint(self, now: int, measured: Mapping[str, np.ndarray]) -> tuple[Code, str]:
        code, message = self._state_watch.complaint(measured)
        return (code, message) if code != Code.OK else self._echo_watch.complaint(now)

    def _send(self, command: Command, now: int) -> bool:
        try:
            self._commands.publish(command.values, now, command.parts, command.velocities)
        except ActionNotFinite as error:
            self._report.drop(str(error))
            self.get_logger().error(str(error), throttle_duration_sec=1.0)
            return False
        return True

    def _publish_status(self) -> None:
        self._status.publish(self._report.status(self.get_clock().now().nanoseconds))

    def _look_after(self) -> None:
        """Once a second, between ticks: trace, diagnostics, and the young garbage, which is little."""
        self._trace.flush()
        now = self.get_clock().now().nanoseconds
        healthy, code, message, values = self._report.diagnostics(now)
        ages = {f'{name}: age': f'{age:.3f} s' for name, age in self._state.ages(now).items()}
        self._diagnostics.publish(healthy, code, message, {**values, **ages})
        gc.collect(1)


def _answer(act: Callable[[], tuple[bool, str]], request: Trigger.Request,
            response: Trigger.Response) -> Trigger.Response:
    response.success, response.message = act()
    return response


def _follower(contract: RobotContract, hertz: float, parameters: Parameters) -> ChunkFollower:
    ahead = parameters.future_tolerance
    return ChunkFollower(
        contract, control_hz=hertz, schedule=parameters.schedule, interpolation=parameters.interpolation,
        future_tolerance=_nanoseconds(ahead) if ahead >= 0 else None,
        trust=_nanoseconds(parameters.trust) or None, execute=parameters.execute or None,
        least_confidence=parameters.least_confidence, careful_below=parameters.careful_below)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def main() -> None:
    """Run the node."""
    run(ExecutorNode)


if __name__ == '__main__':
    main()
