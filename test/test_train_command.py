"""`flow-vla train` from bags to a checkpoint, without ROS."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import signal
import subprocess

from bag_tools import MARKS, record, steps
import pytest
import torch
import yaml

from flow_vla_core.cli.train import load_config, train
from flow_vla_core.errors import CheckpointError, ConfigError, ContractError, DataError
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.episodes import choose_bags

SMALL = {'steps': 4, 'batch_size': 2, 'validate_every': 4, 'checkpoint_every': 1000, 'log_every': 1, 'policy': {
    'horizon': 3, 'condition_width': 8, 'image': {'widths': [8, 8, 8], 'points': 2, 'features': 8},
    'network': {'kind': 'mlp', 'width': 8, 'depth': 1}, 'generator': {'draws': 1}}}


@pytest.fixture(scope='module')
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three good episodes, one that failed and one without a topic."""
    folder = tmp_path_factory.mktemp('bags')
    for index in range(3):
        record(folder / f'good_{index}', steps(6))
    record(folder / 'failed', steps(6), {**MARKS, 'outcome': 'failure'})
    record(folder / 'broken' / 'no_pose', steps(6, leave_out=['/ee_pose']))
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> str:
    """Write the smallest settings."""
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(SMALL))
    return str(tmp_path / 'small.yaml')


def test_bags_become_a_checkpoint_and_a_run_can_be_resumed(bags: Path, settings: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    out, cache = tmp_path / 'run', tmp_path / 'cache'
    monkeypatch.setenv('FLOW_VLA_CACHE', str(cache))
    train('metaworld', [bags], out, settings, skip_unusable=True, threads=1, workers=1)
    report = json.loads((out / 'report.json').read_text())
    assert (report['train']['episodes'], report['validation']['episodes']) == (2, 1)
    assert report['words'] == ['faucet', 'open', 'the']
    assert load_checkpoint(out / 'checkpoint').config.horizon == 3
    assert len(list(cache.glob('entries/*/*/episodes.json'))) == 3
    with pytest.raises(ConfigError, match='--resume'):
        train('metaworld', [bags], out, settings, skip_unusable=True, threads=1, workers=1)
    train('metaworld', [bags], out, settings, resume=True, steps=6, skip_unusable=True, threads=1, workers=2)
    report = json.loads((out / 'report.json').read_text())
    assert [point['step'] for point in report['points']] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(CheckpointError, match='batch_size'):
        train('metaworld', [bags], out, settings, resume=True, batch_size=3, skip_unusable=True, threads=1, workers=1)


def test_datasets_are_weighed_and_counted_and_a_dry_run_writes_nothing(bags: Path, settings: str, tmp_path: Path,
                                                                       capsys: pytest.CaptureFixture) -> None:
    for index in range(2):
        record(tmp_path / 'more' / str(index), steps(9), {**MARKS, 'instruction': 'shut it'})
    given = [f'{bags}=3', str(tmp_path / 'more')]
    usual = {'skip_unusable': True, 'threads': 1, 'workers': 1}
    train('metaworld', given, tmp_path / 'run', settings, dry_run=True, **usual)
    text = capsys.readouterr().out
    for part in ('75.0%', '25.0%', f'{bags}: 2 episodes to train on, weight 3', 'validation: 2 episodes',
                 '4 steps of 2 windows in 1 parts over 1 processes', 'memory-mapped from the cache'):
        assert part in text
    assert not (tmp_path / 'run').exists()
    train('metaworld', given, tmp_path / 'run', settings, **usual)
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert [entry['windows'] for entry in report['mixture']['datasets']] == [12, 9]
    assert [entry['share'] for entry in report['mixture']['datasets']] == pytest.approx([0.75, 0.25])
    assert [(entry['name'], entry['windows']) for entry in report['mixture']['actors']] == [('nobody', 21)]
    with pytest.raises(CheckpointError, match=r'datasets: \[3.0, None\] then, \[None, None\] now'):
        train('metaworld', [bags, tmp_path / 'more'], tmp_path / 'run', settings, resume=True, **usual)
    with pytest.raises(ConfigError, match='more/0: lies in .*more, which is given too'):
        train('metaworld', [tmp_path / 'more', tmp_path / 'more' / '0'], tmp_path / 'other', settings, **usual)


def test_a_pretrained_policy_is_learned_on_with_its_statistics_and_further_words(bags: Path, settings: str,
                                                                                 tmp_path: Path) -> None:
    usual = {'skip_unusable': True, 'threads': 1, 'workers': 1}
    train('metaworld', [bags], tmp_path / 'first', settings, **usual)
    first = tmp_path / 'first' / 'checkpoint'
    for index in range(2):
        record(tmp_path / 'more' / str(index), steps(9), {**MARKS, 'instruction': 'close a faucet'})
    still = tmp_path / 'still.yaml'
    still.write_text(yaml.safe_dump({**SMALL, 'steps': 1, 'learning_rate': 1e-30, 'weight_decay': 0.0, 'policy': {
        **SMALL['policy'], 'generator': {'draws': 2, 'prefix_steps': 1}}}))
    train('metaworld', [tmp_path / 'more'], tmp_path / 'second', str(still), pretrained=first, **usual)
    before, after = load_checkpoint(first), load_checkpoint(tmp_path / 'second' / 'checkpoint')
    assert after.config.generator.prefix_steps == 1
    assert after.statistics == before.statistics
    assert after.vocabulary.words == ('faucet', 'open', 'the', 'a', 'close')
    assert after.vocabulary.encode('open the faucet') == before.vocabulary.encode('open the faucet')
    old, new = before.state_dict(), after.state_dict()
    for name in old:
        torch.testing.assert_close(new[name][:len(old[name])] if old[name].ndim else new[name], old[name])
    assert len(new['language.embed.weight']) == len(old['language.embed.weight']) + 2


def test_what_does_not_fit_a_pretrained_policy_is_named(bags: Path, settings: str, tmp_path: Path) -> None:
    usual = {'skip_unusable': True, 'threads': 1, 'workers': 1}
    train('metaworld', [bags], tmp_path / 'first', settings, **usual)
    start = tmp_path / 'first' / 'checkpoint'

    def refused(pattern: str, **changes: object) -> None:
        (tmp_path / 'other.yaml').write_text(yaml.safe_dump({**SMALL, 'policy': {**SMALL['policy'], **changes}}))
        with pytest.raises(ConfigError, match=pattern):
            train('metaworld', [bags], tmp_path / 'run', str(tmp_path / 'other.yaml'), pretrained=start, **usual)

    refused('policy.horizon: 4; the pretrained policy has 3', horizon=4)
    refused("policy.action_scale: 'standard'; .* 'quantile'", action_scale='standard')
    refused("generator.family: 'regression'; .* 'flow_matching'", generator={'family': 'regression'})
    refused(r'the settings give .* the shape \(.*12.*; the pretrained policy has \(.*8', condition_width=12)
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ConfigError, match='--teacher and --pretrained: both'):
        train('metaworld', [bags], tmp_path / 'run', settings, pretrained=start, teacher=start, **usual)


def family(folder: Path, name: str) -> str:
    """Write the smallest settings of a family."""
    values = {**SMALL, 'policy': {**SMALL['policy'], 'generator': {'family': name}}}
    (folder / f'{name}.yaml').write_text(yaml.safe_dump(values))
    return str(folder / f'{name}.yaml')


def test_a_student_learns_from_a_checkpoint_and_is_resumed_with_it(bags: Path, settings: str, tmp_path: Path) -> None:
    usual = {'skip_unusable': True, 'threads': 1, 'workers': 1}
    student = family(tmp_path, 'rectified')
    train('metaworld', [bags], tmp_path / 'one', settings, **usual)
    teacher, out = tmp_path / 'one' / 'checkpoint', tmp_path / 'two'
    train('metaworld', [bags], out, student, teacher=teacher, **usual)
    train('metaworld', [bags], out, student, teacher=teacher, resume=True, steps=6, **usual)
    made, master = load_checkpoint(out / 'checkpoint'), load_checkpoint(teacher)
    assert made.config.generator.family == 'rectified' and made.statistics == master.statistics
    for name, tensor in master.state_dict().items():
        if not name.startswith('generator.'):
            assert torch.equal(made.state_dict()[name], tensor), name
    points = json.loads((out / 'report.json').read_text())['points']
    assert [point['step'] for point in points] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match="'rectified' learns from a trained policy.*--teacher"):
        train('metaworld', [bags], out, student, resume=True, **usual)
    with pytest.raises(CheckpointError, match='teacher: .* then'):
        train('metaworld', [bags], out, student, teacher=out / 'checkpoint', resume=True, **usual)


def test_a_family_and_a_teacher_that_do_not_go_together_are_refused_before_any_bag_is_read(
        settings: str, tmp_path: Path) -> None:
    nowhere = [tmp_path / 'nowhere']
    with pytest.raises(ConfigError, match="'flow_matching' learns from no teacher"):
        train('metaworld', nowhere, tmp_path / 'run', settings, teacher=tmp_path)
    with pytest.raises(ConfigError, match="'distilled' learns from a trained policy"):
        train('metaworld', nowhere, tmp_path / 'run', family(tmp_path, 'distilled'))
    with pytest.raises(CheckpointError, match='missing'):
        train('metaworld', nowhere, tmp_path / 'run', family(tmp_path, 'distilled'), teacher=tmp_path)


def test_a_bag_that_cannot_be_used_is_named(bags: Path, settings: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no_pose.*ee_pose'):
        train('metaworld', [bags], tmp_path / 'run', settings, threads=1, workers=1)
    with pytest.raises(DataError, match='none of 1 bags'):
        train('metaworld', [bags / 'broken'], tmp_path / 'run', settings, skip_unusable=True, threads=1, workers=1)
    assert not (tmp_path / 'run').exists()


def test_a_recording_without_marks_is_trained_on(settings: str, tmp_path: Path) -> None:
    """Words come from an option, actions from the state, and nothing is cached."""
    record(tmp_path / 'bags' / 'plain', steps(6, ['/instruction']), {}, ['/instruction'])
    options = {'outcome': ['unknown'], 'instruction': 'wave twice', 'actions': 'state', 'lead': 2}
    train('metaworld', [tmp_path / 'bags'], tmp_path / 'run', settings, cache='', threads=1, workers=1, **options)
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert (report['words'], report['train']['frames']) == (['twice', 'wave'], 4)


def test_bags_are_chosen_by_their_outcome(bags: Path, tmp_path: Path) -> None:
    chosen, others = choose_bags([bags])
    assert [bag.name for bag in chosen] == ['no_pose', 'good_0', 'good_1', 'good_2']
    assert [bag.name for bag in others] == ['failed']
    assert [bag.name for bag in choose_bags([bags], ['failure'])[0]] == ['failed']
    shutil.copytree(bags / 'good_0', tmp_path / 'more' / 'damaged')
    shutil.copytree(bags / 'good_0', tmp_path / 'more' / 'bare')
    (tmp_path / 'more' / 'damaged' / 'metadata.yaml').write_text('a: [')
    (tmp_path / 'more' / 'bare' / 'metadata.yaml').unlink()
    (tmp_path / 'more' / 'gone').mkdir()
    (tmp_path / 'more' / 'gone' / 'metadata.yaml').write_text('a: [')
    assert [bag.name for bag in choose_bags([tmp_path / 'more'])[0]] == ['bare', 'damaged', 'gone']
    with pytest.raises(DataError, match="'sucess'.*success"):
        choose_bags([bags], ['sucess'])
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(DataError, match='no such file or folder'):
        choose_bags([tmp_path / 'nowhere'])
    with pytest.raises(DataError, match='no bag at or below it'):
        choose_bags([tmp_path / 'nothing'])
    with pytest.raises(DataError, match='none with the outcome unknown'):
        choose_bags([bags], ['unknown'])


def test_settings_and_names_are_checked_before_any_bag_is_read(bags: Path, settings: str, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no settings 'metawolrd'.*metaworld"):
        train('metaworld', [bags], tmp_path / 'run', 'metawolrd')
    with pytest.raises(ContractError, match='metawolrd.*metaworld'):
        train('metawolrd', [bags], tmp_path / 'run', settings)
    with pytest.raises(ConfigError, match='seed: -1; allowed: 0 or above'):
        train('metaworld', [bags], tmp_path / 'run', settings, seed=-1)
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='file/run: .*file is no folder'):
        train('metaworld', [bags], tmp_path / 'file' / 'run', settings)
    monkeypatch.setattr(os, 'access', lambda path, mode: path != tmp_path)
    with pytest.raises(ConfigError, match='run: .* can not be written'):
        train('metaworld', [bags], tmp_path / 'run', settings)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="'gpu'.*cpu"):
        train('metaworld', [bags], tmp_path / 'run', settings, device='gpu')
    with pytest.raises(ConfigError, match='holds no run to go on with'):
        train('metaworld', [tmp_path / 'none'], tmp_path / 'run', settings, resume=True)


def test_a_device_that_is_not_there_is_refused_before_any_bag_is_read(settings: str, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='device: cuda, but torch finds no CUDA device'):
        train('metaworld', [tmp_path / 'none'], tmp_path / 'run', settings, device='cuda')


def test_a_folder_of_something_else_is_not_written_over(settings: str, tmp_path: Path) -> None:
    (tmp_path / 'project').mkdir()
    (tmp_path / 'project' / 'README.txt').write_text('mine')
    with pytest.raises(ConfigError, match='holds no run, but README.txt, which a run would overwrite'):
        train('metaworld', [tmp_path / 'none'], tmp_path / 'project', settings)
    assert (tmp_path / 'project' / 'README.txt').read_text() == 'mine'


def test_a_run_that_was_cut_off_between_two_renames_is_not_begun_anew(settings: str, tmp_path: Path) -> None:
    (tmp_path / 'run' / '.resume-old').mkdir(parents=True)
    with pytest.raises(ConfigError, match='holds a run already'):
        train('metaworld', [tmp_path / 'none'], tmp_path / 'run', settings)
    assert (tmp_path / 'run' / 'resume').is_dir()


def test_changes_come_on_top_of_the_settings(settings: str) -> None:
    assert load_config(settings, steps=9, seed=None).steps == 9
    assert load_config(settings).batch_size == 2
    assert load_config(None) == TrainConfig()


def test_a_signal_ends_the_run_with_everything_saved(bags: Path, settings: str, tmp_path: Path, python: str) -> None:
    out = tmp_path / 'run'
    command = [python, '-m', 'flow_vla_ros.cli', 'train', '--contract', 'metaworld', '--bags', str(bags), '--out',
               str(out), '--config', settings, '--steps', '1000000', '--skip-unusable', '--workers', '1']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'}) as process:
        try:
            assert any(line.startswith('step 5/') for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            process.stdout.read()
            assert process.wait(60) == 0
        finally:
            process.kill()
    report = json.loads((out / 'report.json').read_text())
    assert 5 <= report['steps'] < 1000000
    assert json.loads((out / 'resume' / 'state.json').read_text())['step'] == report['steps']
