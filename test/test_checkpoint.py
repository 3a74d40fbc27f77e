"""Checkpoints: what is written is what is read, and what can't be used is named."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

from core_samples import make_policy, small_contract
import pytest
import torch

from flow_vla_core.config import from_values, to_values
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import CheckpointError
from flow_vla_core.generators import FlowMatchingConfig
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training import checkpoint
from flow_vla_core.training.checkpoint import load_checkpoint, save_checkpoint

FILES = {'model.safetensors', 'config.json', 'stats.json', 'contract.yaml'}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the checkpoint of a small policy."""
    save_checkpoint(tmp_path / 'run' / 'checkpoint', make_policy(small_contract()))
    return tmp_path / 'run' / 'checkpoint'


def test_a_policy_survives(folder: Path) -> None:
    policy, loaded = make_policy(small_contract()).eval(), load_checkpoint(folder, small_contract())
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    assert not loaded.training
    assert loaded.config == policy.config
    assert loaded.statistics == policy.statistics
    assert loaded.vocabulary == policy.vocabulary
    batch, noise = policy.fake_batch(2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = [model.sample(batch, noise=noise) for model in (policy, loaded)]
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)   # sums depend on where in memory the weights lie
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in policy.state_dict().items())


def test_its_own_contract_is_used_where_none_is_given(folder: Path) -> None:
    assert load_checkpoint(folder).contract.label == small_contract().label


def test_what_does_not_touch_the_interface_may_differ(folder: Path) -> None:
    contract = small_contract()
    moved = contract.cameras[0].model_copy(update={'topic': 'elsewhere', 'max_age': 9.0})
    contract = contract.model_copy(update={'cameras': (moved, *contract.cameras[1:])})
    assert load_checkpoint(folder, contract).contract is contract


@pytest.mark.parametrize('name', sorted(FILES))
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f'{name} is missing'):
        load_checkpoint(folder)


@pytest.mark.parametrize('name', sorted(FILES))
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for share in (0, 0.3, 0.95):
        (folder / name).write_bytes(data[:int(share * len(data))])
        with pytest.raises(CheckpointError, match=name.replace('.', r'\.')):
            load_checkpoint(folder)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='nowhere'):
        load_checkpoint(tmp_path / 'nowhere')


def other_contract(**changes: object) -> RobotContract:
    """Return a contract with another interface."""
    return small_contract().model_copy(update=changes)


@pytest.mark.parametrize('contract, place', [
    (other_contract(history=2), 'history: 1 != 2'),
    (small_contract(size=(24, 20)), 'cameras.front.size.0: 20 != 24'),
    (other_contract(state=small_contract().state[:1]), "state:.*'gripper'"),
    (other_contract(actions=small_contract().actions[::-1]), 'actions:')])
def test_a_checkpoint_of_another_contract_is_refused_and_says_where(folder: Path, contract: RobotContract,
                                                                    place: str) -> None:
    with pytest.raises(CheckpointError, match=place):
        load_checkpoint(folder, contract)


@pytest.mark.parametrize('change, message', [
    ({'format': 99}, 'format 99'), ({'policy': {'horizn': 3}}, 'horizn: unknown key.*horizon'),
    ({'policy': {'horizon': 8}}, 'model.safetensors.*not of this FlowVLA'), ({'words': ['a']}, 'model.safetensors')])
def test_settings_that_do_not_fit_are_named(folder: Path, change: dict, message: str) -> None:
    values = json.loads((folder / 'config.json').read_text())
    policy = {**values['policy'], **change.pop('policy', {})}
    (folder / 'config.json').write_text(json.dumps({**values, 'policy': policy, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_statistics_of_another_size_are_refused(folder: Path) -> None:
    values = json.loads((folder / 'stats.json').read_text())
    values['state'] = {key: numbers[:-1] for key, numbers in values['state'].items()}
    (folder / 'stats.json').write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="stats.json.*4 numbers under 'state'"):
        load_checkpoint(folder)


def test_saving_again_replaces_and_leaves_nothing_else_behind(folder: Path) -> None:
    newer = make_policy(small_contract(), seed=1)
    save_checkpoint(folder, newer)
    loaded = load_checkpoint(folder).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in newer.state_dict().items())
    assert [path.name for path in folder.parent.iterdir()] == ['checkpoint']


def test_a_crash_while_writing_leaves_the_older_checkpoint_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError('the disk is gone')
    before = (folder / 'model.safetensors').read_bytes()
    monkeypatch.setattr(checkpoint, 'save_file', crash)
    with pytest.raises(OSError, match='gone'):
        save_checkpoint(folder, make_policy(small_contract(), seed=1))
    assert (folder / 'model.safetensors').read_bytes() == before
    load_checkpoint(folder)
    assert [path.name for path in folder.parent.iterdir()] == ['checkpoint']


def test_files_reach_the_disk_before_the_folder_takes_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    flush, rename = checkpoint.flush_to_disk, Path.rename
    monkeypatch.setattr(checkpoint, 'flush_to_disk', lambda path: (order.append(path.name), flush(path)))
    monkeypatch.setattr(Path, 'rename', lambda path, to: (order.append(f'to {Path(to).name}'), rename(path, to))[1])
    save_checkpoint(folder, make_policy(small_contract()))
    files, renames = order[:4], [step for step in order if step.startswith('to ')]
    assert sorted(files) == ['config.json', 'contract.yaml', 'model.safetensors', 'stats.json']
    assert renames == ['to .checkpoint-old', 'to checkpoint'] and order.index(renames[0]) == 5


def test_a_reader_that_brings_the_older_folder_back_meanwhile_does_no_harm(folder: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    rename, came = Path.rename, []

    def interrupted(path: Path, to: Path) -> Path:
        if to == folder and path.name != '.checkpoint-old' and not came:
            came.append(load_checkpoint(folder))
        return rename(path, to)

    monkeypatch.setattr(Path, 'rename', interrupted)
    newer = make_policy(small_contract(), seed=1)
    save_checkpoint(folder, newer)
    assert came
    loaded = load_checkpoint(folder).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in newer.state_dict().items())
    assert [path.name for path in folder.parent.iterdir()] == ['checkpoint']


def test_a_crash_between_the_two_renames_is_repaired(folder: Path) -> None:
    folder.rename(folder.with_name('.checkpoint-old'))
    load_checkpoint(folder)
    assert folder.is_dir()


def test_the_shipped_checkpoint_loads_also_as_the_first_version_wrote_it(root: Path, tmp_path: Path) -> None:
    """Configurations had no family, path, coupling and scales then."""
    folder = tmp_path / 'policy'
    shutil.copytree(root / 'checkpoints' / 'metaworld', folder)
    policy = load_checkpoint(folder)
    assert isinstance(policy.config.generator, FlowMatchingConfig)
    assert (policy.config.generator.steps, policy.config.generator.solver) == (5, 'euler')
    assert policy.config.generator.prefix_steps == 6
    assert from_values(PolicyConfig, to_values(policy.config)) == policy.config
    written = json.loads((folder / 'config.json').read_text())
    generator = written['policy']['generator']
    for key in ('family', 'path', 'coupling', 'drop', 'guidance', 'tolerance'):
        del generator[key]
    for key in ('state_scale', 'action_scale'):
        del written['policy'][key]
    (folder / 'config.json').write_text(json.dumps(written))
    assert load_checkpoint(folder).config == policy.config
