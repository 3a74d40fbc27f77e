"""The command line: quick to show its overview, clean in its errors, free of ROS where it can be."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
import time

import pytest

from flow_vla_core.errors import ConfigError
from flow_vla_ros import cli
from flow_vla_ros.cli import COMMANDS, Command

HEAVY = ('torch', 'numpy', 'rclpy', 'mujoco', 'matplotlib')
OVERVIEW = f"""
import sys
from flow_vla_ros.cli import main
try:
    main(['--help'])
except SystemExit as end:
    assert not end.code
print('imported:', *[name for name in {HEAVY} if name in sys.modules])
"""
WITHOUT_ROS = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('rclpy', 'flow_vla') or name.split('.')[0].endswith('_msgs'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Block())
from flow_vla_ros.cli import main
main(sys.argv[1:])
"""


def greet(name: str, loud: bool = False) -> None:
    """Stand in for a command."""
    if name == 'nobody':
        raise ConfigError('name: nobody is not allowed')
    print(name.upper() if loud else name)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run Python on a few words."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture
def greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register `greet` as a command."""
    monkeypatch.setitem(COMMANDS, 'greet', Command(f'{__name__}:greet', 'Greet.'))


def ended_with(arguments: list[str]) -> int:
    """Return the exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return end.value.code


def test_overview_lists_all_and_imports_nothing_heavy() -> None:
    done = run('-c', OVERVIEW)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'imported:'
    for name, command in COMMANDS.items():
        assert name in done.stdout and command.help in done.stdout


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_can_be_loaded_and_explains_itself(name: str, capsys: pytest.CaptureFixture) -> None:
    assert COMMANDS[name].load().__doc__
    assert ended_with([name, '--help']) == 0
    assert f'flow-vla {name}' in capsys.readouterr().out


def test_command_runs_with_its_arguments(greeting: None, capsys: pytest.CaptureFixture) -> None:
    assert ended_with(['greet', 'Ada', '--loud']) == 0
    assert capsys.readouterr().out == 'ADA\n'


def test_users_mistake_is_one_line_and_code_2(greeting: None, capsys: pytest.CaptureFixture) -> None:
    assert ended_with(['greet', 'nobody']) == 2
    assert capsys.readouterr().err == 'flow-vla: name: nobody is not allowed\n'


def test_unknown_command_names_the_closest(capsys: pytest.CaptureFixture) -> None:
    assert ended_with(['evalute']) == 2
    assert "Did you mean 'evaluate'" in capsys.readouterr().err


def test_training_needs_no_ros() -> None:
    done = run('-c', WITHOUT_ROS, 'train', '--help')
    assert done.returncode == 0, done.stderr
    assert '--contract' in done.stdout


def test_command_that_needs_ros_says_so(tmp_path: Path) -> None:
    done = run('-c', WITHOUT_ROS, 'capture-demos', '--out', str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith('flow-vla: ') and 'needs ROS 2' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_own_graph_gets_a_domain_of_its_own(greeting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    monkeypatch.setenv('ROS_DOMAIN_ID', 'x')
    monkeypatch.delenv('ROS_DOMAIN_ID')
    assert ended_with(['greet', 'Ada']) == 0
    assert 'ROS_DOMAIN_ID' not in os.environ
    monkeypatch.setitem(COMMANDS, 'greet', Command(f'{__name__}:greet', 'Greet.', isolated=True))
    assert ended_with(['greet', 'Ada']) == 0
    assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 100


def test_interrupted_command_ends_soon() -> None:
    import signal
    code = 'import time, flow_vla_ros.cli as cli\ndef wait() -> None:\n    print(1, flush=True)\n    time.sleep(60)\n' \
        'cli.Command.load = lambda command: wait\ncli.main(["doctor"])'

    def listen() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts background jobs deaf to it

    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          preexec_fn=listen) as p:
        assert p.stdout.readline() == '1\n'
        start = time.monotonic()
        p.send_signal(signal.SIGINT)
        assert p.wait(30) != 0
        assert time.monotonic() - start < 30
        assert 'Traceback' not in p.stderr.read()
