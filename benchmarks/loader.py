"""Compares training samples a second, and a first epoch from bags, with LeRobotDataset v3 in lerobot's own loader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
import json
from pathlib import Path
import resource
from tempfile import TemporaryDirectory
import time
from typing import Annotated, Any

from lerobot_reads import call_lerobot, write_expected
import numpy as np
from rich.console import Console
from rich.table import Table
import torch
import typer

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data import EpisodeCache, Windows, find_bags
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.lerobot import ExportOptions, export_episodes
from flow_vla_core.errors import FlowVLAError
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.training.episodes import load_episodes

BAR = 5.0  # times as many samples a second
FORMS = ('video', 'png')


def samples(windows: Windows, batch: int, seconds: float, as_float: bool) -> tuple[float, float]:
    """Count windows that are gathered in random order, a second and a second of CPU time.

    Args:
        windows: of the cached episodes.
        batch: windows at once.
        seconds: how long.
        as_float: turn images into contiguous float32 from 0 to 1, as lerobot does; otherwise they stay uint8, as the
            trainer takes them.
    """
    random = np.random.default_rng(0)
    seen, started, before = 0, time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - started) < seconds:
        window = windows.gather(random.integers(0, len(windows), batch))
        if as_float:
            for images in window.images.values():
                images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        seen += batch
    return seen / passed, seen / (time.process_time() - before)


def first_epoch(bags: Sequence[Path], contract: RobotContract, cache: Path, batch: int, horizon: int,
                workers: int) -> dict[str, float]:
    """Time decoding bags into an empty cache, and going once through all windows in random order."""
    started, before = time.perf_counter(), cpu_seconds()
    episodes = list(load_episodes(bags, contract, workers, cache=EpisodeCache(cache)))
    windows = Windows(episodes, horizon)
    decoded = time.perf_counter()
    order = np.random.default_rng(0).permutation(len(windows))
    for start in range(0, len(order), batch):
        windows.gather(order[start:start + batch])
    return {'decode_seconds': decoded - started, 'epoch_seconds': time.perf_counter() - decoded,
            'frames': len(windows), 'cpu_seconds': cpu_seconds() - before}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of those that it has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def compare_samples(python: Path, episodes: list[Episode], contract: RobotContract, folder: Path, batch: int,
                    horizon: int, seconds: float, workers: Sequence[int]) -> dict[str, Any]:
    """Measure ours before and after lerobot's, with each form of images and number of worker processes."""
    windows = Windows(episodes, horizon)
    before = [samples(windows, batch, seconds, as_float) for as_float in (False, True)]
    theirs: dict[str, dict[str, dict[str, float]]] = {}
    for form in FORMS:
        dataset = folder / form
        export_episodes(episodes, contract, dataset, ExportOptions(form, 'policy'))
        theirs[form] = {str(count): call_lerobot(python, 'measure', dataset, batch=batch, horizon=horizon,
                                                 workers=count, seconds=seconds)
                        for count in workers}
    after = [samples(windows, batch, seconds, as_float) for as_float in (False, True)]
    ours = [min(pair) for pair in zip(before, after)]
    best = {form: max(found.values(), key=lambda one: one['samples_per_second']) for form, found in theirs.items()}
    ratio = {form: {'as_trained': ours[0][0] / one['samples_per_second'],
                    'float32': ours[1][0] / one['samples_per_second'],
                    'float32_by_cpu': ours[1][1] / one['samples_per_cpu_second']} for form, one in best.items()}
    return {'ours_uint8': ours[0], 'ours_float32': ours[1], 'lerobot': theirs, 'ratio': ratio}


def main(
    lerobot_python: Annotated[Path, typer.Option(help='python of the environment that lerobot is installed in')],
    bags: Annotated[Path, typer.Option(help='folder below which the bags lie')],
    contract: Annotated[str, typer.Option(help='robot contract: a file, or a name in config/robots')] = 'so101',
    batch: Annotated[int, typer.Option(min=1, help='samples at once')] = 64,
    horizon: Annotated[int, typer.Option(min=1, help='actions of a sample')] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help='of each measurement')] = 10.0,
    workers: Annotated[str, typer.Option(help="numbers of lerobot's worker processes that are tried")] = '0,1,2,4',
    processes: Annotated[int, typer.Option(min=1, help='that decode bags for our first epoch')] = 1,
    out: Annotated[Path, typer.Option(help='file of the results')] = Path('out/benchmarks/loader.json'),
) -> None:
    """Print samples a second side by side, and the first epoch; exit code 1 below the bar."""
    torch.set_num_threads(1)
    robot, found = RobotContract.load(find_contract(contract)), find_bags(bags)
    counts = [int(word) for word in workers.split(',')]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ours = first_epoch(found, robot, folder / 'cache', batch, horizon, processes)
        episodes = list(load_episodes(found, robot, cache=EpisodeCache(folder / 'cache')))
        results = compare_samples(lerobot_python, episodes, robot, folder, batch, horizon, seconds, counts)
        video = results['lerobot']['video']
        best = max(video, key=lambda count: video[count]['samples_per_second'])
        theirs = call_lerobot(lerobot_python, 'convert', folder / 'converted', batch=batch, horizon=horizon,
                              workers=best, expected=write_expected(folder / 'expected', episodes, robot))
    results |= {'first_epoch': {'ours': ours, 'lerobot': theirs}, 'batch': batch, 'horizon': horizon,
                'cameras': len(robot.cameras), 'episodes': len(episodes), 'frames': sum(map(len, episodes)),
                'git_commit': git_state()[0], 'machine': asdict(Machine.here())}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + '\n')
    show(results)
    raise SystemExit(min(ratio['as_trained'] for ratio in results['ratio'].values()) < BAR)


def show(results: dict[str, Any]) -> None:
    """Print two tables."""
    console, trained, own = Console(width=130), results['ours_uint8'], results['ours_float32']
    table = Table('loader', 'samples/s', 'per CPU second', 'ours, uint8', 'ours, float32', 'float32, by CPU time',
                  title=f'windows of {results["horizon"]} actions, {results["cameras"]} cameras, batch '
                        f'{results["batch"]}, {results["frames"]} frames')
    for name, found in (('ours, uint8: as we train', trained), ('ours, float32: as lerobot gives them', own)):
        table.add_row(name, *(f'{value:.0f}' for value in found))
    for form, found in results['lerobot'].items():
        for count, one in found.items():
            rate, by_cpu = one['samples_per_second'], one['samples_per_cpu_second']
            times = (f'{ratio:.1f} x' for ratio in (trained[0] / rate, own[0] / rate, own[1] / by_cpu))
            table.add_row(f'lerobot, {form}, {count} workers', f'{rate:.0f}', f'{by_cpu:.0f}', *times)
    console.print(table)
    table = Table('first epoch', 'until the data can be used, s', 'epoch, s', 'together, s', 'CPU time, s')
    for name, key, first in (('ours, from bags', 'ours', 'decode_seconds'),
                             ('lerobot, from decoded frames', 'lerobot', 'convert_seconds')):
        one = results['first_epoch'][key]
        table.add_row(name, *(f'{value:.1f}' for value in (one[first], one['epoch_seconds'],
                                                           one[first] + one['epoch_seconds'], one['cpu_seconds'])))
    console.print(table)


if __name__ == '__main__':
    try:
        typer.run(main)
    except FlowVLAError as error:
        raise SystemExit(f'loader: {error}') from error
