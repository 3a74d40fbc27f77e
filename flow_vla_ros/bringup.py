"""The one table of node descriptions; launch files and the command line start nodes from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
import shlex
import time
from typing import Annotated, Any

import typer

from flow_vla_core.contract import config_folder
from flow_vla_core.errors import ConfigError, FlowVLAError, closest
from flow_vla_ros.processes import INTERRUPTIONS, ManagedProcesses, NodeSpec, prepare_environment

__all__ = ['ARGUMENTS', 'GRAPHS', 'INTERRUPTIONS', 'NODES', 'TELEOPERATION', 'Argument', 'Graph', 'ManagedProcesses',
           'NodeKind', 'NodeSpec', 'default_checkpoint', 'graph_specs', 'launch_description', 'node_spec',
           'parse_arguments', 'prepare_environment', 'terminal_hint', 'up']


@dataclass(frozen=True)
class NodeKind:
    """Describes one of our nodes.

    Args:
        executable: console script in lib/flow_vla.
        module: Python module that runs it.
        takes: launch arguments that are parameters of the node.
        makes_clock: whether it publishes ``/clock`` and so never follows it.
        needs_terminal: whether it is run by hand in a terminal of its own, and left out of graphs.
    """

    executable: str
    module: str
    takes: tuple[str, ...]
    makes_clock: bool = False
    needs_terminal: bool = False


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
        simulated: further nodes for the argument ``robot``; the expert only where no person drives.
        watching: further nodes for the argument ``shadow``.
    """

    description: str
    nodes: tuple[str, ...]
    arguments: tuple[str, ...]
    defaults: Mapping[str, str] = field(default_factory=dict)
    simulated: tuple[str, ...] = ()
    watching: tuple[str, ...] = ()


_TELEOP = ('contract', 'bindings', 'instruction')

NODES = {
    'sim': NodeKind('sim_node', 'flow_vla_ros.sim.sim_node', ('contract', 'task', 'seed', 'execution_noise'), True),
    'expert': NodeKind('expert_node', 'flow_vla_ros.sim.expert_node', ('contract',)),
    'recorder': NodeKind('recorder_node', 'flow_vla_ros.recorder_node', ('contract', 'folder')),
    'policy': NodeKind('policy_node', 'flow_vla_ros.policy_node', ('contract', 'checkpoint', 'realtime', 'shadow')),
    'executor': NodeKind('executor_node', 'flow_vla_ros.executor_node', ('contract', 'schedule')),
    'skill': NodeKind('skill_node', 'flow_vla_ros.skill_node', ('contract',)),
    'joystick': NodeKind('joystick_node', 'flow_vla_ros.joystick_node', _TELEOP),
    'keyboard': NodeKind('keyboard_node', 'flow_vla_ros.keyboard_node', _TELEOP, needs_terminal=True),
    'leader': NodeKind('leader_node', 'flow_vla_ros.leader_node', ('contract', 'bindings')),
    'player': NodeKind('player_node', 'flow_vla_ros.player', ('contract', 'bags', 'rate', 'loop'), True),
    'replay_trainer': NodeKind('replay_trainer_node', 'flow_vla_ros.replay_trainer_node',
                               ('contract', 'out', 'resume', 'config', 'steps', 'checkpoint')),
}
TELEOPERATION = ('joystick', 'keyboard', 'leader')

ARGUMENTS = {
    'contract': Argument('', 'robot contract: a file, or a name in config/robots'),
    'params_file': Argument('', 'YAML file of node parameters, read after those in config/nodes'),
    'namespace': Argument('', 'namespace of every node'),
    'autostart': Argument('true', 'whether the nodes configure and activate themselves', bool, ('true', 'false')),
    'use_sim_time': Argument('false', 'whether time comes from /clock', bool, ('true', 'false')),
    'checkpoint': Argument('', 'folder of the trained policy; empty: the one that ships with flow_vla'),
    'realtime': Argument('', 'how a chunk continues the one in force', str, ('', 'auto', 'none', 'guided', 'prefix')),
    'schedule': Argument('', 'which actions of which chunks are due', str,
                         ('', 'asynchronous', 'synchronous', 'ensembling')),
    'task': Argument('', 'task of the first scene'),
    'seed': Argument('', 'seed of the first scene', int),
    'execution_noise': Argument('', 'disturbance of what the simulator executes, share of the range', float),
    'folder': Argument('', 'where episodes are written, a folder each'),
    'bags': Argument('', 'bags to play, or folders of them; several with commas between', list),
    'rate': Argument('', 'recorded seconds per second', float),
    'loop': Argument('', 'begin again after the last bag', bool, ('', 'true', 'false')),
    'out': Argument('', 'folder of the run'),
    'resume': Argument('', 'go on from what is in the folder of the run', bool, ('', 'true', 'false')),
    'config': Argument('', 'settings of the training: a file, or a name in config/train'),
    'steps': Argument('', 'of the optimiser, in all', int),
    'shadow': Argument('', 'let a policy watch, which follows the checkpoints and compares its chunks with the '
                       'commands', bool, ('', 'true', 'false')),
    'robot': Argument('', 'run this simulated robot as well; its scripted expert too unless a person drives', str,
                      ('', 'metaworld', 'so101')),
    'teleop': Argument('none', 'what a person drives with; brings the executor too', str, ('none', *TELEOPERATION)),
    'bindings': Argument('', 'what sticks, keys or joints do: a file, or a name in config/teleop'),
    'instruction': Argument('', 'words that are put in force at the start, with a joystick or a keyboard'),
    'record': Argument('false', 'whether the recorder runs as well', bool, ('true', 'false')),
}

_COMMON = ('contract', 'params_file', 'namespace', 'autostart', 'use_sim_time')
_POLICY = ('checkpoint', 'realtime', 'schedule')
_REPLAY = ('bags', 'rate', 'loop', 'out', 'resume', 'config', 'steps', 'checkpoint', 'shadow')
_SIMULATED = ('task', 'seed', 'execution_noise')
_DRIVEN = ('teleop', 'bindings', 'instruction')
_INTERVENED = ('record', 'folder', *_DRIVEN)

GRAPHS = {
    'sim': Graph('the simulated robot', ('sim',), (*_COMMON, *_SIMULATED)),
    'capture': Graph('the recorder of episodes, and what a person drives with', ('recorder',),
                     (*_COMMON, 'folder', 'robot', *_SIMULATED, *_DRIVEN), simulated=('sim', 'expert')),
    'policy': Graph('policy, executor and skill, for a robot that runs already', ('policy', 'executor', 'skill'),
                    (*_COMMON, *_POLICY, *_INTERVENED)),
    'replay_training': Graph('training while bags are played', ('player', 'replay_trainer'),
                             (*_COMMON, *_REPLAY), {'use_sim_time': 'true'}, watching=('policy',)),
    'bringup': Graph('a complete robot: simulation, policy, executor and skill', ('sim', 'policy', 'executor', 'skill'),
                     (*_COMMON, *_POLICY, *_SIMULATED, *_INTERVENED), {'use_sim_time': 'true'}),
}


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
    values = _resolve(graph, arguments or {})
    return [_graph_node(name, values) for name in _graph_nodes(GRAPHS[graph], values)]


def _resolve(graph: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Read launch arguments, and fill in what follows from them."""
    if graph not in GRAPHS:
        raise ConfigError(f'no graph {graph!r}; {closest(graph, GRAPHS)}')
    values = _argument_values(GRAPHS[graph], arguments)
    if simulated := values.get('robot'):
        values |= {'use_sim_time': True, 'contract': values['contract'] or simulated}
    return values


def _graph_nodes(graph: Graph, values: Mapping[str, Any]) -> list[str]:
    """List the nodes that run, the ones that need a terminal of their own left out."""
    teleop = values.get('teleop', 'none')
    driven = teleop != 'none'
    simulated = graph.simulated if values.get('robot') else ()
    names = [name for name in simulated if name != 'expert' or not driven] + list(graph.nodes)
    names += [*(graph.watching if values.get('shadow') else ()), *['recorder'] * bool(values.get('record'))]
    names += ['executor', teleop] if driven else []
    return [name for name in dict.fromkeys(names) if not NODES[name].needs_terminal]


def _graph_node(name: str, values: Mapping[str, Any]) -> NodeSpec:
    parameters = {key: values[key] for key in NODES[name].takes if values.get(key) is not None}
    if name == 'policy':
        parameters.setdefault('checkpoint', str(default_checkpoint(values['contract'])))
        parameters |= {'follow_checkpoints': True} if values.get('shadow') else {}
    if name == 'player':
        parameters['wait_for_subscribers'] = True
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
    if argument.type is list:
        return [word for word in text.split(',') if word]
    try:
        return argument.type(text)
    except ValueError:
        raise ConfigError(f'{key}: {text!r} is no {argument.type.__name__}') from None


def default_checkpoint(contract: str | None = None) -> Path:
    """Return the folder of the policy that ships with the package for a contract, given its name or its file."""
    return config_folder().parent / 'checkpoints' / Path(contract or 'metaworld').stem


def terminal_hint(graph: str, arguments: Mapping[str, str]) -> str:
    """Say what to run in a terminal of its own beside a graph under launch arguments; nothing if it has all."""
    values = _resolve(graph, arguments)
    teleop = values.get('teleop', 'none')
    if teleop not in NODES or not NODES[teleop].needs_terminal:
        return ''
    words = [f'{key}:={shlex.quote(str(values[key]))}' for key in (*NODES[teleop].takes, 'params_file', 'namespace')
             if values.get(key)] + ['use_sim_time:=true'] * bool(values['use_sim_time'])
    return f'drive from a second terminal: flow-vla teleop {" ".join((teleop, *words))}'


def launch_description(graph: str) -> Any:
    """Build the `launch.LaunchDescription` of a graph: its arguments, and a lifecycle node for each description."""
    from launch import LaunchDescription
    from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
    from launch.substitutions import LaunchConfiguration
    from launch_ros.actions import LifecycleNode

    described = GRAPHS[graph]

    def nodes(context: Any) -> list[Any]:
        values = {key: LaunchConfiguration(key).perform(context) for key in described.arguments}
        hint = terminal_hint(graph, values)
        return [LifecycleNode(
            package='flow_vla', executable=spec.executable, name=spec.name, namespace=spec.namespace, output='screen',
            parameters=[*spec.params_files, dict(spec.parameters)]) for spec in graph_specs(graph, values)] + (
                [LogInfo(msg=hint)] if hint else [])

    declared = [DeclareLaunchArgument(
        key, default_value=described.defaults.get(key, ARGUMENTS[key].default),
        description=ARGUMENTS[key].description) for key in described.arguments]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])


def up(
    graph: Annotated[str, typer.Argument(help='; '.join(f'{name}: {g.description}' for name, g in GRAPHS.items()))],
    arguments: Annotated[list[str] | None, typer.Argument(
        help='name:=value, as for ros2 launch: ' + ', '.join(ARGUMENTS), show_default=False)] = None,
) -> None:
    """Run the nodes of a graph until Ctrl-C, as ``ros2 launch flow_vla NAME.launch.py`` does.

    Discovery stays on this machine unless ROS_AUTOMATIC_DISCOVERY_RANGE is set. Ends with an error when a node ends.
    """
    values = parse_arguments(arguments or [])
    specs = graph_specs(graph, values)
    with ManagedProcesses(isolated=False) as processes:
        for spec in specs:
            processes.start(spec)
            typer.echo(f'started {spec.path}')
        if hint := terminal_hint(graph, values):
            typer.echo(hint)
        try:
            while not (ended := processes.poll()):
                time.sleep(0.2)
        except KeyboardInterrupt:
            return
    raise FlowVLAError(f'{", ".join(ended)} ended; its output above says why')


def parse_arguments(words: Sequence[str]) -> dict[str, str]:
    """Read words such as ``name:=value``. Raise `ConfigError` for one without a mark."""
    pairs = [word.partition(':=') for word in words]
    for name, mark, _ in pairs:
        if not mark:
            raise ConfigError(f'{name!r}: write name:=value')
    return {name: value for name, _, value in pairs}
