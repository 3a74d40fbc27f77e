"""The command `flow-vla do`: give a running robot an instruction and wait for how it went."""

from __future__ import annotations

from typing import Annotated, Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
import typer

from flow_vla.action import ExecuteInstruction
from flow_vla_core.errors import Code, ConfigError, FlowVLAError
from flow_vla_ros import codecs
from flow_vla_ros.bringup import prepare_environment

__all__ = ['Skill', 'do']

SERVER_SECONDS = 10.0


class Skill:
    """Calls ``execute_instruction`` and prints what is heard of it.

    Args:
        namespace: of the skill node.

    Raises:
        FlowVLAError: if nobody serves the action.
    """

    def __init__(self, namespace: str = '') -> None:
        self._node = rclpy.create_node('do', namespace=namespace)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._client = ActionClient(self._node, ExecuteInstruction, 'execute_instruction')
        if not self._client.wait_for_server(SERVER_SECONDS):
            name = self._node.resolve_topic_name('execute_instruction')
            raise FlowVLAError(f'nobody serves the action {name}: is the skill node running in this ROS domain?')

    def run(self, goal: ExecuteInstruction.Goal) -> ExecuteInstruction.Result:
        """Send a goal and return its result; Ctrl-C cancels it and waits until the robot stands still."""
        handle = self._wait(self._client.send_goal_async(goal, feedback_callback=_report))
        if not handle.accepted:
            raise FlowVLAError('the goal was turned down')
        answer = handle.get_result_async()
        try:
            return self._wait(answer).result
        except KeyboardInterrupt:
            typer.echo('cancelling', err=True)
            handle.cancel_goal_async()
            return self._wait(answer).result

    def close(self) -> None:
        """Remove the node."""
        self._client.destroy()
        self._executor.shutdown()
        self._node.destroy_node()

    def _wait(self, future: Future) -> Any:
        self._executor.spin_until_future_complete(future)
        return future.result()


def do(
    instruction: Annotated[str, typer.Argument(help='what the robot shall do')],
    timeout: Annotated[float, typer.Option(min=0, help='s after which it is given up; 0: never')] = 0.0,
    success_topic: Annotated[str, typer.Option(help='std_msgs/Bool that says when it is done')] = '',
    namespace: Annotated[str, typer.Option(help='of the skill node')] = '',
) -> None:
    """Give a running robot an instruction, say how it goes, and wait for the end; Ctrl-C stops the robot.

    Without a success topic only the timeout or Ctrl-C ends it. The exit code is 0 if the success condition was met,
    otherwise 1.
    """
    if not (timeout or success_topic):
        raise ConfigError('give --timeout or --success-topic: nothing else would end it')
    prepare_environment(isolated=False)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C is for us: the robot is to be stopped first
    try:
        skill = Skill(namespace)
        result = skill.run(ExecuteInstruction.Goal(
            instruction=instruction, timeout=codecs.to_duration(round(timeout * 1e9)), success_topic=success_topic))
        skill.close()
    finally:
        rclpy.try_shutdown()
    name, seconds = Code(result.code).name, codecs.from_time(result.elapsed) * 1e-9
    typer.echo(f'{name} after {seconds:.1f} s and {result.chunks} chunks. {result.message}'.rstrip())
    if result.code != Code.OK:
        raise typer.Exit(1)


def _report(message: Any) -> None:
    feedback = message.feedback
    seconds = codecs.from_time(feedback.elapsed) * 1e-9
    typer.echo(f'{seconds:6.1f} s  {feedback.chunks:4d} chunks  {feedback.message or "acting"}')
