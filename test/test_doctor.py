"""The doctor: finds a sound machine sound, and says what to do about what is broken."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
import typer

from flow_vla_ros import doctor as module
from flow_vla_ros.doctor import CHECKS, doctor, examine, run_probe


def test_every_check_passes_here_or_says_what_to_do(ros_environment: dict[str, str]) -> None:
    for name, check in CHECKS.items():
        finding = examine(name, check)
        assert finding.detail and '\n' not in finding.detail
        assert finding.state == 'ok' or finding.advice


def test_needed_parts_are_sound_here(ros_environment: dict[str, str]) -> None:
    findings = {name: examine(name, CHECKS[name]) for name in ('python', 'torch', 'numpy', 'ros', 'messages', 'dds')}
    assert {name: finding.state for name, finding in findings.items()} == dict.fromkeys(findings, 'ok')
    assert 'round trips' in findings['dds'].detail
    assert 'cpu' in findings['torch'].detail


def test_report_has_a_line_for_each_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(module, 'CHECKS', {'one': lambda: 'fine [1]', 'two': lambda: 'fine too'})
    doctor()
    assert capsys.readouterr().out.splitlines() == ['ok       one       fine [1]', 'ok       two       fine too']


def test_missing_part_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, 'torch', None)
    monkeypatch.setattr(module, 'CHECKS', {'torch': CHECKS['torch']})
    with pytest.raises(typer.Exit) as end:
        doctor()
    assert end.value.exit_code == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('failed   torch')
    assert 'pip install torch' in second


def test_simulation_is_not_needed_on_a_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'mujoco', None)
    finding = examine('rendering', CHECKS['rendering'])
    assert finding.state == 'warning' and 'flow_vla[sim]' in finding.advice


@pytest.mark.parametrize(('free', 'state'), [(5e9, 'ok'), (1e9, 'warning'), (1e8, 'failed')])
def test_disk(free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=free))
    assert examine('disk', CHECKS['disk']).state == state


@pytest.mark.parametrize(('code', 'detail'), [
    ('raise SystemExit("waited in vain")', 'waited in vain'),
    ('import os; os.abort()', 'ended with code -6'),
    ('while True: pass', 'no answer within 1 s'),
])
def test_probe_that_fails_crashes_or_hangs(code: str, detail: str) -> None:
    finding = examine('probe', lambda: run_probe([sys.executable, '-S', '-c', code], 'do this', seconds=1))
    assert (finding.state, finding.detail, finding.advice) == ('failed', detail, 'do this')


def test_broken_middleware_is_found(monkeypatch: pytest.MonkeyPatch, ros_environment: dict[str, str]) -> None:
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_none')
    finding = examine('dds', CHECKS['dds'])
    assert finding.state == 'failed' and finding.advice == module.DDS_ADVICE


def test_broken_check_is_a_finding() -> None:
    def broken() -> str:
        raise ValueError('oh')
    assert examine('x', broken).detail == 'ValueError: oh'
