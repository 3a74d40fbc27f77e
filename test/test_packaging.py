"""What pip, CMake, ament and the Makefile are told agrees with the source tree."""

from __future__ import annotations

import ast
from configparser import ConfigParser
import os
from pathlib import Path
import re
import shutil
import stat
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import flow_vla_core
from flow_vla_core.errors import Code

tomllib = pytest.importorskip('tomllib', reason='Python 3.10 has no TOML reader')

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('flow_vla_core', 'flow_vla_ros')
# Import names that differ from the distribution's; parts of ROS come as ros-<name>.
DISTRIBUTIONS = {'yaml': 'pyyaml', 'PIL': 'pillow'}
INTERFACES = sorted((*ROOT.glob('msg/*.msg'), *ROOT.glob('srv/*.srv'), *ROOT.glob('action/*.action')))
LAUNCH = ('launch', 'launch_ros')   # of a ROS distribution; on PyPI, launch is another program


def project() -> dict:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())


def requirements(*extras: str) -> set[str]:
    """Return the distributions that a set of extras brings, without versions."""
    table = project()['project']
    lines = [*table['dependencies'], *(line for extra in extras for line in table['optional-dependencies'][extra])]
    return {re.match(r'[\w-]+', line)[0] for line in lines}


def imported(folder: Path) -> set[str]:
    """Return the names of other people's packages that are imported below a folder."""
    names = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split('.')[0])
    return names - set(sys.stdlib_module_names) - {*PACKAGES, *LAUNCH, 'flow_vla'}


def distribution(name: str) -> str:
    """Return the distribution that an imported package comes from."""
    ros = name == 'rclpy' or name.endswith(('_msgs', '_srvs', '_interfaces')) or name == 'ament_index_python'
    return f'ros-{name.replace("_", "-")}' if ros else DISTRIBUTIONS.get(name, name.replace('_', '-'))


def constants(path: Path) -> dict[str, int]:
    """Read the uint16 constants of an interface file."""
    return {name: int(value) for name, value in re.findall(r'^uint16 ([A-Z_]+)=(\d+)', path.read_text(), re.MULTILINE)}


def test_version_is_the_same_everywhere() -> None:
    versions = {project()['project']['version'], flow_vla_core.__version__,
                ElementTree.parse(ROOT / 'package.xml').findtext('version')}
    assert len(versions) == 1


def test_every_interface_is_compiled() -> None:
    listed = set(re.findall(r'"((?:msg|srv|action)/\w+\.\w+)"', (ROOT / 'CMakeLists.txt').read_text()))
    there = {f'{kind}/{path.name}' for kind in ('msg', 'srv', 'action') for path in (ROOT / kind).glob(f'*.{kind}')}
    assert listed == there


@pytest.mark.parametrize('path', INTERFACES, ids=lambda path: path.name)
def test_codes_of_the_interfaces_are_those_of_the_errors(path: Path) -> None:
    found = constants(path)
    assert found == {name: Code[name].value for name in found}


def test_every_code_stands_in_an_interface() -> None:
    found = {name for path in INTERFACES for name in constants(path)}
    assert found == {code.name for code in Code}


def test_console_scripts_lead_somewhere() -> None:
    config = ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config.sections() == ['options.entry_points'], 'ament copies setup.cfg into each Python package'
    for line in config['options.entry_points']['console_scripts'].split('\n')[1:]:
        module, function = line.split('=')[1].strip().split(':')
        source = ROOT / f'{module.replace(".", "/")}.py'
        names = [node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert function in names, line


def test_nodes_of_the_table_have_console_scripts() -> None:
    from flow_vla_ros.bringup import NODES
    text = (ROOT / 'setup.cfg').read_text()
    assert all(f'{kind.executable} = {kind.module}:main' in text for kind in NODES.values())


def test_every_import_is_a_declared_requirement() -> None:
    core = {distribution(name) for name in imported(ROOT / 'flow_vla_core')}
    assert core <= requirements('sim', 'train', 'data'), core - requirements('sim', 'train', 'data')
    both = core | {distribution(name) for name in imported(ROOT / 'flow_vla_ros')}
    assert both <= requirements('sim', 'train', 'data', 'ros'), both - requirements('sim', 'train', 'data', 'ros')


def test_every_requirement_is_imported() -> None:
    used = {distribution(name) for folder in PACKAGES for name in imported(ROOT / folder)}
    assert requirements() <= used, requirements() - used


def test_ros_packages_are_named_for_rosdep_and_launch_never_for_pip() -> None:
    root = ElementTree.parse(ROOT / 'package.xml').getroot()
    named = {element.text for element in root if element.tag.endswith('depend')}
    used = {name for folder in PACKAGES for name in imported(ROOT / folder) if distribution(name).startswith('ros-')}
    assert used | set(LAUNCH) <= named, (used | set(LAUNCH)) - named
    assert not requirements('sim', 'train', 'ros', 'test') & set(LAUNCH)


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """An environment for tools/setup.sh on a machine that lacks a compiler, with an apt-get that only complains."""
    for name in ('sh', 'cat', 'cksum', 'head', 'dirname', 'grep', 'rm'):
        (tmp_path / name).symlink_to(shutil.which(name))
    (tmp_path / 'python').symlink_to(sys.executable)
    script(tmp_path / 'id', 'echo 1000')
    script(tmp_path / 'apt-get', 'echo "apt-get $*" >&2; exit 100')
    tree = tmp_path / 'tree'
    for name in ('tools', 'cmake', 'action', 'msg', 'srv'):
        shutil.copytree(ROOT / name, tree / name)
    for name in ('pyproject.toml', 'setup.py', 'setup.cfg', 'package.xml', 'CMakeLists.txt'):
        shutil.copy(ROOT / name, tree)
    return {'PATH': str(tmp_path), 'PYTHON': str(tmp_path / 'python')}


def script(path: Path, body: str) -> None:
    """Write an executable shell script."""
    path.write_text(f'#!{shutil.which("sh")}\n{body}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def set_up(machine: dict[str, str]) -> subprocess.CompletedProcess:
    """Run tools/setup.sh of the copied tree."""
    path = Path(machine['PATH']) / 'tree' / 'tools' / 'setup.sh'
    return subprocess.run(['sh', str(path)], env=machine, capture_output=True, text=True, timeout=60)


def test_set_up_stops_with_the_one_line_to_run(machine: dict[str, str]) -> None:
    done = set_up(machine)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith('sudo apt-get update && sudo apt-get install -y --no-install-recommends g++')


def test_set_up_as_root_asks_apt_and_tells_of_its_failure(machine: dict[str, str]) -> None:
    script(Path(machine['PATH']) / 'id', 'echo 0')
    done = set_up(machine)
    assert done.returncode == 1
    assert 'apt-get update -q' in done.stderr and 'this failed: apt-get update' in done.stderr


def test_set_up_refuses_a_python_that_is_not_there(machine: dict[str, str]) -> None:
    done = set_up({**machine, 'PYTHON': 'python2.6'})
    assert done.returncode == 1 and 'there is no python2.6' in done.stderr


def test_set_up_refuses_a_machine_without_wheels_of_ros(machine: dict[str, str]) -> None:
    path = Path(machine['PATH']) / 'odd'
    script(path, f'case $2 in *x86_64*) exit 1;; *) exec {sys.executable} "$@";; esac')
    done = set_up({**machine, 'PYTHON': str(path)})
    assert done.returncode == 1 and 'Python 3.10 to 3.13 on x86-64' in done.stderr


@pytest.mark.skipif(not (ROOT / '.venv' / 'flow_vla.stamp').exists(), reason='this tree was not set up by make')
def test_second_set_up_does_nothing() -> None:
    environment = {'PATH': os.environ['PATH'], **{key: os.environ[key] for key in (
        'PYTHON', 'TORCH', 'TORCH_ARGS', 'VENV_ARGS', 'ROS_DISTRO') if key in os.environ}}
    command = ['sh', '-x', str(ROOT / 'tools' / 'setup.sh')]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == ''
    assert 'pip' not in done.stderr and 'venv ' not in done.stderr.replace('cat .venv', '')


def test_documented_interfaces_are_complete() -> None:
    from flow_vla_ros.bringup import ARGUMENTS, GRAPHS, NODES
    text = (ROOT / 'docs' / 'interfaces.md').read_text()
    for path in INTERFACES:
        assert path.read_text().strip() in text, f'{path.name} has changed'
    for code in Code:
        assert f'| {code.value} | `{code.name}` |' in text
    for name in (*ARGUMENTS, *GRAPHS):
        assert f'`{name}`' in text
    for node, kind in NODES.items():
        section = re.search(rf'^### {node}\n(.*?)(?=^#|\Z)', text, re.DOTALL | re.MULTILINE)[1]
        source = (ROOT / f'{kind.module.replace(".", "/")}.py').read_text()
        assert re.findall(r'^\| `(\w+)` ', section, re.MULTILINE) == re.findall(r"^        Parameter\('(\w+)'", source,
                                                                               re.MULTILINE)
