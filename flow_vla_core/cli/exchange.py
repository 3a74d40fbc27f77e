"""The commands `flow-vla data export` and `flow-vla data import`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.progress import track
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.bags import need_bags
from flow_vla_core.data.lerobot import Dataset, ExportOptions, contract_of, export_bags, import_dataset
from flow_vla_core.data.reading import ReadOptions
from flow_vla_core.errors import ConfigError

__all__ = ['export', 'import_']

PACKAGES = {'pyarrow': 'pyarrow', 'av': 'av'}

Contract = Annotated[str, typer.Option(help='Robot contract: a file, or a name in config/robots.')]


def export(
    contract: Contract,
    bags: Annotated[list[Path], typer.Option(help='Folder below which the bags lie; may be given several times.')],
    out: Annotated[Path, typer.Option(help='Folder of the dataset; must not exist.')],
    images: Annotated[str, typer.Option(
        help='video: AV1, as lerobot; fine-video: H.264, colours at full size; png: without loss.')] = 'video',
    size: Annotated[str, typer.Option(help='Of images: recorded, or policy, what the policy sees.')] = 'recorded',
    cut: Annotated[str, typer.Option(help='Where episodes begin: marks, instruction, whole, or a topic.')] = 'marks',
    instruction: Annotated[str, typer.Option(help='The words of bags in which there are none.')] = '',
    skip_unusable: Annotated[bool, typer.Option(help='Leave out bags that cannot be read, and say why.')] = False,
) -> None:
    """Write bags as a LeRobotDataset v3.0."""
    _need_packages()
    console = Console()
    found = need_bags(bags)
    skip = (lambda error: console.print(f'left out: {error}', markup=False)) if skip_unusable else None
    progress = track(found, 'Exporting', console=console, disable=not console.is_terminal)
    info = export_bags(progress, RobotContract.load(find_contract(contract)), out, ExportOptions(images, size),
                       ReadOptions(cut, instruction), skip)
    console.print(f'{out}: {info.total_episodes} episodes, {info.total_frames} frames at {info.fps} Hz, '
                  f'{info.total_tasks} instructions, {_megabytes(out):.1f} MB', markup=False, soft_wrap=True)


def import_(
    dataset: Annotated[Path, typer.Option(help='Folder of a LeRobotDataset v3.')],
    out: Annotated[Path, typer.Option(help='Folder for the bags; must be empty or missing.')],
    contract: Annotated[str | None, typer.Option(
        help='A file, or a name in config/robots; by default the one that came with an export.')] = None,
    feature: Annotated[list[str] | None, typer.Option(
        help='PART=FEATURE: where a camera, state or action is called otherwise; may be repeated.')] = None,
    by_position: Annotated[bool, typer.Option(help='Take numbers in their order, not by name.')] = False,
) -> None:
    """Write the episodes of a LeRobotDataset v3 as bags."""
    _need_packages()
    console = Console()
    source = Dataset(dataset)
    robot = RobotContract.load(find_contract(contract)) if contract else contract_of(dataset)
    episodes = import_dataset(source, robot, out, _pairs(feature or ()), by_position)
    written = list(track(episodes, 'Importing', len(source), console=console, disable=not console.is_terminal))
    console.print(f'{out}: {len(written)} bags of {source.info.total_frames} frames for the contract {robot.label}',
                  markup=False, soft_wrap=True)
    if abs(source.info.fps * robot.rates.policy_dt - 1) > 1e-6:
        steps = 1 / robot.rates.policy_dt
        console.print(f'the dataset has {source.info.fps:g} frames a second, the contract {steps:g} steps: each takes '
                      'the newest frame before it', markup=False, soft_wrap=True)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if not all(text.partition('=')):
            raise ConfigError(f'--feature {text!r}: expected PART=FEATURE')
    return dict(text.split('=', 1) for text in texts)


def _need_packages() -> None:
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise ConfigError(f'{", ".join(missing)} not installed: pip install "flow_vla[data]"')


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6
