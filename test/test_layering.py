"""Imports point down only, and the core is free of ROS."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = 'flow_vla_core'
ROS_SIDE = ('rclpy', 'flow_vla', 'flow_vla_ros', 'launch', 'launch_ros', 'builtin_interfaces')

# Lower layers stand first; modules of one layer may import one another. docs/architecture.md shows the same picture.
LAYERS = (
    ('errors', 'types', 'contract', 'config', 'disk'),
    ('align', 'messages', 'transforms', 'data'),
    ('checks', 'divergence', 'flows', 'networks', 'solvers'),
    ('generators', 'encoders'),
    ('policy',),
    ('engine', 'execution', 'training', 'evaluation', 'simulation', 'teleoperation'),
    ('cli',),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

IMPORT_ALL = """
import importlib.abc, pkgutil, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        first = name.split('.')[0]
        if first in ('rclpy', 'flow_vla', 'flow_vla_ros', 'launch_ros') or first.endswith(('_msgs', '_interfaces')):
            raise ModuleNotFoundError(f'{name} is imported by the core', name=name)

sys.meta_path.insert(0, Block())
import flow_vla_core
names = [module.name for module in pkgutil.walk_packages(flow_vla_core.__path__, 'flow_vla_core.')]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every imported module with its line, those inside functions and type checks included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}:{node.lineno}: imports are absolute here'
            yield from ((f'{node.module}.{alias.name}', node.lineno) for alias in node.names)


def core_files() -> list[Path]:
    """List the core's modules."""
    return sorted((ROOT / CORE).rglob('*.py'))


def part_of(path: Path) -> str:
    """Return the module or sub-package right below the core that a file belongs to."""
    return path.relative_to(ROOT / CORE).parts[0].removesuffix('.py')


def upward_imports(path: Path, own: str) -> list[str]:
    """List the imports in a file of the part ``own`` that point up."""
    wrong = []
    for name, line in imports_of(path):
        words = name.split('.')
        if words[0] == CORE and len(words) > 1 and words[1] in LEVEL and LEVEL[words[1]] > LEVEL[own]:
            wrong.append(f'{path.name}:{line}: {own} imports {name}, which stands above it')
    return wrong


def test_every_part_of_the_core_has_its_layer() -> None:
    parts = {part_of(path) for path in core_files()} - {'__init__', '__main__'}
    assert parts <= set(LEVEL), f'not in LAYERS: {sorted(parts - set(LEVEL))}'


def test_imports_point_down() -> None:
    wrong = [line for path in core_files() if part_of(path) in LEVEL for line in upward_imports(path, part_of(path))]
    assert not wrong, '\n'.join(wrong)


def test_core_never_mentions_ros() -> None:
    wrong = [f'{path.name}:{line}: {name}' for path in core_files() for name, line in imports_of(path)
             if name.split('.')[0] in ROS_SIDE or name.split('.')[0].endswith('_msgs')]
    assert not wrong, '\n'.join(wrong)


def test_core_imports_in_a_process_without_ros() -> None:
    done = subprocess.run([sys.executable, '-c', IMPORT_ALL], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    modules = [path for path in core_files() if path.parent != ROOT / CORE or path.name != '__init__.py']
    assert int(done.stdout) == len(modules)


def test_the_executor_starts_without_torch() -> None:
    pytest.importorskip('rclpy', reason='ROS is not installed')
    pytest.importorskip('flow_vla.msg', reason='the interfaces are not compiled')
    code = 'import sys; sys.modules["torch"] = None\nimport flow_vla_ros.executor_node, flow_vla_ros.skill_node'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('own', 'line', 'complaints'), [
    ('contract', 'from flow_vla_core.policy import FlowVLA', 1),
    ('contract', 'def late() -> None:\n    import flow_vla_core.training.trainer', 1),
    ('policy', 'from flow_vla_core import contract', 0),
    ('data', 'from flow_vla_core.align import Synchroniser', 0),
])
def test_checker_sees_upward_imports(own: str, line: str, complaints: int, tmp_path: Path) -> None:
    (tmp_path / 'module.py').write_text(line)
    assert len(upward_imports(tmp_path / 'module.py', own)) == complaints
