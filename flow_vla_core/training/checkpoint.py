"""A policy as a folder: weights, config, statistics and contract; nothing in it can run code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import errno
import json
from pathlib import Path
import shutil
import tempfile
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from flow_vla_core.config import from_values, to_values
from flow_vla_core.contract import RobotContract
from flow_vla_core.disk import flush_to_disk
from flow_vla_core.encoders import Vocabulary
from flow_vla_core.errors import CheckpointError, ConfigError, ContractError
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.transforms import Statistics

__all__ = ['load_checkpoint', 'load_weights', 'new_folder', 'recover_folder', 'save_checkpoint', 'save_weights']

FORMAT = 1
WEIGHTS, CONFIG, STATISTICS, CONTRACT = 'model.safetensors', 'config.json', 'stats.json', 'contract.yaml'


def save_checkpoint(folder: Path, policy: FlowVLA) -> None:
    """Write a policy; a folder that is there already is replaced in one step."""
    with new_folder(folder) as fresh:
        _write_weights(fresh, policy)
        settings = {'format': FORMAT, 'policy': to_values(policy.config), 'words': list(policy.vocabulary.words)}
        (fresh / CONFIG).write_text(json.dumps(settings, indent=1))
        Statistics.save(fresh / STATISTICS, policy.statistics)
        policy.contract.dump(fresh / CONTRACT)


def save_weights(folder: Path, module: nn.Module) -> None:
    """Write the weights of any module; a folder that is there already is replaced in one step."""
    with new_folder(folder) as fresh:
        _write_weights(fresh, module)


def load_weights(folder: Path, module: nn.Module) -> None:
    """Read weights into a module of the same kind and sizes.

    Raises:
        CheckpointError: if they are missing, damaged or of another module.
    """
    recover_folder(Path(folder))
    path = Path(folder) / WEIGHTS
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f'{path}: damaged, or not of this {type(module).__name__}: {error}') from error


def load_checkpoint(folder: Path, contract: RobotContract | None = None, device: str = 'cpu') -> FlowVLA:
    """Read a policy, in evaluation mode.

    Args:
        folder: what `save_checkpoint` wrote.
        contract: of the robot at hand; given, the policy must have been made for the same interface.
        device: where the weights go.

    Raises:
        CheckpointError: if a file is missing or damaged, or the contract differs; says which and where.
    """
    folder = Path(folder)
    recover_folder(folder)
    for name in (WEIGHTS, CONFIG, STATISTICS, CONTRACT):
        if not (folder / name).is_file():
            raise CheckpointError(f'{folder}: the file {name} is missing')
    own = _read_contract(folder / CONTRACT)
    if contract is not None and (differences := own.differences(contract)):
        raise CheckpointError(f'{folder}: made for {own.label}, this robot is {contract.label}: '
                              + '; '.join(differences))
    config, vocabulary = _read_config(folder / CONFIG)
    policy = FlowVLA.create(config, contract or own, _read_statistics(folder / STATISTICS, own), vocabulary)
    load_weights(folder, policy)
    return policy.to(device).eval()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Lend a new folder to write into, which takes the place of ``folder`` once the block has ended well.

    Files are handed to the disk before that, so that a crash, of the machine too, leaves one of the two whole.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-', dir=folder.parent))
    fresh.chmod(0o755)
    try:
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            flush_to_disk(path)
        _replace(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def recover_folder(folder: Path) -> None:
    """Bring back the older folder, if a crash came between the two steps in which it is replaced."""
    if not folder.exists():
        try:
            _aside(folder).rename(folder)
        except (FileNotFoundError, FileExistsError):
            pass  # there is none, or another process was quicker


def _replace(fresh: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one."""
    old = _aside(folder)
    while fresh.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # a reader has brought the older one back
                raise
    flush_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_weights(folder: Path, module: nn.Module) -> None:
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors keeps it to its owner


def _aside(folder: Path) -> Path:
    return folder.with_name(f'.{folder.name}-old')


def _read_contract(path: Path) -> RobotContract:
    try:
        return RobotContract.load(path)
    except ContractError as error:
        raise CheckpointError(str(error)) from error


def _read_config(path: Path) -> tuple[PolicyConfig, Vocabulary]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values['format'] != FORMAT:
            raise CheckpointError(f'{path}: format {values["format"]}, this version reads {FORMAT}')
        return from_values(PolicyConfig, values['policy'], 'policy'), Vocabulary(tuple(values['words']))
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f'{path}: holds no policy settings: {error}') from error


def _read_statistics(path: Path, contract: RobotContract) -> dict[str, Statistics]:
    statistics = Statistics.load(path)
    for name, size in (('state', contract.state_dim), ('actions', contract.action_dim)):
        if name not in statistics or len(statistics[name].mean) != size:
            raise CheckpointError(f'{path}: no statistics of {size} numbers under {name!r}')
    return statistics
