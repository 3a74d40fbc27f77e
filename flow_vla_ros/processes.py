"""Nodes as processes: how one is started without ``ros2 run``, and how all of them come to their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import ctypes
from dataclasses import dataclass, field, replace
from importlib import import_module
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from flow_vla_core.contract import config_folder
from flow_vla_core.errors import FlowVLAError
from flow_vla_ros.shared_memory import remove_abandoned

__all__ = ['INTERRUPTIONS', 'ManagedProcesses', 'NodeSpec', 'prepare_environment']

PR_SET_PDEATHSIG = 1
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 4.0))


@dataclass(frozen=True)
class NodeSpec:
    """Describes one node to start.

    Args:
        executable: console script in lib/flow_vla.
        name: of the node on the graph.
        parameters: values that win over every file.
        namespace: of the node, empty for the root.
        module: Python module that runs it.
        params_files: YAML files of parameters; later ones win.
    """

    executable: str
    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ''
    module: str = ''
    params_files: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Name on the graph with its namespace, ``/left/policy``."""
        return '/'.join(('', *filter(None, (self.namespace.strip('/'), self.name))))

    def command(self) -> list[str]:
        """Return the command line that runs the node without ``ros2 run``."""
        words = [sys.executable, '-m', self.module, '--ros-args', '-r', f'__node:={self.name}']
        if self.namespace:
            words += ['-r', f'__ns:={self.path.rpartition("/")[0]}']
        for path in self.params_files:
            words += ['--params-file', path]
        for key, value in self.parameters.items():
            words += ['-p', f'{key}:={json.dumps(value)}']
        return words


def prepare_environment(isolated: bool = True) -> None:
    """Fill in what this process and its children need to find each other; what the user has set stays.

    Args:
        isolated: choose a ROS domain of our own, so that nobody's robot listens.
    """
    prefixes = [path for path in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if path]
    if sys.prefix not in prefixes and (Path(sys.prefix) / 'share' / 'ament_index').is_dir():
        os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join([sys.prefix, *prefixes])
    if os.environ.get('ROS_DISTRO') == 'humble':
        os.environ.setdefault('ROS_LOCALHOST_ONLY', '1')
    else:
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    vendor = 'FASTRTPS' if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy') else 'FASTDDS'
    os.environ.setdefault(f'{vendor}_DEFAULT_PROFILES_FILE', str(config_folder() / 'dds.xml'))
    if isolated:
        os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))


class ManagedProcesses:
    """Runs nodes as subprocesses and leaves none behind, however the ``with`` block ends.

    Each node gets a process group of its own. Leaving the block ends the groups with SIGINT, then SIGTERM, then
    SIGKILL, each with a deadline. SIGTERM and SIGHUP of this process end the block like Ctrl-C, and the kernel ends
    the nodes if this process is killed. Start nodes from a thread that lives as long as they do.

    Args:
        logs: folder for the output of each node, ``NAME.log``; None lets it go to the terminal.
        isolated: choose a ROS domain of our own unless ``ROS_DOMAIN_ID`` is set.
    """

    def __init__(self, logs: Path | None = None, isolated: bool = True) -> None:
        self._logs = logs
        self._isolated = isolated
        self._processes: dict[str, subprocess.Popen] = {}
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> ManagedProcesses:
        prepare_environment(self._isolated)
        remove_abandoned()
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            self._handlers = {number: signal.signal(number, _interrupt) for number in INTERRUPTIONS}
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers:  # a second Ctrl-C must not leave a node behind
            signal.signal(number, signal.SIG_IGN)
        try:
            self.stop_all()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def start(self, spec: NodeSpec, **overrides: Any) -> subprocess.Popen:
        """Start a node, with some of its parameters replaced.

        Raise `FlowVLAError` if its name is running already, `ModuleNotFoundError` where there is no ROS.
        """
        if spec.module.startswith('flow_vla_ros.'):
            import_module('rclpy')
        key = spec.path.removeprefix('/')
        if key in self._processes and self._processes[key].poll() is None:
            raise FlowVLAError(f'the node {key} is running already')
        spec = replace(spec, parameters={**spec.parameters, **overrides})
        output = self._open_log(key)
        try:
            self._processes[key] = subprocess.Popen(
                spec.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT if output else None,
                start_new_session=True, preexec_fn=_end_with_parent)
        finally:
            if output:
                output.close()
        return self._processes[key]

    def poll(self) -> list[str]:
        """Return the names of the nodes that have ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def stop(self, name: str) -> None:
        """End one node."""
        self._stop([self._processes.pop(name)])

    def stop_all(self) -> None:
        """End every node, the last one started first."""
        processes = list(self._processes.values())[::-1]
        self._processes.clear()
        self._stop(processes)

    def _open_log(self, key: str) -> Any:
        if self._logs is None:
            return None
        self._logs.mkdir(parents=True, exist_ok=True)
        return open(self._logs / f'{key.replace("/", "_")}.log', 'ab')

    def _stop(self, processes: Sequence[subprocess.Popen]) -> None:
        for number, seconds in STOP_SECONDS:
            for process in processes:
                _signal_group(process, number)
            deadline = time.monotonic() + seconds
            processes = [process for process in processes if not _ended(process, deadline)]
            if not processes:
                return


def _ended(process: subprocess.Popen, deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    _signal_group(process, signal.SIGKILL)  # what the node itself may have started
    return True


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


_prctl = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None


def _end_with_parent() -> None:
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
