"""The commands `flow-vla data export` and `import`, and lerobot itself on what they write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lerobot_tools import CONTRACT, make_episodes
import numpy as np
import pytest

from flow_vla_core.cli import exchange
from flow_vla_core.data import find_bags, read_episode
from flow_vla_core.data.lerobot import ExportOptions, contract_of, export_episodes
from flow_vla_core.data.lerobot.writer import sized
from flow_vla_core.errors import ConfigError, DataError

pytest.importorskip('pyarrow')
pytest.importorskip('av')

PYTHON = os.environ.get('FLOW_VLA_LEROBOT_PYTHON')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that fits its contract."""
    out = tmp_path_factory.mktemp('exported') / 'dataset'
    export_episodes(make_episodes(), CONTRACT, out, ExportOptions('png'))
    return out


def run(*words: Any) -> None:
    """Run a command line in this process."""
    from flow_vla_core.cli.data import app
    app([str(word) for word in words], standalone_mode=False)


def test_import_and_export_by_command(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bags, again, file = tmp_path / 'bags', tmp_path / 'again', tmp_path / 'small.yaml'
    CONTRACT.dump(file)
    run('import', '--dataset', dataset, '--out', bags, '--feature', 'top=observation.images.top')
    run('export', '--contract', file, '--bags', bags, '--out', again, '--images', 'png', '--size', 'policy')
    told = capsys.readouterr().out
    assert f'{bags}: 3 bags of 24 frames for the contract {CONTRACT.label}' in told
    assert f'{again}: 3 episodes, 24 frames at 10 Hz, 2 instructions, ' in told
    assert contract_of(again) == sized(CONTRACT, 'policy')
    for made, bag in zip(make_episodes(), find_bags(bags), strict=True):
        np.testing.assert_array_equal(read_episode(bag, CONTRACT).actions, made.actions)


def test_another_rate_is_said(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / 'fast.yaml'
    CONTRACT.model_copy(update={'rates': CONTRACT.rates.model_copy(update={'policy_dt': 0.05})}).dump(file)
    run('import', '--dataset', dataset, '--out', tmp_path / 'bags', '--contract', file)
    assert 'the dataset has 10 frames a second, the contract 20 steps' in capsys.readouterr().out


def test_mistakes_are_one_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match='no such file or folder'):
        run('export', '--contract', 'so101', '--bags', tmp_path / 'none', '--out', tmp_path / 'out')
    with pytest.raises(DataError, match='no bag at or below it'):
        run('export', '--contract', 'so101', '--bags', tmp_path, '--out', tmp_path / 'out')
    with pytest.raises(ConfigError, match="--feature 'top': expected PART=FEATURE"):
        run('import', '--dataset', dataset, '--out', tmp_path / 'out', '--feature', 'top')
    monkeypatch.setattr(exchange, 'find_spec', lambda name: None if name == 'av' else name)
    with pytest.raises(ConfigError, match=r'av not installed: pip install "flow_vla\[data\]"'):
        run('import', '--dataset', dataset, '--out', tmp_path / 'out')


@pytest.mark.skipif(not PYTHON, reason='lerobot is not here: FLOW_VLA_LEROBOT_PYTHON names the python of an '
                                       'environment that has it, see docs/data/lerobot.md')
@pytest.mark.parametrize('images', ['video', 'fine-video', 'png'])
def test_lerobot_reads_what_we_export(images: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / 'benchmarks'))
    from lerobot_reads import there, write_expected
    contract = sized(CONTRACT, 'recorded')
    expected = write_expected(tmp_path / 'expected', make_episodes(), contract)
    seen = there(Path(PYTHON), make_episodes(), contract, tmp_path, expected, images)
    assert (seen['episodes'], seen['frames'], seen['back']['unequal_numbers']) == (3, 24, 0)
    assert seen['image_error_mean'] <= {'video': 8, 'fine-video': 2, 'png': 0}[images]


@pytest.mark.skipif(not PYTHON, reason='lerobot is not here, as above')
@pytest.mark.parametrize('images', [False, True])
def test_we_read_what_lerobot_writes(images: bool, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / 'benchmarks'))
    from lerobot_reads import back, call_lerobot, differences, write_expected
    contract = sized(CONTRACT, 'recorded')
    expected = write_expected(tmp_path / 'expected', make_episodes(), contract)
    options = {'images': True} if images else {}
    call_lerobot(Path(PYTHON), 'create', tmp_path / 'dataset', expected=expected, **options)
    found = differences(make_episodes(), back(tmp_path / 'dataset', contract, tmp_path / 'bags'))
    assert found['unequal_numbers'] == 0
    assert found['image_error_max'] == 0 if images else found['image_error_mean'] <= 8
