"""The launch files under the real launch: described arguments, nodes that come up, and an end that leaves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import signal
import subprocess
import sys

import psutil
import pytest

from flow_vla_ros.bringup import ARGUMENTS, GRAPHS, NODES

pytest.importorskip('launch_ros', reason='launch and launch_ros come with a ROS distribution, not from PyPI')

FOLDER = Path(__file__).resolve().parents[1] / 'launch'
START_SECONDS = 60.0
RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    AnyLaunchDescriptionSource(sys.argv[1]), launch_arguments=[word.split(':=') for word in sys.argv[2:]])]))
sys.exit(service.run())
"""


@contextmanager
def launched(graph: str, *arguments: str) -> Iterator[psutil.Process]:
    """Launch a file; afterwards interrupt it as Ctrl-C would, and see that it ends well and that no node stays."""
    command = [sys.executable, '-c', RUN, str(FOLDER / f'{graph}.launch.py'), *arguments]
    running = subprocess.Popen(command, start_new_session=True)
    process = psutil.Process(running.pid)
    nodes: list[psutil.Process] = []
    try:
        yield process
        nodes = process.children(recursive=True)
    finally:
        running.send_signal(signal.SIGINT)
        try:
            assert running.wait(30) == 0
        finally:
            running.kill()
    assert nodes
    _, alive = psutil.wait_procs(nodes, timeout=10)
    assert not alive


def state_of(graph: object, node: str) -> str:
    """Ask a node for its lifecycle state."""
    from lifecycle_msgs.srv import GetState
    client = graph.probe.create_client(GetState, f'{node}/get_state')
    graph.spin_until(client.service_is_ready, START_SECONDS)
    graph.probe.destroy_client(client)
    return graph.call(GetState, f'{node}/get_state').current_state.label


@pytest.mark.parametrize('graph', GRAPHS)
def test_arguments_are_declared_and_described(graph: str) -> None:
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    description = get_launch_description_from_python_launch_file(str(FOLDER / f'{graph}.launch.py'))
    declared = {action.name: action for action in description.entities if isinstance(action, DeclareLaunchArgument)}
    assert tuple(declared) == GRAPHS[graph].arguments
    for name, argument in declared.items():
        assert argument.description == ARGUMENTS[name].description
        assert argument.default_value is not None


def test_every_graph_has_its_launch_file() -> None:
    assert {path.name for path in FOLDER.glob('*.launch.py')} == {f'{graph}.launch.py' for graph in GRAPHS}


@pytest.mark.parametrize('name', GRAPHS)
def test_nodes_come_up_in_their_namespace_and_wait(name: str, graph: object) -> None:
    with launched(name, 'namespace:=left', 'autostart:=false', 'contract:=metaworld'):
        for node in GRAPHS[name].nodes:
            assert state_of(graph, f'/left/{node}') == 'unconfigured'


def test_simulated_capture_starts_by_itself(graph: object, tmp_path: Path) -> None:
    from std_srvs.srv import SetBool
    with launched('capture', 'robot:=metaworld', f'folder:={tmp_path}', 'task:=faucet-close', 'seed:=4'):
        for node in ('sim', 'expert', 'recorder'):
            graph.spin_until(lambda node=node: state_of(graph, f'/{node}') == 'active', START_SECONDS)
        assert graph.call(SetBool, '/expert/enable', SetBool.Request(data=True)).success


def test_capture_by_a_person_brings_robot_recorder_executor_and_joystick(graph: object, tmp_path: Path) -> None:
    with launched('capture', 'robot:=metaworld', 'teleop:=joystick', f'folder:={tmp_path}', 'instruction:=reach out'):
        for node in ('sim', 'recorder', 'executor', 'joystick'):
            graph.spin_until(lambda node=node: state_of(graph, f'/{node}') == 'active', START_SECONDS)
        assert 'expert' not in graph.probe.get_node_names()


def test_what_needs_a_terminal_is_told_and_not_launched() -> None:
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import perform_substitutions
    context = LaunchContext()
    context.launch_configurations['teleop'] = 'keyboard'
    entities = []
    for action in get_launch_description_from_python_launch_file(str(FOLDER / 'capture.launch.py')).entities:
        if isinstance(action, DeclareLaunchArgument):
            action.execute(context)
        elif isinstance(action, OpaqueFunction):
            entities = action.execute(context)
    hints = [perform_substitutions(context, entity.msg) for entity in entities if isinstance(entity, LogInfo)]
    assert len(entities) == 3 and hints == ['drive from a second terminal: flow-vla teleop keyboard']


def test_parameters_come_from_the_users_file(graph: object, tmp_path: Path) -> None:
    from rcl_interfaces.srv import GetParameters
    path = tmp_path / 'mine.yaml'
    path.write_text('/**:\n  ros__parameters:\n    contract: mine\n    real_time_factor: 0.5\n')
    with launched('sim', f'params_file:={path}', 'autostart:=false'):
        graph.probe.create_client(GetParameters, '/sim/get_parameters')
        assert state_of(graph, '/sim') == 'unconfigured'
        request = GetParameters.Request(names=['contract', 'real_time_factor', 'autostart'])
        contract, factor, autostart = graph.call(GetParameters, '/sim/get_parameters', request).values
    assert (contract.string_value, factor.double_value, autostart.bool_value) == ('mine', 0.5, False)


def test_bad_argument_ends_the_launch_with_a_reason() -> None:
    command = [sys.executable, '-c', RUN, str(FOLDER / 'sim.launch.py'), 'seed:=one']
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 1
    assert "seed: 'one' is no int" in done.stdout + done.stderr


def test_executables_are_where_launch_looks() -> None:
    from ament_index_python.packages import get_package_prefix
    folder = Path(get_package_prefix('flow_vla')) / 'lib' / 'flow_vla'
    assert {kind.executable for kind in NODES.values()} <= {path.name for path in folder.iterdir()}
