"""The numbers of codes and states are the same in Python and in the interface files."""

from __future__ import annotations

from pathlib import Path
import re

import pytest

from flow_vla_core import errors
from flow_vla_core.errors import Code, FlowVLAError, closest
from flow_vla_core.execution import ExecutionState
from flow_vla_core.types import Actor

CONSTANT = re.compile(r'^(uint8|uint16) (\w+)=(\d+)', re.MULTILINE)
FILES = ('msg/ExecutionStatus.msg', 'msg/PolicyStatus.msg', 'srv/StartEpisode.srv', 'action/ExecuteInstruction.action')


def constants(path: Path, kind: str) -> dict[str, int]:
    """Read the constants of one type from an interface file."""
    return {name: int(value) for found, name, value in CONSTANT.findall(path.read_text()) if found == kind}


@pytest.mark.parametrize('file', FILES)
def test_codes_in_the_interface_files_are_those_of_the_errors(root: Path, file: str) -> None:
    codes = constants(root / file, 'uint16')
    assert codes
    assert codes == {name: Code[name].value for name in codes}


def test_every_code_stands_in_an_interface_file(root: Path) -> None:
    written = {name for file in FILES for name in constants(root / file, 'uint16')}
    assert written == {code.name for code in Code}


def test_execution_states_and_actors_are_those_of_the_message(root: Path) -> None:
    written = constants(root / 'msg/ExecutionStatus.msg', 'uint8')
    assert written == {item.name: item.value for item in (*ExecutionState, *Actor)}


def test_the_compiled_messages_carry_the_same_numbers(root: Path) -> None:
    messages = pytest.importorskip('flow_vla.msg', reason='the interfaces are not compiled')
    for name in ('ExecutionStatus', 'PolicyStatus'):
        for constant, value in constants(root / f'msg/{name}.msg', 'uint16').items():
            assert getattr(getattr(messages, name), constant) == value


def test_every_error_is_a_flow_vla_error_and_those_with_a_code_differ() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(value, FlowVLAError) for value in classes)
    codes = [value.__dict__['code'] for value in classes if isinstance(value.__dict__.get('code'), Code)]
    assert len(codes) == len(set(codes)) > 10


@pytest.mark.parametrize(('value', 'said'), [('windw', "did you mean 'window'?"), ('zzz', "allowed: 'door', 'window'")])
def test_closest_names_the_candidate_or_what_is_allowed(value: str, said: str) -> None:
    assert said in closest(value, ['window', 'door'])
