"""The one table of node descriptions; launch files and the command line start nodes from it."""

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
from typing import Annotated, Any

import typer

from flow_vla_core.contract import config_folder
from flow_vla_core.errors import ConfigError, FlowVLAError, closest

__all__ = ['ARGUMENTS', 'GRAPHS', 'INTERRUPTIONS', 'NODES', 'Argument', 'Graph', 'ManagedProcesses', 'NodeKind',
           'NodeSpec', 'default_checkpoint', 'graph_specs', 'launch_description', 'node_spec', 'prepare_environment',
           'up']

PR_SET_PDEATHSIG = 1
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 4.0))


@dataclass(frozen=True)
class NodeKind:
    """Describes one of our nodes.

    Args:
        executable: console script in lib/flow_vla.
        module: Python module that runs it.
        takes: launch arguments that are parameters of the node.
        makes_clock: whether it publishes ``/clock`` and so never follows it.
    """

    executable: str
    module: str
    takes: tuple[str, ...]
    makes_clock: bool = False


@dataclass(frozen=True)
class Argument:
    """Describes a launch argument; an empty value leaves the parameter as the parameter files have it."""

    default: str
    description: str
    type: type = str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Names the nodes that run together, and what their user may set.

    Args:
        description: one line.
        nodes: names in `NODES`.
        arguments: names in `ARGUMENTS`.
        defaults: of arguments, where they differ from `ARGUMENTS`.
        simulated: further nodes for the argument ``robot:=metaworld``.
    """

    description: str
    nodes: tuple[str, ...]
    arguments: tuple[str, ...]
    defaults: Mapping[str, str] = field(default_factory=dict)
    simulated: tuple[str, ...] = ()


NODES = {
    'sim': NodeKind('sim_node', 'flow_vla_ros.sim.sim_node', ('contract', 'task', 'seed', 'execution_noise'), True),
    'expert': NodeKind('expert_node', 'flow_vla_ros.sim.expert_node', ('contract',)),
    'recorder': NodeKind('recorder_node', 'flow_vla_ros.recorder_node', ('contract', 'folder')),
    'policy': NodeKind('policy_node', 'flow_vla_ros.policy_node', ('contract', 'checkpoint')),
    'executor': NodeKind('executor_node', 'flow_vla_ros.executor_node', ('contract',)),
}

ARGUMENTS = {
    'contract': Argument('', 'robot contract: a file, or a name in config/robots'),
    'params_file': Argument('', 'YAML file of node parameters, read after those in config/nodes'),
    'namespace': Argument('', 'namespace of every node'),
    'autostart': Argument('true', 'whether the nodes configure and activate themselves', bool, ('true', 'false')),
    'use_sim_time': Argument('false', 'whether time comes from /clock', bool, ('true', 'false')),
    'checkpoint': Argument('', 'folder of the trained policy; empty: the one that ships with flow_vla'),
    'task': Argument('', 'Meta-World task of the first scene'),
    'seed': Argument('', 'seed of the first scene', int),
    'execution_noise': Argument('', 'disturbance of what the simulator executes, share of the range', float),
    'folder': Argument('', 'where episodes are written, a folder each'),
    'robot': Argument('', 'metaworld: run the simulated robot and its scripted expert as well', str, ('', 'metaworld')),
}

_COMMON = ('contract', 'params_file', 'namespace', 'autostart', 'use_sim_time')
_SIMULATED = ('task', 'seed', 'execution_noise')

GRAPHS = {
    'sim': Graph('the simulated robot', ('sim',), (*_COMMON, *_SIMULATED)),
    'capture': Graph('the recorder of episodes', ('recorder',), (*_COMMON, 'folder', 'robot', *_SIMULATED),
                     simulated=('sim', 'expert')),
    'policy': Graph('policy and executor, for a robot that runs already', ('policy', 'executor'),
                    (*_COMMON, 'checkpoint')),
    'bringup': Graph('a complete robot: simulation, policy and executor', ('sim', 'policy', 'executor'),
                     (*_COMMON, 'checkpoint', *_SIMULATED), {'use_sim_time': 'true'}),
}


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


def node_spec(name: str, *, contract: str | None = None, params_file: str | Path | None = None, namespace: str = '',
              use_sim_time: bool | None = None, parameters: Mapping[str, Any] | None = None) -> NodeSpec:
    """Describe one of the nodes of `NODES`; what is None stays as the parameter files have it."""
    if name not in NODES:
        raise ConfigError(f'no node {name!r}; {closest(name, NODES)}')
    kind = NODES[name]
    values = {'contract': contract, 'use_sim_time': None if kind.makes_clock else use_sim_time, **(parameters or {})}
    shipped = config_folder() / 'nodes' / f'{name}.yaml'
    files = [path for path in (shipped if shipped.is_file() else None, params_file) if path]
    return NodeSpec(kind.executable, name, {key: value for key, value in values.items() if value is not None},
                    namespace, kind.module, tuple(str(path) for path in files))


def graph_specs(graph: str, arguments: Mapping[str, str] | None = None) -> list[NodeSpec]:
    """Describe the nodes of a graph under launch arguments, given as text. Raise `ConfigError` for a bad one."""
    if graph not in GRAPHS:
        raise ConfigError(f'no graph {graph!r}; {closest(graph, GRAPHS)}')
    values = _argument_values(GRAPHS[graph], arguments or {})
    simulated = values.get('robot') == 'metaworld'
    if simulated:
        values['use_sim_time'] = True
    if 'checkpoint' in values:
        values['checkpoint'] = values['checkpoint'] or str(default_checkpoint())
    names = (*(GRAPHS[graph].simulated if simulated else ()), *GRAPHS[graph].nodes)
    return [_graph_node(name, values) for name in names]


def _graph_node(name: str, values: Mapping[str, Any]) -> NodeSpec:
    parameters = {key: values[key] for key in NODES[name].takes if values.get(key) is not None}
    return node_spec(name, params_file=values['params_file'], namespace=values['namespace'] or '',
                     use_sim_time=values['use_sim_time'], parameters={**parameters, 'autostart': values['autostart']})


def _argument_values(graph: Graph, given: Mapping[str, str]) -> dict[str, Any]:
    for key in given:
        if key not in graph.arguments:
            raise ConfigError(f'no argument {key!r}; {closest(key, graph.arguments)}')
    texts = {key: ARGUMENTS[key].default for key in graph.arguments} | dict(graph.defaults) | dict(given)
    return {key: _argument_value(key, text) for key, text in texts.items()}


def _argument_value(key: str, text: str) -> Any:
    argument, text = ARGUMENTS[key], str(text)
    if argument.choices and text not in argument.choices and text.lower() not in argument.choices:
        raise ConfigError(f'{key}: {text!r} is not possible; {closest(text, argument.choices)}')
    if not text:
        return None
    if argument.type is bool:
        return text.lower() == 'true'
    try:
        return argument.type(text)
    except ValueError:
        raise ConfigError(f'{key}: {text!r} is no {argument.type.__name__}') from None


def default_checkpoint() -> Path:
    """Return the folder of the policy that ships with the package."""
    return config_folder().parent / 'checkpoints' / 'metaworld'


def launch_description(graph: str) -> Any:
    """Build the `launch.LaunchDescription` of a graph: its arguments, and a lifecycle node for each description."""
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch.substitutions import LaunchConfiguration
    from launch_ros.actions import LifecycleNode

    described = GRAPHS[graph]

    def nodes(context: Any) -> list[LifecycleNode]:
        values = {key: LaunchConfiguration(key).perform(context) for key in described.arguments}
        return [LifecycleNode(
            package='flow_vla', executable=spec.executable, name=spec.name, namespace=spec.namespace, output='screen',
            parameters=[*spec.params_files, dict(spec.parameters)]) for spec in graph_specs(graph, values)]

    declared = [DeclareLaunchArgument(
        key, default_value=described.defaults.get(key, ARGUMENTS[key].default),
        description=ARGUMENTS[key].description) for key in described.arguments]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])


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


def up(
    graph: Annotated[str, typer.Argument(help='; '.join(f'{name}: {g.description}' for name, g in GRAPHS.items()))],
    arguments: Annotated[list[str] | None, typer.Argument(
        help='name:=value, as for ros2 launch: ' + ', '.join(ARGUMENTS), show_default=False)] = None,
) -> None:
    """Run the nodes of a graph until Ctrl-C, as ``ros2 launch flow_vla NAME.launch.py`` does.

    Discovery stays on this machine unless ROS_AUTOMATIC_DISCOVERY_RANGE is set. Ends with an error when a node ends.
    """
    specs = graph_specs(graph, _parse_arguments(arguments or []))
    with ManagedProcesses(isolated=False) as processes:
        for spec in specs:
            processes.start(spec)
            typer.echo(f'started {spec.path}')
        try:
            while not (ended := processes.poll()):
                time.sleep(0.2)
        except KeyboardInterrupt:
            return
    raise FlowVLAError(f'{", ".join(ended)} ended; its output above says why')


def _parse_arguments(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition(':=') for word in words]
    for name, mark, _ in pairs:
        if not mark:
            raise ConfigError(f'{name!r}: write name:=value')
    return {name: value for name, _, value in pairs}
