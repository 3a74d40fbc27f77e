"""The two sides of a training that is watched while its checkpoints act: what is learned, and what is in force."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import math
import os
from pathlib import Path
from statistics import fmean
import threading
import time

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from rigs.listener import Listener
from rigs.swaps import Swap
from std_msgs.msg import String

from flow_vla.msg import PolicyStatus, TrainingStatus
from flow_vla_core.errors import FlowVLAError
from flow_vla_ros import qos
from flow_vla_ros.bringup import ManagedProcesses

__all__ = ['Course', 'Follower', 'ros_domain', 'thin']

END_SECONDS = 120.0  # until a trainer has saved


@contextmanager
def ros_domain(number: int) -> Iterator[None]:
    """Let the processes that are started meanwhile live in a ROS domain."""
    before = os.environ['ROS_DOMAIN_ID']
    os.environ['ROS_DOMAIN_ID'] = str(number)
    try:
        yield
    finally:
        os.environ['ROS_DOMAIN_ID'] = before


class Course(Listener):
    """Hears in a thread of its own how a training goes, and passes its checkpoints on; a context manager.

    Args:
        domain: of ROS.
        processes: of player and trainer.
    """

    def __init__(self, domain: int, processes: ManagedProcesses) -> None:
        super().__init__('course', processes, domain)
        self.status, self.announced = TrainingStatus(), []
        self._points: dict[int, dict[str, float]] = {}
        self._began = time.monotonic()
        self._hear: Callable[[str], None] = lambda checkpoint: None
        self._failure: FlowVLAError | None = None
        self._ending = threading.Event()
        self.node.create_subscription(TrainingStatus, 'replay_trainer/status', self._on_status, qos.STATUS)
        self.node.create_subscription(String, 'checkpoint', self._on_checkpoint, qos.LATCHED_STATE)
        self._change = self.node.create_client(ChangeState, 'replay_trainer/change_state')
        self._thread = threading.Thread(target=self._listen, name='course', daemon=True)

    def __enter__(self) -> Course:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join()
        super().__exit__(*error)

    def pass_on(self, hear: Callable[[str], None]) -> None:
        """Let a function hear of the newest checkpoint now, and of those that come in the thread of messages."""
        self._hear = hear
        hear(self.announced[-1])

    def wait_until(self, predicate: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait in another thread; raise `FlowVLAError` when the training or a process ends, or time is over."""
        end = time.monotonic() + seconds
        while not predicate():
            if self._failure is not None:
                raise self._failure
            if self.status.state == TrainingStatus.FAILED:
                raise FlowVLAError(f'the training failed: {self.status.message}')
            if time.monotonic() > end:
                raise FlowVLAError(f'waited {seconds:g} s in vain for {what}; the trainer says: {self.status.message}')
            time.sleep(0.05)

    def end(self) -> str:
        """Let the trainer save and cease; return the folder of its last checkpoint."""
        future = self._change.call_async(ChangeState.Request(
            transition=Transition(id=Transition.TRANSITION_DEACTIVATE)))
        self.wait_until(future.done, END_SECONDS, 'the end of the training')
        self.wait_until(lambda: self._is_told(self.status.step), END_SECONDS, 'the last checkpoint')
        return self.announced[-1]

    def curve(self, most: int = 50) -> list[dict[str, float]]:
        """Return seconds since the start, step, loss, episodes and frames at as many times; losses are means."""
        return thin([self._points[step] for step in sorted(self._points)], most)

    def _is_told(self, step: int) -> bool:
        return bool(self.announced) and int(Path(self.announced[-1]).name.removeprefix('step_')) == step

    def _on_status(self, status: TrainingStatus) -> None:
        self.status = status
        if not math.isnan(status.loss):
            seconds = round(time.monotonic() - self._began, 1)
            self._points[status.step] = {'seconds': seconds, 'step': status.step, 'loss': round(status.loss, 5),
                                         'episodes': status.episodes, 'frames': status.frames}

    def _on_checkpoint(self, message: String) -> None:
        self.announced.append(message.data)
        self._hear(message.data)

    def _listen(self) -> None:
        try:
            self.becomes_true(self._ending.is_set, math.inf)
        except FlowVLAError as error:
            self._failure = error


def thin(points: Sequence[Mapping[str, float]], most: int) -> list[dict[str, float]]:
    """Put neighbours together until there are no more than ``most``: the last one's values, the mean of the losses."""
    size = math.ceil(len(points) / most)
    groups = [points[start:start + size] for start in range(0, len(points), size or 1)]
    return [{**group[-1], 'loss': round(fmean(point['loss'] for point in group), 5)} for group in groups]


class Follower:
    """Names checkpoints to a policy, and notes when each was in force.

    Args:
        checkpoint: that the policy begins with.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint, self.swaps = checkpoint, []
        self._asked: dict[str, int] = {}
        self._publish: Callable[[String], None] | None = None

    def attach(self, node: Node) -> None:
        """Speak and listen on a node that somebody else spins."""
        self._publish = node.create_publisher(String, 'checkpoint', qos.LATCHED).publish
        node.create_subscription(PolicyStatus, 'policy/status', self._on_status, qos.STATUS)
        for checkpoint in list(self._asked)[-1:]:
            self._publish(String(data=checkpoint))

    def ask(self, checkpoint: str) -> None:
        """Name a checkpoint; before there is a node, it waits until then."""
        self._asked[checkpoint] = time.time_ns()
        if self._publish is not None:
            self._publish(String(data=checkpoint))

    def _on_status(self, status: PolicyStatus) -> None:
        if status.checkpoint == self.checkpoint or status.checkpoint not in self._asked:
            return
        self.checkpoint = status.checkpoint
        self.swaps.append(Swap(status.checkpoint, self._asked[status.checkpoint], time.time_ns()))
