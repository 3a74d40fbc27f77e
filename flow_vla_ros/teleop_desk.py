"""Asks recorder and executor for what a person wants, and keeps what they say about themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import time
from typing import Any

from rclpy.node import Node
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from flow_vla.msg import Episode, ExecutionStatus, RecorderStatus
from flow_vla.srv import MarkEpisode, StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import Code
from flow_vla_core.teleoperation import Function
from flow_vla_core.types import Actor
from flow_vla_ros import qos
from flow_vla_ros.words import Words

__all__ = ['TeleopDesk']

PATIENCE = 10.0     # s that an answer may take: a recorder that stops waits for streams that lag behind
SERVICES = {
    'recorder/start': StartEpisode, 'recorder/stop': StopEpisode, 'recorder/mark': MarkEpisode,
    'recorder/rerecord': Trigger, 'recorder/check': Trigger, 'executor/estop': Trigger,
    'executor/reset_estop': Trigger, 'executor/release': Trigger, 'leader/take_over': Trigger}


class TeleopDesk:
    """Turns functions into calls of services, without ever waiting for their answers.

    Args:
        node: hosts clients, publishers and subscriptions.
        contract: names the topic of the words.
        task: label of the episodes that are started.
        say: called with one line for each answer, and for what could not be asked.
        on_let_go: called when a person no longer drives, whoever ended it.
    """

    def __init__(self, node: Node, contract: RobotContract, task: str, say: Callable[[str], None],
                 on_let_go: Callable[[], None] = lambda: None) -> None:
        self._task, self._say, self._on_let_go = task, say, on_let_go
        self.recorder: RecorderStatus | None = None
        self.execution: ExecutionStatus | None = None
        self._outcome = Episode.UNKNOWN
        self._pending: dict[str, float] = {}
        self._clients_by_name = {name: node.create_client(kind, name) for name, kind in SERVICES.items()}
        self._stop_button = node.create_publisher(Bool, 'estop', qos.STATUS)
        self._words = Words(node, contract.instruction.topic)
        node.create_subscription(RecorderStatus, 'recorder/status', self._on_recorder, qos.STATUS)
        node.create_subscription(ExecutionStatus, 'executor/status', self._on_execution, qos.STATUS)

    @property
    def recording(self) -> bool:
        """Whether an episode is being recorded, as far as is known."""
        return self.recorder is not None and self.recorder.state == RecorderStatus.RECORDING

    @property
    def person_drives(self) -> bool:
        """Whether the executor says so."""
        return self.execution is not None and self.execution.source == Actor.PERSON

    @property
    def has_leader(self) -> bool:
        """Whether a leader arm can be asked to take over."""
        return self._clients_by_name['leader/take_over'].service_is_ready()

    @property
    def words(self) -> str:
        """The words in force."""
        return self._words.in_force

    def ask(self, function: Function) -> None:
        """Do what a function says, as far as recorder and executor do it."""
        if function == Function.ESTOP:
            self._stop_button.publish(Bool(data=True))
        name, request = self._request(function)
        client = self._clients_by_name[name]
        if not client.service_is_ready():
            self._say(f'nobody serves {name}')
            return
        self._pending[name] = time.monotonic()
        client.call_async(request).add_done_callback(partial(self._on_answer, name, function))

    def instruct(self, words: str) -> None:
        """Put words in force: for the policy, and for the episode that is being recorded."""
        self._words.say(words)
        self._say(f'words: {words}')

    def look_after(self) -> None:
        """Tell of answers that never came."""
        for name, since in list(self._pending.items()):
            if time.monotonic() - since > PATIENCE:
                del self._pending[name]
                self._say(f'{name}: no answer for {PATIENCE:g} s')

    def _request(self, function: Function) -> tuple[str, Any]:
        if function == Function.START:
            return 'recorder/start', StartEpisode.Request(instruction=self.words, task=self._task)
        if function in (Function.KEEP, Function.DISCARD):
            return 'recorder/stop', StopEpisode.Request(keep=function == Function.KEEP, outcome=self._outcome)
        if function in (Function.SUCCESS, Function.FAILURE):
            outcome = Episode.SUCCESS if function == Function.SUCCESS else Episode.FAILURE
            return 'recorder/mark', MarkEpisode.Request(outcome=outcome)
        names = {Function.RERECORD: 'recorder/rerecord', Function.CHECK: 'recorder/check',
                 Function.ESTOP: 'executor/estop', Function.RESET_ESTOP: 'executor/reset_estop',
                 Function.RELEASE: 'executor/release', Function.TAKE_OVER: 'leader/take_over'}
        return names[function], Trigger.Request()

    def _on_answer(self, name: str, function: Function, future: Any) -> None:
        self._pending.pop(name, None)
        if future.cancelled() or future.result() is None:
            return
        answer = future.result()
        if answer.success and function in (Function.SUCCESS, Function.FAILURE):
            self._outcome = Episode.SUCCESS if function == Function.SUCCESS else Episode.FAILURE
        elif answer.success and function in (Function.START, Function.RERECORD):
            self._outcome = Episode.UNKNOWN
        self._say(f'{function.value}: {_describe(answer)}')

    def _on_recorder(self, status: RecorderStatus) -> None:
        self.recorder = status
        if self.recording:
            self._outcome = status.outcome

    def _on_execution(self, status: ExecutionStatus) -> None:
        drove = self.person_drives
        self.execution = status
        if drove and not self.person_drives:
            self._on_let_go()


def _describe(answer: Any) -> str:
    code, message = getattr(answer, 'code', 0), answer.message
    if not answer.success:
        return f'refused: {Code(code).name + ": " if code else ""}{message}'
    return message or getattr(answer, 'id', '') or 'done'
