"""Exports bags, lets lerobot itself check the dataset, lets it write one, and imports that."""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
from pathlib import Path
import subprocess
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bags import find_bags
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.lerobot import IMAGE_FORMS, Dataset, ExportOptions, export_episodes, import_dataset
from flow_vla_core.data.lerobot.schema import action_names, camera_key, state_names
from flow_vla_core.data.lerobot.writer import sized
from flow_vla_core.data.reading import read_episodes
from flow_vla_core.errors import FlowVLAError

__all__ = ['call_lerobot', 'differences', 'write_expected']

SIDE = Path(__file__).parent / 'rigs' / 'lerobot_side.py'


def call_lerobot(python: Path, order: str, dataset: Path, **options: Any) -> dict[str, Any]:
    """Run `lerobot_side.py` in lerobot's environment; return what it prints. Raise `RuntimeError` if it complains."""
    words = [str(python), str(SIDE), order, str(dataset)]
    for name, value in options.items():
        words += [f'--{name}'] if value is True else [f'--{name}', str(value)]
    own = {key: value for key, value in os.environ.items() if key not in ('PYTHONPATH', 'AMENT_PREFIX_PATH')}
    done = subprocess.run(words, env=own, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(words[1:4])}: {done.stderr.strip()[-2000:]}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_expected(folder: Path, episodes: Sequence[Episode], contract: RobotContract) -> Path:
    """Write what a dataset of these episodes should hold, for `lerobot_side.py`."""
    folder.mkdir(parents=True)
    for index, episode in enumerate(episodes):
        images = {camera_key(camera): episode.images[camera.name] for camera in contract.cameras}
        np.savez(folder / f'{index}.npz', state=episode.state, actions=episode.actions, stamps=episode.stamps, **images)
    described = {'fps': round(1 / contract.rates.policy_dt), 'cameras': [camera.name for camera in contract.cameras],
                 'state': state_names(contract), 'action': action_names(contract),
                 'instructions': [episode.instruction for episode in episodes]}
    (folder / 'expected.json').write_text(json.dumps(described))
    return folder


def differences(before: Sequence[Episode], after: Sequence[Episode]) -> dict[str, float]:
    """Compare episodes that were written and read again: unequal numbers, and errors of the images in levels of 255."""
    unequal, errors = abs(len(before) - len(after)), []
    for one, other in zip(before, after):
        unequal += int((one.state != other.state).sum() + (one.actions != other.actions).sum())
        unequal += int((np.diff(one.stamps) != np.diff(other.stamps)).sum()) + (one.instruction != other.instruction)
        errors += [np.abs(one.images[name].astype(np.int16) - other.images[name]).reshape(-1) for name in one.images]
    together = np.concatenate(errors) if errors else np.zeros(1)
    return {'unequal_numbers': unequal, 'image_error_max': float(together.max()),
            'image_error_mean': float(together.mean())}


def there(python: Path, episodes: Sequence[Episode], contract: RobotContract, folder: Path, expected: Path,
          form: str) -> dict[str, Any]:
    """Export in one form, let lerobot read it, and import it again."""
    dataset = folder / form
    export_episodes(episodes, contract, dataset, ExportOptions(form))
    seen = call_lerobot(python, 'check', dataset, expected=expected)
    return {**seen, 'back': differences(episodes, back(dataset, contract, folder / f'{form}_bags'))}


def back(dataset: Path, contract: RobotContract, bags: Path) -> list[Episode]:
    """Import a dataset and read the bags."""
    return [episode for bag in import_dataset(Dataset(dataset), contract, bags)
            for episode in read_episodes(bag, contract)]


def main(
    python: Annotated[Path, typer.Option(help='of the environment that lerobot is installed in')],
    bags: Annotated[Path, typer.Option(help='folder below which the bags lie')],
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'so101',
    count: Annotated[int, typer.Option(min=1, help='bags that are taken')] = 6,
    out: Annotated[Path, typer.Option(help='file of the results')] = Path('out/benchmarks/lerobot_reads.json'),
) -> None:
    """Check every form of export with lerobot, and import what lerobot wrote; exit code 1 if a number is changed."""
    robot = sized(RobotContract.load(find_contract(contract)), 'recorded')
    episodes = [episode for bag in find_bags(bags)[:count] for episode in read_episodes(bag, robot)]
    results: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        expected = write_expected(folder / 'expected', episodes, robot)
        for form in IMAGE_FORMS:
            results[form] = there(python, episodes, robot, folder, expected, form)
        for name, extra in (('written by lerobot, video', {}), ('written by lerobot, images', {'images': True})):
            dataset = folder / name.replace(' ', '_')
            call_lerobot(python, 'create', dataset, expected=expected, **extra)
            results[name] = {'back': differences(episodes, back(dataset, robot, dataset.with_suffix('.bags')))}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + '\n')
    show(results)
    raise SystemExit(any(result['back']['unequal_numbers'] for result in results.values()))


def show(results: dict[str, Any]) -> None:
    """Print a table."""
    table = Table('dataset', 'frames', 'MB', 'lerobot: mean, max error', 'PSNR dB', 'imported: unequal', 'mean, max')
    for name, result in results.items():
        seen, again = result, result['back']
        own = [str(seen['frames']), f'{seen["bytes"] / 1e6:.1f}',
               f'{seen["image_error_mean"]:.2f}, {seen["image_error_max"]:.0f}',
               'exact' if seen['psnr'] is None else f'{seen["psnr"]:.1f}'] if 'frames' in seen else ['', '', '', '']
        table.add_row(name, *own, str(again['unequal_numbers']),
                      f'{again["image_error_mean"]:.2f}, {again["image_error_max"]:.0f}')
    Console(width=140).print(table)


if __name__ == '__main__':
    try:
        typer.run(main)
    except FlowVLAError as error:
        raise SystemExit(f'lerobot_reads: {error}') from error
