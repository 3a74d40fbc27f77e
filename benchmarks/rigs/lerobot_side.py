"""Runs in lerobot's own environment: checks datasets with lerobot, writes some, and times its loader.

It needs lerobot 0.4 and what that needs for datasets; nothing of flow_vla is imported here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
import json
import os
from pathlib import Path
import resource
import sys
import tempfile
import time

os.environ.update(TQDM_DISABLE='1', HF_HUB_OFFLINE='1', HF_DATASETS_OFFLINE='1', HF_HUB_DISABLE_TELEMETRY='1')
os.environ.setdefault('HF_HOME', tempfile.mkdtemp(prefix='hf_'))  # its cache of tables is rebuilt in each run

import numpy as np
import torch


def declare_operators() -> None:
    """Let torchvision be imported beside a torch without CUDA, whose compiled operators it can't load.

    Datasets use its transforms only; the operators are declared and would fail if anything called them.
    """
    two, one = '(Tensor a, Tensor b, float c) -> Tensor', '(Tensor a) -> Tensor'
    forward = ('roi_align', 'ps_roi_align', 'roi_pool', 'ps_roi_pool', 'deform_conv2d')
    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        library.define(name + two)
    for name in (*forward, *(f'_{name}_backward' for name in forward), 'qroi_align'):
        library.define(name + one)
    kept.append(library)


kept: list[object] = []
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for module in [name for name in sys.modules if name.split('.')[0] == 'torchvision']:
        del sys.modules[module]
    declare_operators()

from lerobot import __version__
from lerobot.datasets.compute_stats import aggregate_stats, get_feature_stats
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import dataset_to_policy_features
from torch.utils.data import DataLoader

DEFAULT_BATCH, DEFAULT_WORKERS = 8, 4  # of lerobot's training
EXACT = ('min', 'max', 'mean', 'std', 'count')


def load(folder: Path, **options: object) -> LeRobotDataset:
    """Open a dataset on this disk."""
    return LeRobotDataset('local/dataset', root=folder, **options)


def require(holds: bool, what: str) -> None:
    """End with what is wrong."""
    if not holds:
        raise SystemExit(f'lerobot: {what}')


def read_expected(folder: Path) -> tuple[dict, list[dict[str, np.ndarray]]]:
    """Read what the episodes should hold: a description, and the arrays of each."""
    description = json.loads((folder / 'expected.json').read_text())
    return description, [dict(np.load(folder / f'{index}.npz')) for index in range(len(description['instructions']))]


def check(folder: Path, expected: Path) -> dict:
    """Compare all that lerobot reads with what was exported; return what was seen."""
    description, episodes = read_expected(expected)
    dataset = load(folder)
    total = sum(len(episode['state']) for episode in episodes)
    require(len(dataset) == dataset.num_frames == total, f'{len(dataset)} frames, expected {total}')
    require(dataset.num_episodes == len(episodes), f'{dataset.num_episodes} episodes, expected {len(episodes)}')
    require(dataset.fps == description['fps'], f'{dataset.fps} frames a second, expected {description["fps"]}')
    require(dataset.features['observation.state']['names'] == description['state'], 'names of the state')
    require(dataset.features['action']['names'] == description['action'], 'names of the action')
    policy = set(dataset_to_policy_features(dataset.features))
    cameras = [f'observation.images.{camera}' for camera in description['cameras']]
    require(policy == {'observation.state', 'action', *cameras}, f'a policy would see {sorted(policy)}')
    check_loader(folder, total)  # first: worker processes can't share a decoder that this one has opened
    errors = check_frames(dataset, description, episodes, cameras)
    check_windows(folder, dataset.fps, description, episodes, cameras)
    check_statistics(dataset, episodes, cameras)
    check_tools(dataset, len(episodes))
    size = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
    return {'lerobot': __version__, 'torch': torch.__version__, 'backend': dataset.video_backend, 'frames': total,
            'episodes': len(episodes), 'bytes': size, **errors}


def check_frames(dataset: LeRobotDataset, description: dict, episodes: list, cameras: list[str]) -> dict:
    """Compare every frame: numbers bit for bit; return how far the images are off, in levels of 255."""
    index, worst, sums, squares, values = 0, 0.0, 0.0, 0.0, 0
    for number, episode in enumerate(episodes):
        for step in range(len(episode['state'])):
            item = dataset[index]
            place = f'frame {step} of episode {number}'
            require(np.array_equal(item['observation.state'].numpy(), episode['state'][step]), f'{place}: state')
            require(np.array_equal(item['action'].numpy(), episode['actions'][step]), f'{place}: action')
            require(item['stamp'].item() == episode['stamps'][step], f'{place}: stamp')
            require(item['task'] == description['instructions'][number], f'{place}: task {item["task"]!r}')
            found = [item[key].item() for key in ('index', 'episode_index', 'frame_index')]
            require(found == [index, number, step], f'{place}: indices {found}')
            require(abs(item['timestamp'].item() - step / dataset.fps) < 1e-4, f'{place}: timestamp')
            require(item['next.done'].item() == (step == len(episode['state']) - 1), f'{place}: next.done')
            for camera in cameras:
                image = (item[camera] * 255).round().permute(1, 2, 0).numpy()
                error = np.abs(image - episode[camera][step])
                worst, sums = max(worst, float(error.max())), sums + float(error.sum())
                squares, values = squares + float((error ** 2).sum()), values + error.size
            index += 1
    mean = squares / values if values else 0.0
    return {'image_error_max': worst, 'image_error_mean': sums / max(values, 1),
            'psnr': float(10 * np.log10(255 ** 2 / mean)) if mean else None}


def check_windows(folder: Path, fps: float, description: dict, episodes: list, cameras: list[str]) -> None:
    """Compare windows around every frame with those that are cut from the arrays."""
    ahead, back = np.arange(16), np.array([-2, -1, 0])
    deltas = {'action': (ahead / fps).tolist(), 'observation.state': (back / fps).tolist(),
              **{camera: (back[1:] / fps).tolist() for camera in cameras}}
    dataset = load(folder, delta_timestamps=deltas)
    index = 0
    for number, episode in enumerate(episodes):
        last = len(episode['state']) - 1
        for step in range(last + 1):
            if step % 7 and step != last:
                index += 1
                continue
            item, place = dataset[index], f'window at frame {step} of episode {number}'
            wanted = episode['actions'][np.minimum(step + ahead, last)]
            require(np.array_equal(item['action'].numpy(), wanted), f'{place}: action')
            require(np.array_equal(item['action_is_pad'].numpy(), step + ahead > last), f'{place}: padding')
            wanted = episode['state'][np.maximum(step + back, 0)]
            require(np.array_equal(item['observation.state'].numpy(), wanted), f'{place}: state')
            for camera in cameras:
                close = episode[camera][np.maximum(step + back[1:], 0)].transpose(0, 3, 1, 2)
                error = np.abs((item[camera] * 255).numpy() - close).mean()
                require(item[camera].shape == close.shape and error < 8, f'{place}: {camera} is {error:.1f} levels off')
            index += 1


def check_statistics(dataset: LeRobotDataset, episodes: list, cameras: list[str]) -> None:
    """Compare the statistics with those that lerobot's own functions give for the same arrays."""
    for key, name in (('observation.state', 'state'), ('action', 'actions')):
        values = np.concatenate([episode[name] for episode in episodes]).astype(np.float64)
        compare(dataset.meta.stats[key], get_feature_stats(values, axis=0, keepdims=False), key, 1e-6, EXACT)
        check_quantiles(dataset.meta.stats[key], values, key)
    for camera in cameras:
        values = np.concatenate([episode[camera][::5] for episode in episodes]).transpose(0, 3, 1, 2)
        own = get_feature_stats(values.astype(np.float64), axis=(0, 2, 3), keepdims=True)
        own = {name: value if name == 'count' else value[0] / 255 for name, value in own.items()}
        require(dataset.meta.stats[camera]['mean'].shape == (3, 1, 1), f'{camera}: shape of the statistics')
        compare(dataset.meta.stats[camera], own, camera, 0.05, ('mean', 'std', 'q10', 'q50', 'q90'))
    rows = [json.loads(json.dumps(row)) for row in episode_statistics(dataset)]
    merged = aggregate_stats([{key: {name: np.array(value) for name, value in stats.items()}
                               for key, stats in row.items()} for row in rows])
    for key in (*cameras, 'observation.state', 'action'):
        compare(dataset.meta.stats[key], merged[key], f'{key}, merged', 1e-6, EXACT)


def check_quantiles(found: dict, values: np.ndarray, what: str) -> None:
    """Count the values on both sides of each quantile; lerobot's own are interpolated in a histogram."""
    spare = 2 / len(values)
    for name in [name for name in found if name.startswith('q')]:
        share, close = int(name[1:]) / 100, 1e-6 * (1 + np.abs(found[name]))
        below, up_to = (values < found[name] - close).mean(0), (values <= found[name] + close).mean(0)
        require(bool(((below - spare <= share) & (share <= up_to + spare)).all()), f'statistics of {what}: {name}')


def episode_statistics(dataset: LeRobotDataset) -> Iterator[dict]:
    """Yield feature -> name -> value for each episode, as they stand in meta/episodes."""
    import pyarrow.parquet as pq
    for path in sorted((dataset.root / 'meta/episodes').glob('*/*.parquet')):
        for row in pq.ParquetFile(path).read().to_pylist():
            found: dict = {}
            for column, value in row.items():
                if column.startswith('stats/'):
                    _, feature, name = column.split('/')
                    found.setdefault(feature, {})[name] = value
            yield found


def compare(found: dict, wanted: dict, what: str, tolerance: object, only: tuple[str, ...] | None = None) -> None:
    """Compare statistics by name."""
    require(set(found) == set(wanted), f'statistics of {what}: {sorted(found)}, expected {sorted(wanted)}')
    for name in only or found:
        error = np.abs(np.asarray(found[name], float) - wanted[name])
        require(bool((error <= tolerance).all()), f'statistics of {what}: {name} is {error.max():.4g} off')


def check_loader(folder: Path, total: int) -> None:
    """Go through the whole dataset with torch's loader in two processes."""
    loader = DataLoader(load(folder), batch_size=32, num_workers=2, shuffle=True)
    seen = torch.cat([batch['index'] for batch in loader])
    require(sorted(seen.tolist()) == list(range(total)), 'the loader does not give every frame once')


def check_tools(dataset: LeRobotDataset, episodes: int) -> None:
    """Let lerobot's tools take an episode away, and merge two datasets: they go by everything that stands in meta."""
    with tempfile.TemporaryDirectory() as folder:
        merged = merge_datasets([dataset, dataset], 'local/merged', Path(folder) / 'merged')
        require(merged.num_episodes == 2 * episodes and len(merged) == 2 * len(dataset), 'merging')
        twin = merged[len(dataset)]
        require(np.array_equal(twin['action'].numpy(), dataset[0]['action'].numpy()), 'merging: action')
        if episodes > 1:
            less = delete_episodes(dataset, [0], Path(folder) / 'less', 'local/less')
            first = dataset.meta.episodes[0]['length']
            require(len(less) == len(dataset) - first, 'deleting an episode')
            require(np.array_equal(less[0]['action'].numpy(), dataset[first]['action'].numpy()), 'deleting: action')


def create(folder: Path, expected: Path, use_videos: bool, progress: Callable[[int], None] = lambda _: None) -> None:
    """Write episodes with lerobot itself."""
    description, episodes = read_expected(expected)
    cameras = [f'observation.images.{camera}' for camera in description['cameras']]
    vector = partial(dict, dtype='float32')
    features = {
        **{camera: {'dtype': 'video' if use_videos else 'image', 'shape': episodes[0][camera].shape[1:],
                    'names': ['height', 'width', 'channels']} for camera in cameras},
        'observation.state': vector(shape=(len(description['state']),), names=description['state']),
        'action': vector(shape=(len(description['action']),), names=description['action'])}
    dataset = LeRobotDataset.create('local/dataset', description['fps'], features, root=folder, robot_type='made here',
                                    use_videos=use_videos)
    for number, episode in enumerate(episodes):
        for step in range(len(episode['state'])):
            dataset.add_frame({**{camera: episode[camera][step] for camera in cameras},
                               'observation.state': episode['state'][step], 'action': episode['actions'][step],
                               'task': description['instructions'][number]})
        dataset.save_episode()
        progress(number)
    dataset.finalize()


def measure(folder: Path, batch: int, horizon: int, workers: int, seconds: float) -> dict:
    """Count samples a second of lerobot's dataset in torch's loader: windows of actions, random access."""
    fps = load(folder).fps
    dataset = load(folder, delta_timestamps={'action': [step / fps for step in range(horizon)]})
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=len(dataset) >= batch,
                        prefetch_factor=2 if workers else None, persistent_workers=workers > 0)
    seen, started, before = 0, None, 0.0
    while True:
        batches = iter(loader)
        processes = [os.getpid(), *(worker.pid for worker in getattr(batches, '_workers', ()))]
        for samples in batches:
            if started is None:  # workers are up, the first batch is there
                started, before = time.perf_counter(), cpu_seconds(processes)
                continue
            seen += len(samples['index'])
            if time.perf_counter() - started > seconds:
                passed, used = time.perf_counter() - started, cpu_seconds(processes) - before
                return {'samples_per_second': seen / passed, 'samples_per_cpu_second': seen / used,
                        'backend': dataset.video_backend, 'workers': workers, 'batch': batch}


def cpu_seconds(processes: list[int]) -> float:
    """Return the CPU time that some processes have used."""
    ticks = 0
    for process in processes:
        words = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf('SC_CLK_TCK')


def convert(folder: Path, expected: Path, batch: int, horizon: int, workers: int) -> dict:
    """Time the way from decoded frames through lerobot's writer, and one epoch through its loader."""
    started, before = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    create(folder, expected, use_videos=True)
    written = time.perf_counter()
    fps = load(folder).fps
    dataset = load(folder, delta_timestamps={'action': [step / fps for step in range(horizon)]})
    seen = sum(len(samples['index']) for samples in DataLoader(dataset, batch_size=batch, shuffle=True,
                                                               num_workers=workers))
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {'convert_seconds': written - started, 'epoch_seconds': time.perf_counter() - written, 'frames': seen,
            'cpu_seconds': used - before}


def main() -> None:
    """Do what the arguments say and print the result as the last line, in JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('order', choices=('check', 'create', 'measure', 'convert'))
    parser.add_argument('dataset', type=Path)
    parser.add_argument('--expected', type=Path)
    parser.add_argument('--batch', type=int, default=DEFAULT_BATCH)
    parser.add_argument('--horizon', type=int, default=16)
    parser.add_argument('--workers', type=int, default=DEFAULT_WORKERS)
    parser.add_argument('--seconds', type=float, default=10.0)
    parser.add_argument('--images', action='store_true', help='create: single images in place of videos')
    given = parser.parse_args()
    if given.order == 'check':
        result = check(given.dataset, given.expected)
    elif given.order == 'create':
        result = create(given.dataset, given.expected, not given.images) or {'lerobot': __version__}
    elif given.order == 'measure':
        result = measure(given.dataset, given.batch, given.horizon, given.workers, given.seconds)
    else:
        result = convert(given.dataset, given.expected, given.batch, given.horizon, given.workers)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
