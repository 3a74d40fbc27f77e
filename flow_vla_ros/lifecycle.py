"""The one base class of our lifecycle nodes, and the one way to run them as processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import re
import signal
import socket
import sys
import threading
import traceback
from typing import Any, ClassVar

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from flow_vla_core.errors import FlowVLAError
from flow_vla_ros.parameters import Parameter, Parameters, declare, read

__all__ = ['FlowLifecycleNode', 'Parameter', 'Parameters', 'run']

AUTOSTART = Parameter('autostart', False, 'configure and activate without being told to')


class FlowLifecycleNode(LifecycleNode):
    """Runs the hooks of a node through the lifecycle, with one teardown for cleanup, shutdown and error.

    A subclass lists its `PARAMETERS` and fills the hooks `on_setup` (which gets the parameters), `on_start`, `on_stop`
    and `on_teardown`. A `FlowVLAError` in a hook is logged as one line and refuses the transition; any other exception
    is logged with its traceback and leads through error processing to unconfigured. Publishers, subscriptions,
    services, clients, guard conditions and timers made since `on_setup` began are removed with the teardown, so that a
    setup which failed half-way leaves nothing behind; `on_teardown` itself runs only after a setup that was completed.

    Args:
        name: of the node; by default the class's in snake case without ``_node``.
        arguments: as of `rclpy.node.Node`.
    """

    PARAMETERS: ClassVar[tuple[Parameter, ...]] = ()

    def __init__(self, name: str | None = None, **arguments: Any) -> None:
        super().__init__(name or _node_name(type(self)), **arguments)
        self.active = False
        self._is_set_up = False
        self._own_entities: set[Any] = set()
        declare(self, (AUTOSTART, *self.PARAMETERS))

    def on_setup(self, parameters: Parameters) -> None:
        """Load and open what the node needs."""

    def on_start(self) -> None:
        """Begin to work."""

    def on_stop(self) -> None:
        """Cease to work; the last command that this sends is the last one on the wire."""

    def on_teardown(self) -> None:
        """Free what `on_setup` made."""

    def autostart(self) -> bool:
        """Configure and activate; tell whether both went well."""
        return (self.trigger_configure() == TransitionCallbackReturn.SUCCESS
                and self.trigger_activate() == TransitionCallbackReturn.SUCCESS)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_setup`."""
        self._own_entities = set(self._entities())
        result = self._guard('configure', lambda: self.on_setup(read(self, (AUTOSTART, *self.PARAMETERS))))
        self._is_set_up = result == TransitionCallbackReturn.SUCCESS
        if not self._is_set_up:
            self._remove_entities()
        return self._and_managed(result, super().on_configure, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_start`."""
        result = self._and_managed(TransitionCallbackReturn.SUCCESS, super().on_activate, state)
        if result == TransitionCallbackReturn.SUCCESS:
            result = self._guard('activate', self.on_start)
        self.active = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `on_stop`."""
        return self._and_managed(self._stop(), super().on_deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down."""
        return self._and_managed(self._tear_down(), super().on_cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down, after `on_stop` if the node was active."""
        return self._and_managed(self._tear_down(), super().on_shutdown, state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tear down, after `on_stop` if the node was active, and go back to unconfigured."""
        self._tear_down()
        return self._and_managed(TransitionCallbackReturn.SUCCESS, super().on_error, state)

    def shut_down(self) -> None:
        """Bring the node to its end from any state: stop, tear down, finalise."""
        if self._state_machine.current_state[1] in ('unconfigured', 'inactive', 'active'):
            self.trigger_shutdown()
        else:
            self._tear_down()

    def _stop(self) -> TransitionCallbackReturn:
        if not self.active:
            return TransitionCallbackReturn.SUCCESS
        self.active = False
        stopped = self._guard('deactivate', self.on_stop) == TransitionCallbackReturn.SUCCESS
        # A node that failed to stop is not active any more: through error processing to unconfigured.
        return TransitionCallbackReturn.SUCCESS if stopped else TransitionCallbackReturn.ERROR

    def _tear_down(self) -> TransitionCallbackReturn:
        result = self._stop()
        if self._is_set_up:
            self._is_set_up = False
            if self._guard('tear down', self.on_teardown) != TransitionCallbackReturn.SUCCESS:
                result = TransitionCallbackReturn.ERROR
            self._remove_entities()
        return result

    def _guard(self, what: str, hook: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            hook()
        except FlowVLAError as error:
            self.get_logger().error(f'cannot {what}: {error}')
            return TransitionCallbackReturn.FAILURE
        except Exception:  # rclpy would swallow it
            self.get_logger().error(f'cannot {what}:\n{traceback.format_exc()}')
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def _and_managed(self, result: TransitionCallbackReturn, managed: Callable[[LifecycleState], Any],
                     state: LifecycleState) -> TransitionCallbackReturn:
        return result if result != TransitionCallbackReturn.SUCCESS else managed(state)

    def _entities(self) -> Iterator[Any]:
        for kind in (self.publishers, self.subscriptions, self.services, self.clients, self.timers, self.guards):
            yield from kind

    def _remove_entities(self) -> None:
        removers = ((self.timers, self.destroy_timer), (self.subscriptions, self.destroy_subscription),
                    (self.services, self.destroy_service), (self.clients, self.destroy_client),
                    (self.guards, self.destroy_guard_condition), (self.publishers, self.destroy_publisher))
        for kind, remove in removers:
            for entity in [entity for entity in kind if entity not in self._own_entities]:
                remove(entity)


def run(node_class: type[FlowLifecycleNode], args: list[str] | None = None) -> None:
    """Run a node until SIGINT or SIGTERM, then bring it to its end in order, and leave with exit code 0.

    rclpy's own signal handlers close the context before a last command could be sent, so they are not installed.
    Leaves with exit code 1 if the node can't be made, or starts by itself and fails to, or a callback raises.
    """
    with _signals() as asked_to_stop:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        try:
            failed = _run(node_class, asked_to_stop)
        finally:
            rclpy.try_shutdown()
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one would only interrupt Python's own clean-up
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1 if failed else 0)


def _run(node_class: type[FlowLifecycleNode], asked_to_stop: Future) -> bool:
    try:
        node = node_class()
    except (FlowVLAError, ParameterException, InvalidParameterTypeException, InvalidParameterValueException) as error:
        print(f'{_node_name(node_class)}: {error}', file=sys.stderr)
        return True
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    failed = False
    try:
        if node.get_parameter('autostart').value and not node.autostart():
            return True
        executor.spin_until_future_complete(asked_to_stop)
    except ExternalShutdownException:
        pass
    except Exception:
        failed = True
        node.get_logger().fatal(f'stopping: a callback raised\n{traceback.format_exc()}')
    finally:
        node.shut_down()
        executor.shutdown()
        node.destroy_node()
    return failed


@contextmanager
def _signals() -> Iterator[Future]:
    """Give a future that SIGINT or SIGTERM completes, also while the main thread waits inside the middleware."""
    future: Future = Future()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        if reader.recv(1) in (bytes([signal.SIGINT]), bytes([signal.SIGTERM])):
            future.set_result(None)

    watcher = threading.Thread(target=watch, name='signals', daemon=True)
    watcher.start()
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer.fileno())
    try:
        yield future
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


def _node_name(node_class: type) -> str:
    return re.sub(r'(?<!^)(?=[A-Z])', '_', node_class.__name__).lower().removesuffix('_node')
