"""Fixtures for every test; ROS tests ask for `ros` or `graph` and get a domain of their own."""

from __future__ import annotations

from collections.abc import Iterator
import importlib.util
import os
from pathlib import Path
import socket
import sys

import pytest

HIGHEST_DOMAIN = 101  # above it the ports would lie in the range of outgoing connections


def _free_domain() -> int:
    """Pick a ROS domain from the process number, whose first participant's port is free."""
    for offset in range(HIGHEST_DOMAIN):
        domain = 1 + (os.getpid() + offset) % HIGHEST_DOMAIN
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('', 7410 + 250 * domain))
                return domain
            except OSError:
                continue
    raise RuntimeError(f'all ROS domains from 1 to {HIGHEST_DOMAIN} are in use')


def pytest_configure() -> None:
    """Keep torch to one thread, here and in the processes that tests start: the networks of tests are tiny."""
    os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start ROS nodes, so that ``-m 'not ros'`` leaves them out."""
    for item in items:
        if 'ros_environment' in getattr(item, 'fixturenames', ()):
            item.add_marker('ros')
            item.add_marker(pytest.mark.xdist_group('ros'))  # one after another: two graphs would share two cores


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let commands, here and in the processes that tests start, keep decoded bags in a folder of this run."""
    os.environ['FLOW_VLA_CACHE'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='session')
def ros_environment() -> Iterator[dict[str, str]]:
    """Keep this test process, and those that it starts, to itself: own domain, this machine only."""
    if importlib.util.find_spec('rclpy') is None:
        pytest.skip('rclpy is not installed: ROS tests need the ROS wheels or a sourced distribution')
    from flow_vla_ros.bringup import prepare_environment
    from flow_vla_ros.shared_memory import remove_abandoned
    os.environ.update(ROS_DOMAIN_ID=str(_free_domain()), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST')
    prepare_environment(isolated=False)  # as our own commands do: without it images overflow the shared memory
    yield dict(os.environ)
    remove_abandoned()  # some tests kill nodes


@pytest.fixture
def ros(ros_environment: dict[str, str]) -> Iterator[None]:
    """Initialise rclpy for one test."""
    import rclpy
    rclpy.init(args=[])
    yield
    rclpy.try_shutdown()


@pytest.fixture
def graph(ros: None) -> Iterator[object]:
    """Give an empty `ros_graph.RosGraph`."""
    from ros_graph import RosGraph
    graph = RosGraph()
    yield graph
    graph.close()


@pytest.fixture(scope='session')
def root() -> Path:
    """The source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def python() -> str:
    """The interpreter, for tests that start processes."""
    return sys.executable
