"""Node descriptions, and processes that are never left behind."""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flow_vla_core.errors import ConfigError, FlowVLAError
from flow_vla_ros import bringup
from flow_vla_ros import processes as processes_of_nodes
from flow_vla_ros.bringup import (
    ARGUMENTS,
    GRAPHS,
    NODES,
    TELEOPERATION,
    ManagedProcesses,
    NodeSpec,
    graph_specs,
    node_spec,
    terminal_hint,
)
from flow_vla_ros.teleop import teleop_command

OBEDIENT = """
import sys, time
print('began', *sys.argv[1:], flush=True)
while True:
    time.sleep(0.1)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
print('began', child.pid, flush=True)
while True:
    time.sleep(0.1)
"""
PARENT = """
import time
from flow_vla_ros.bringup import ManagedProcesses, NodeSpec
with ManagedProcesses() as processes:
    print(processes.start(NodeSpec('x', 'x', module='obedient')).pid, flush=True)
    while True:
        time.sleep(0.1)
"""


def wait_for(predicate: Callable[[], object], seconds: float = 20.0) -> object:
    """Return the predicate's value as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := predicate()):
        assert time.monotonic() < end, f'not true within {seconds} s'
        time.sleep(0.02)
    return value


def gone(pid: int) -> bool:
    """Tell whether a process has ended (one that nobody has waited for yet has ended as well)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two modules to run in place of nodes."""
    (tmp_path / 'obedient.py').write_text(OBEDIENT)
    (tmp_path / 'stubborn.py').write_text(STUBBORN)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    return tmp_path


def fake(name: str, module: str = 'obedient', **parameters: object) -> NodeSpec:
    """Describe a node that one of the modules stands for."""
    return NodeSpec(name, name, parameters, module=module)


def read_log(logs: Path, name: str) -> list[str]:
    """Return the words of a node's output, as soon as there are any."""
    return wait_for(lambda: (logs / f'{name}.log').exists() and (logs / f'{name}.log').read_text().split())


@pytest.mark.parametrize('graph', GRAPHS)
def test_graph_is_made_from_the_table(graph: str) -> None:
    specs = graph_specs(graph, {'contract': 'metaworld', 'namespace': 'left'})
    assert [spec.name for spec in specs] == list(GRAPHS[graph].nodes)
    for spec in specs:
        assert spec.executable == NODES[spec.name].executable
        assert spec.namespace == 'left'
        assert spec.parameters['contract'] == 'metaworld' and spec.parameters['autostart'] is True
        assert '__ns:=/left' in spec.command() and NODES[spec.name].module in spec.command()


def test_every_argument_reaches_a_node_or_all() -> None:
    taken = {key for kind in NODES.values() for key in kind.takes}
    assert set(ARGUMENTS) == taken | {'params_file', 'namespace', 'autostart', 'use_sim_time', 'robot', 'teleop',
                                      'record'}
    for graph in GRAPHS.values():
        offered = set(graph.arguments) & taken
        chosen = ('recorder', *TELEOPERATION) if 'teleop' in graph.arguments else ()
        assert offered <= {key for name in (*graph.nodes, *graph.simulated, *graph.watching, *chosen)
                            for key in NODES[name].takes}


def test_simulator_makes_the_clock_and_the_others_follow_it() -> None:
    parameters = {spec.name: spec.parameters for spec in graph_specs('bringup', {'seed': '3', 'task': 'reach'})}
    assert 'use_sim_time' not in parameters['sim']
    assert parameters['policy']['use_sim_time'] is parameters['executor']['use_sim_time'] is True
    assert parameters['sim']['seed'] == 3 and parameters['sim']['task'] == 'reach'
    assert Path(parameters['policy']['checkpoint']).parts[-2:] == ('checkpoints', 'metaworld')


def test_capture_of_the_simulated_robot() -> None:
    assert [spec.name for spec in graph_specs('capture', {})] == ['recorder']
    specs = graph_specs('capture', {'robot': 'metaworld', 'folder': 'bags'})
    assert [spec.name for spec in specs] == ['sim', 'expert', 'recorder']
    assert specs[2].parameters == {'contract': 'metaworld', 'folder': 'bags', 'use_sim_time': True, 'autostart': True}
    assert {spec.parameters['contract'] for spec in graph_specs('capture', {'robot': 'so101'})} == {'so101'}


def test_a_person_drives_in_the_experts_place() -> None:
    specs = {spec.name: spec.parameters for spec in graph_specs('capture', {
        'robot': 'so101', 'teleop': 'joystick', 'bindings': 'playstation', 'instruction': 'push the cube'})}
    assert list(specs) == ['sim', 'recorder', 'executor', 'joystick']
    assert specs['joystick'] == {'contract': 'so101', 'bindings': 'playstation', 'instruction': 'push the cube',
                                 'use_sim_time': True, 'autostart': True}
    assert [spec.name for spec in graph_specs('capture', {'teleop': 'leader'})] == ['recorder', 'executor', 'leader']


@pytest.mark.parametrize('graph', ['policy', 'bringup'])
def test_interventions_are_recorded_beside_the_policy(graph: str) -> None:
    specs = graph_specs(graph, {'teleop': 'joystick', 'record': 'true', 'folder': 'bags'})
    assert [spec.name for spec in specs] == [*GRAPHS[graph].nodes, 'recorder', 'joystick']
    assert specs[-2].parameters['folder'] == 'bags'
    assert len(graph_specs(graph, {'record': 'false'})) == len(GRAPHS[graph].nodes)


def test_what_needs_a_terminal_is_left_out_and_told() -> None:
    arguments = {'robot': 'so101', 'teleop': 'keyboard', 'instruction': 'push it', 'namespace': 'left'}
    assert [spec.name for spec in graph_specs('capture', arguments)] == ['sim', 'recorder', 'executor']
    hint = terminal_hint('capture', arguments)
    assert hint.startswith('drive from a second terminal: flow-vla teleop keyboard ')
    words = shlex.split(hint.partition('flow-vla teleop keyboard ')[2])
    assert set(words) == {'contract:=so101', 'instruction:=push it', 'namespace:=left', 'use_sim_time:=true'}
    command = teleop_command('keyboard', words)
    assert {'contract:="so101"', 'use_sim_time:=true', 'autostart:=true', '__ns:=/left'} <= set(command)
    assert terminal_hint('capture', {'teleop': 'joystick'}) == terminal_hint('sim', {}) == ''


@pytest.mark.parametrize(('kind', 'word', 'complaint'), [
    ('keybord', 'contract:=so101', "did you mean 'keyboard'"),
    ('joystick', 'contrat:=so101', "did you mean 'contract'"),
    ('leader', 'instruction:=go', "no argument 'instruction'"), ('joystick', 'so101', 'write name:=value'),
    ('joystick', 'use_sim_time:=yes', "use_sim_time: 'yes' is not possible")])
def test_bad_arguments_of_teleoperation_are_named(kind: str, word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        teleop_command(kind, [word])


def test_a_robots_own_policy_is_taken_and_execution_is_chosen_at_launch() -> None:
    arguments = {'contract': 'so101', 'schedule': 'ensembling', 'realtime': 'prefix'}
    parameters = {spec.name: spec.parameters for spec in graph_specs('policy', arguments)}
    assert list(parameters) == ['policy', 'executor', 'skill']
    assert Path(parameters['policy']['checkpoint']).parts[-2:] == ('checkpoints', 'so101')
    assert (parameters['policy']['realtime'], parameters['executor']['schedule']) == ('prefix', 'ensembling')
    assert 'schedule' not in parameters['policy'] and 'schedule' not in parameters['skill']


def test_training_from_a_replay_takes_lists_and_lets_a_policy_watch() -> None:
    arguments = {'contract': 'so101', 'bags': 'one,two', 'rate': '4', 'loop': 'true', 'out': 'run', 'steps': '300'}
    player, trainer = graph_specs('replay_training', arguments)
    assert player.parameters == {'contract': 'so101', 'bags': ['one', 'two'], 'rate': 4.0, 'loop': True,
                                 'wait_for_subscribers': True, 'autostart': True}
    assert trainer.parameters == {'contract': 'so101', 'out': 'run', 'steps': 300, 'use_sim_time': True,
                                  'autostart': True}
    watcher = graph_specs('replay_training', {**arguments, 'shadow': 'true'})[2]
    assert (watcher.name, watcher.parameters['shadow'], watcher.parameters['follow_checkpoints']) == (
        'policy', True, True)
    assert Path(watcher.parameters['checkpoint']).parts[-2:] == ('checkpoints', 'so101')


def test_unset_arguments_leave_the_parameter_files_their_say() -> None:
    (spec,) = graph_specs('sim', {'params_file': 'mine.yaml'})
    assert spec.parameters == {'autostart': True}
    assert spec.params_files[-1] == 'mine.yaml'


@pytest.mark.parametrize(('graph', 'arguments', 'complaint'), [
    ('simm', {}, "did you mean 'sim'"),
    ('sim', {'sed': '1'}, "did you mean 'seed'"),
    ('sim', {'seed': 'one'}, "seed: 'one' is no int"),
    ('sim', {'execution_noise': 'much'}, "'much' is no float"),
    ('sim', {'autostart': 'maybe'}, "'maybe' is not possible"),
    ('capture', {'robot': 'metawold'}, "did you mean 'metaworld'"),
    ('policy', {'schedule': 'synchron'}, "did you mean 'synchronous'"),
])
def test_bad_arguments_are_named(graph: str, arguments: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        graph_specs(graph, arguments)


def test_unknown_node_is_named() -> None:
    with pytest.raises(ConfigError, match="no node 'policie'; did you mean 'policy'"):
        node_spec('policie')


def test_parameters_are_written_as_yaml() -> None:
    command = node_spec('sim', contract='a "b"', parameters={'lockstep': True, 'execution_noise': 0.25}).command()
    assert command[:3] == [sys.executable, '-m', 'flow_vla_ros.sim.sim_node']
    assert {'contract:="a \\"b\\""', 'lockstep:=true', 'execution_noise:=0.25'} <= set(command)


def test_node_sees_its_parameters_and_writes_its_log(modules: Path) -> None:
    with ManagedProcesses(logs=modules / 'logs') as processes:
        processes.start(fake('a', rate=1), rate=2)
        words = read_log(modules / 'logs', 'a')
    assert words[:2] == ['began', '--ros-args'] and words[-1] == 'rate:=2'


def test_block_ends_its_nodes_however_it_ends(modules: Path) -> None:
    with pytest.raises(RuntimeError, match='broken'), ManagedProcesses() as processes:
        started = [processes.start(fake(name)) for name in ('a', 'b')]
        raise RuntimeError('broken')
    assert all(process.returncode is not None for process in started)


def test_stubborn_node_is_killed_with_its_children(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple((number, 0.3 if number != signal.SIGKILL else 10.0) for number, _ in processes_of_nodes.STOP_SECONDS)
    monkeypatch.setattr(processes_of_nodes, 'STOP_SECONDS', quick)
    with ManagedProcesses(logs=modules) as processes:
        process = processes.start(fake('s', 'stubborn'))
        child = int(read_log(modules, 's')[1])
    assert process.returncode == -signal.SIGKILL
    assert wait_for(lambda: gone(child))


def test_dead_nodes_are_told_and_can_be_started_again(modules: Path) -> None:
    with ManagedProcesses() as processes:
        first = processes.start(fake('a'))
        processes.start(fake('b'))
        with pytest.raises(FlowVLAError, match='the node a is running already'):
            processes.start(fake('a'))
        assert processes.poll() == []
        first.kill()
        assert wait_for(processes.poll) == ['a']
        processes.start(fake('a'))
        assert processes.poll() == []
        processes.stop('b')
        assert processes.poll() == []


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_signal_to_the_parent_leaves_no_node_behind(modules: Path, number: int) -> None:
    command = [sys.executable, '-c', PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        node = int(parent.stdout.readline())
        assert not gone(node)
        parent.send_signal(number)
        assert parent.wait(30) != 0
    assert wait_for(lambda: gone(node))


def test_environment_is_filled_in_and_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ('AMENT_PREFIX_PATH', 'ROS_DOMAIN_ID', 'ROS_AUTOMATIC_DISCOVERY_RANGE', 'ROS_DISTRO'):
        monkeypatch.setenv(key, 'x')
        monkeypatch.delenv(key)
    bringup.prepare_environment(isolated=False)
    assert os.environ.get('AMENT_PREFIX_PATH', sys.prefix) == sys.prefix
    assert os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 'ROS_DOMAIN_ID' not in os.environ
    bringup.prepare_environment()
    assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 100
    monkeypatch.setenv('ROS_DOMAIN_ID', '42')
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET')
    bringup.prepare_environment()
    assert (os.environ['ROS_DOMAIN_ID'], os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE']) == ('42', 'SUBNET')


def test_up_runs_a_graph_until_it_is_interrupted(graph: object) -> None:
    from rosgraph_msgs.msg import Clock
    ticks = graph.inbox(Clock, '/clock')
    command = [sys.executable, '-m', 'flow_vla_ros.cli', 'up', 'sim', 'namespace:=left', 'task:=faucet-open']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout.readline() == 'started /left/sim\n'
            graph.spin_until(lambda: len(ticks) > 2, deadline=60)
            assert ('sim', '/left') in graph.probe.get_node_names_and_namespaces()
            nodes = [process.pid for process in psutil.Process(running.pid).children(recursive=True)]
        finally:
            running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    assert nodes and all(map(gone, nodes))


def test_up_says_which_node_ended(ros_environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'flow_vla_ros.cli', 'up', 'sim', f'contract:={tmp_path / "none.yaml"}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'none.yaml: No such file' in done.stderr
    assert done.stderr.splitlines()[-1] == 'flow-vla: sim ended; its output above says why'
