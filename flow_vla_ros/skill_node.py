"""Offers the robot's skill as an action: follow these words until it is done."""

from __future__ import annotations

from dataclasses import dataclass
import math
import time
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.exceptions import InvalidTopicNameException
from rclpy.subscription import Subscription
from rclpy.task import Future
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

from flow_vla.action import ExecuteInstruction
from flow_vla.msg import ExecutionStatus, PolicyStatus
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code
from flow_vla_ros import codecs, qos
from flow_vla_ros.attempt import Attempt, Outcome, Patience, View
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.words import Words

__all__ = ['SkillNode', 'main']

FRESH = 1.0         # s; both statuses come at 10 Hz
ASK_AGAIN = 0.2     # s between two calls to hold


@dataclass
class Execution:
    """Holds what belongs to one goal.

    Args:
        handle: of the goal.
        attempt: decides how it ends.
        answer: completed with the result.
        begin: ROS time at which it came, ns.
        chunks: that the executor had accepted by then, None until that is known.
        success: whether the success condition holds.
        listener: to the success topic.
        cancelled: whether somebody asked for the end.
        asked_to_hold: when the executor was last told to, s.
        held: when it last answered, s.
    """

    handle: ServerGoalHandle
    attempt: Attempt
    answer: Future
    begin: int
    chunks: int | None = None
    success: bool = False
    listener: Subscription | None = None
    cancelled: bool = False
    asked_to_hold: float = -math.inf
    held: float = math.inf


class SkillNode(FlowLifecycleNode):
    """Serves ``execute_instruction``: says the words, watches policy and executor, and answers how it went.

    One instruction is followed at a time; a newer goal replaces the one before without a stop. Whatever else ends a
    goal, first the instruction is taken back, so that the policy falls silent, and the executor is told to hold; the
    answer comes when the robot stands still. Goals that come while the node is not active are answered NOT_READY.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('feedback_hz', 5.0, 'rate of feedback, Hz', minimum=0.1, maximum=50.0),
        Parameter('ready_timeout', 3.0, 'policy or executor may be missing so long, s', minimum=0.0, maximum=60.0),
        Parameter('acting_timeout', 5.0, 'the policy may be unable to act so long, s', minimum=0.0, maximum=600.0),
        Parameter('stop_timeout', 3.0, 'the robot may take so long to stand still, s', minimum=0.0, maximum=60.0),
        Parameter('success_hold', 0.0, 'the success condition has to hold so long, s', minimum=0.0, maximum=60.0),
    )

    def __init__(self, name: str | None = None, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        self._current: Execution | None = None
        # Lives as long as the node: results still have to go out after a deactivation.
        self._server = ActionServer(self, ExecuteInstruction, 'execute_instruction', self._execute,
                                    cancel_callback=self._on_cancel)

    def destroy_node(self) -> None:
        """Remove the action server as well."""
        self._server.destroy()
        super().destroy_node()

    def on_setup(self, parameters: Parameters) -> None:
        """Open the topics."""
        contract = RobotContract.load(find_contract(parameters.contract))
        self._patience = Patience(parameters.ready_timeout, parameters.acting_timeout, parameters.stop_timeout,
                                  parameters.success_hold)
        self._feedback_period = 1 / parameters.feedback_hz
        self._heard: dict[type, tuple[float, Any]] = {}
        self._words = Words(self, contract.instruction.topic)
        self._hold = self.create_client(Trigger, 'executor/hold')
        self.create_subscription(PolicyStatus, 'policy/status', self._hear, qos.STATUS)
        self.create_subscription(ExecutionStatus, 'executor/status', self._hear, qos.STATUS)

    def on_start(self) -> None:
        """Begin to accept goals."""
        self._timer = self.create_timer(self._feedback_period, self._on_timer, clock=wall_clock())

    def on_stop(self) -> None:
        """End the goal that is being followed: take the words back, and let the executor hold."""
        self.destroy_timer(self._timer)
        if self._current is not None:
            self._stop_robot(self._current)
            self._finish(self._current, Outcome(Code.NOT_READY, 'the skill node was deactivated'))

    async def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        """Return the result of a goal, whenever it is known."""
        execution = Execution(handle, self._attempt(handle.request), Future(), self.get_clock().now().nanoseconds)
        if not self.active:
            self._finish(execution, Outcome(Code.NOT_READY, 'the skill node is not active'))
        elif complaint := self._listen(execution):
            self._finish(execution, Outcome(Code.BAD_GOAL, complaint))
        else:
            self._begin(execution)
        return await execution.answer

    def _attempt(self, goal: ExecuteInstruction.Goal) -> Attempt:
        patience = self._patience if self.active else Patience()
        return Attempt(goal.instruction, codecs.from_time(goal.timeout) * 1e-9, patience, time.monotonic())

    def _listen(self, execution: Execution) -> str:
        """Subscribe to the success condition; return what is wrong with the goal, or nothing."""
        goal = execution.handle.request
        if not goal.instruction.strip():
            return 'the instruction is empty'
        if codecs.from_time(goal.timeout) < 0:
            return f'the timeout is {codecs.from_time(goal.timeout) * 1e-9:g} s; allowed: 0 or more'
        if goal.success_topic:
            try:
                execution.listener = self.create_subscription(
                    Bool, goal.success_topic, lambda message: self._on_success(execution, message), qos.SENSOR)
            except InvalidTopicNameException as error:
                return f'success_topic: {" ".join(str(error).split())}'
        return ''

    def _begin(self, execution: Execution) -> None:
        if self._current is not None:
            self._finish(self._current, Outcome(Code.REPLACED, 'a newer goal took over'))
        self._current = execution
        instruction = execution.handle.request.instruction
        self.get_logger().info(f'instruction: {instruction!r}')
        self._words.say(instruction)
        self._step()

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        if self._current is not None and self._current.handle == handle:
            self._current.cancelled = True
            self._step()
        return CancelResponse.ACCEPT

    def _hear(self, status: PolicyStatus | ExecutionStatus) -> None:
        self._heard[type(status)] = time.monotonic(), status
        self._step()

    def _on_success(self, execution: Execution, message: Bool) -> None:
        execution.success = message.data
        self._step()

    def _on_timer(self) -> None:
        self._step()
        if self._current is not None:
            self._send_feedback(self._current)

    def _step(self) -> None:
        """Look at the goal that is being followed: end it, or stop the robot, if it is time."""
        execution = self._current
        if execution is None or not self.active:
            return
        view = self._view(execution)
        if execution.chunks is None and view.execution is not None:
            execution.chunks = view.execution.accepted_chunks
        if execution.attempt.judge(view) is None:
            return
        if view.clock - execution.asked_to_hold >= ASK_AGAIN:
            execution.asked_to_hold = view.clock
            self._stop_robot(execution)
        if (outcome := execution.attempt.finished(view)) is not None:
            self._finish(execution, outcome)

    def _view(self, execution: Execution) -> View:
        clock = time.monotonic()
        fresh = {kind: status for kind, (heard, status) in self._heard.items() if clock - heard <= FRESH}
        held = ExecutionStatus in fresh and self._heard[ExecutionStatus][0] > execution.held
        return View(clock, self._elapsed(execution) * 1e-9, fresh.get(PolicyStatus), fresh.get(ExecutionStatus),
                    execution.success, execution.cancelled, held)

    def _elapsed(self, execution: Execution) -> int:
        """Return the ROS time since the goal came, ns; it begins anew when the clock goes back."""
        now = self.get_clock().now().nanoseconds
        execution.begin = min(execution.begin, now)
        return now - execution.begin

    def _stop_robot(self, execution: Execution) -> None:
        self._words.say('')
        if self._hold.service_is_ready():
            self._hold.call_async(Trigger.Request()).add_done_callback(
                lambda _: setattr(execution, 'held', min(execution.held, time.monotonic())))

    def _send_feedback(self, execution: Execution) -> None:
        view = self._view(execution)
        code, message = execution.attempt.hindrance(view)
        if execution.attempt.stopping:
            message = 'stopping'
        status = view.execution or ExecutionStatus(confidence=math.nan)
        execution.handle.publish_feedback(ExecuteInstruction.Feedback(
            elapsed=codecs.to_duration(self._elapsed(execution)), chunks=self._chunks(execution),
            confidence=status.confidence, state=status.state, code=code, message=message))

    def _chunks(self, execution: Execution) -> int:
        heard = self._heard.get(ExecutionStatus)
        if heard is None or execution.chunks is None:
            return 0
        return max(heard[1].accepted_chunks - execution.chunks, 0)  # the count begins anew with each activation

    def _finish(self, execution: Execution, outcome: Outcome) -> None:
        if execution is self._current:
            self._current = None
        if execution.listener is not None:
            self.destroy_subscription(execution.listener)
        handle = execution.handle
        if outcome.code == Code.OK:
            handle.succeed()
        elif outcome.code == Code.CANCELLED and handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        self.get_logger().info(f'{outcome.code.name}: {handle.request.instruction!r} {outcome.message}'.rstrip())
        execution.answer.set_result(ExecuteInstruction.Result(
            code=outcome.code, message=outcome.message, elapsed=codecs.to_duration(self._elapsed(execution)),
            chunks=self._chunks(execution) if self._is_set_up else 0))


def main() -> None:
    """Run the node."""
    run(SkillNode)


if __name__ == '__main__':
    main()
