"""Gives a simulated robot scenes and words and waits for outcomes; the client side of evaluations and of the demo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import os
from pathlib import Path
import threading
import time

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from flow_vla.msg import PolicyStatus, SimulationState
from flow_vla.srv import ResetSimulation
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import Code, FlowVLAError
from flow_vla_core.evaluation.direct import Episode
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_core.evaluation.traces import SIM_COLUMNS
from flow_vla_ros import qos
from flow_vla_ros.bringup import ManagedProcesses
from flow_vla_ros.codecs import from_time
from flow_vla_ros.trace import Trace

__all__ = ['Conductor']

SERVICE_SECONDS = 60.0  # a reset builds a new scene when the task changes
ANSWER_SECONDS = 3.0    # after which a question is asked again: an answer is lost while the two ends still connect
READY_SECONDS = 120.0   # a policy is loaded and warmed up
STALL_SECONDS = 20.0    # without a new state of the simulation
HOPELESS = (Code.INSTRUCTION_UNKNOWN, Code.INFERENCE_FAILED)
DRIVERS = ('executor', 'policy')  # in this order: a chunk finds its executor active, and the last command is rest


class Conductor:
    """Runs episodes on a graph of sim, policy and executor; use it as a context manager.

    Between two episodes policy and executor are inactive, so that no plan of one reaches the next; the simulation goes
    on in real time all the while. Messages are taken by a thread of its own.

    Args:
        contract: names the instruction topic.
        processes: of the nodes; an episode ends with an error as soon as one of them has ended.
        logs: folder of their output, quoted in errors.
        trace: CSV file for the wall time at which the simulation reached each stamp; None writes none.
        attach: functions that add subscriptions of their own to the node that is listening.
    """

    def __init__(self, contract: RobotContract, processes: ManagedProcesses, logs: Path | None = None,
                 trace: Path | None = None, attach: Sequence[Callable[[Node], None]] = ()) -> None:
        self._processes, self._logs = processes, logs
        self._trace = Trace(trace or '', SIM_COLUMNS)
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=int(os.environ.get('ROS_DOMAIN_ID', 0)))
        self.node = rclpy.create_node('conductor', context=self._context)
        self._changed = threading.Condition()
        self._state: SimulationState | None = None
        self._status: PolicyStatus | None = None
        self._words = ''  # of the episode; what the policy says of other words is about those before
        self.span = (0, 0)  # first and last stamp of the last episode, ns
        self._resets = 0
        self._limit: int | None = None
        self._final: SimulationState | None = None  # the state that decided the episode
        self._failure: BaseException | None = None
        self._stopped: Callable[[], bool] = lambda: False
        self._instructions = self.node.create_publisher(String, contract.instruction.topic, qos.LATCHED)
        self.node.create_subscription(Clock, '/clock', self._on_clock, qos.CLOCK)
        self.node.create_subscription(SimulationState, 'sim/state', self._on_state, qos.STATE)
        self.node.create_subscription(PolicyStatus, 'policy/status', self._on_status, qos.STATUS)
        self._reset = self.node.create_client(ResetSimulation, 'sim/reset')
        self._change = {name: self.node.create_client(ChangeState, f'{name}/change_state') for name in DRIVERS}
        self._get = {name: self.node.create_client(GetState, f'{name}/get_state') for name in DRIVERS}
        for subscribe in attach:
            subscribe(self.node)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._thread = threading.Thread(target=self._spin, name='conductor', daemon=True)

    def __enter__(self) -> Conductor:
        self._executor.add_node(self.node)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        rclpy.shutdown(context=self._context)
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self._trace.close()

    def stop_when(self, stopped: Callable[[], bool]) -> None:
        """Raise `KeyboardInterrupt` out of whatever is waited for as soon as the function is true."""
        self._stopped = stopped

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until policy and executor are active and the simulation publishes."""
        for name in DRIVERS:
            self.wait(lambda name=name: self._is_active(name), seconds, f'{name} to become active')
        self.wait(lambda: self._state is not None, seconds, 'the first state of the simulation')

    def run(self, episode: Episode, limit: int) -> EpisodeResult:
        """Run one episode until success or ``limit`` steps; raise `FlowVLAError` if it can't be run at all."""
        self.rest()
        self._prepare(episode)
        self._limit, self._final = limit, None
        start = from_time(self._state.header.stamp)
        for name in DRIVERS:
            self._transition(name, Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE)
        self.wait(self._is_over, None, f'the end of {episode.task}')
        self.span = start, from_time(self._final.header.stamp)
        self.rest()
        return EpisodeResult(episode.task, episode.instruction, episode.seed, self._final.success, self._final.steps,
                             limit)

    def rest(self) -> None:
        """Make executor and policy inactive; the robot holds."""
        for name in DRIVERS:
            self._transition(name, Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE)

    def ask(self, client: object, request: object) -> object:
        """Call a service that changes nothing, again if no answer comes, and return its answer."""
        for _ in range(round(SERVICE_SECONDS / ANSWER_SECONDS)):
            future = self._send(client, request)
            if self._becomes_true(future.done, ANSWER_SECONDS):
                return future.result()
        raise FlowVLAError(f'waited {SERVICE_SECONDS:.0f} s in vain for an answer of {client.srv_name}')

    def wait(self, predicate: Callable[[], bool], seconds: float | None, what: str) -> None:
        """Wait for a predicate; without a limit of its own, as long as the simulation goes on."""
        if not self._becomes_true(predicate, seconds):
            raise FlowVLAError(f'waited {seconds or STALL_SECONDS:.0f} s in vain for {what}')

    def _becomes_true(self, predicate: Callable[[], bool], seconds: float | None) -> bool:
        deadline = time.monotonic() + (seconds or STALL_SECONDS)
        seen = self._state
        while not predicate():
            self._check()
            if seconds is None and self._state is not seen:
                seen, deadline = self._state, time.monotonic() + STALL_SECONDS
            if time.monotonic() > deadline:
                return False
            with self._changed:
                self._changed.wait(0.05)
        return True

    def _send(self, client: object, request: object) -> object:
        self.wait(client.service_is_ready, SERVICE_SECONDS, f'the service {client.srv_name}')
        future = client.call_async(request)
        future.add_done_callback(lambda _: self._notify())
        return future

    def _prepare(self, episode: Episode) -> None:
        """Say the words and change the scene."""
        resets, self._words = self._resets, episode.instruction
        self._instructions.publish(String(data=episode.instruction))
        future = self._send(self._reset, ResetSimulation.Request(task=episode.task, seed=episode.seed))
        self.wait(lambda: future.done() or self._shows(episode, resets), SERVICE_SECONDS, 'an answer of sim/reset')
        if future.done() and not future.result().success:
            raise FlowVLAError(f'sim/reset: {future.result().message}')
        # A step after the reset, every stream has shown the new scene.
        self.wait(lambda: self._resets > resets and self._state.steps > 0, SERVICE_SECONDS,
                  f'the scene of {episode.task}')
        self._status = None

    def _is_over(self) -> bool:
        status = self._status
        if status is not None and status.code in HOPELESS and status.instruction == self._words:
            raise FlowVLAError(f'the policy does not act: {status.message}')
        return self._final is not None

    def _shows(self, episode: Episode, resets: int) -> bool:
        state = self._state
        return self._resets > resets and (state.task, state.seed) == (episode.task, episode.seed)

    def _is_active(self, name: str) -> bool:
        """Ask once: a node answers nothing while it is being set up, as long as that takes."""
        if not self._get[name].service_is_ready():
            return False
        future = self._send(self._get[name], GetState.Request())
        return (self._becomes_true(future.done, ANSWER_SECONDS)
                and future.result().current_state.id == State.PRIMARY_STATE_ACTIVE)

    def _lifecycle(self, name: str) -> int:
        return self.ask(self._get[name], GetState.Request()).current_state.id

    def _transition(self, name: str, transition: int, goal: int) -> None:
        """Change a lifecycle state; what the node says of itself counts where the answer is lost."""
        if self._lifecycle(name) == goal:
            return
        future = self._send(self._change[name], ChangeState.Request(transition=Transition(id=transition)))
        end = time.monotonic() + SERVICE_SECONDS
        while not self._becomes_true(future.done, ANSWER_SECONDS):
            if self._lifecycle(name) == goal:
                return
            if time.monotonic() > end:
                raise FlowVLAError(f'waited {SERVICE_SECONDS:.0f} s in vain for {name} to change its state')
        if not future.result().success:
            raise FlowVLAError(f'{name} refused a change of its lifecycle state{self._quote(name)}')

    def _check(self) -> None:
        if self._stopped():
            raise KeyboardInterrupt
        if self._failure is not None:
            raise FlowVLAError('a callback failed') from self._failure
        if ended := self._processes.poll():
            raise FlowVLAError(f'{", ".join(ended)} ended{"".join(map(self._quote, ended))}')

    def _quote(self, name: str) -> str:
        path = None if self._logs is None else self._logs / f'{name}.log'
        return f'; {path}:\n' + '\n'.join(_last_lines(path)) if path is not None and path.is_file() else ''

    def _on_clock(self, message: Clock, info: dict) -> None:
        self._trace.write((from_time(message.clock), info['source_timestamp']))

    def _on_state(self, state: SimulationState) -> None:
        if self._state is not None and state.steps <= self._state.steps:
            self._resets += 1
        self._state = state
        if self._limit is not None and self._final is None and (state.success or state.steps >= self._limit):
            self._final = state
        self._notify()

    def _on_status(self, status: PolicyStatus) -> None:
        self._status = status

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:
            self._failure = error


def _last_lines(path: Path, count: int = 8) -> Sequence[str]:
    return path.read_text(errors='replace').splitlines()[-count:]
