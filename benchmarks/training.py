"""Training samples per second and memory: episodes in memory and memory-mapped, fetched early or not, in turns."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
import json
from pathlib import Path
import statistics
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table
import torch

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.windows import Windows
from flow_vla_core.training.build import build_policy
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.randomness import source_of
from flow_vla_core.training.report import environment
from flow_vla_core.training.trainer import FlowTrainer

WORDS = ('open the drawer', 'close the drawer', 'press the button', 'reach the goal')


def make_episodes(folder: Path | None, contract: RobotContract, count: int, length: int) -> list[Episode]:
    """Make random episodes, with their images in memory or, in a folder, memory-mapped."""
    episodes = []
    for number in range(count):
        random = np.random.default_rng(number)
        images = {}
        for camera in contract.cameras:
            pixels = random.integers(0, 256, (length, *camera.size, camera.channels), dtype=np.uint8)
            if folder is not None:
                path = folder / f'{number}_{camera.name}.npy'
                np.save(path, pixels)
                pixels = np.load(path, mmap_mode='r')
            images[camera.name] = pixels
        state = random.normal(size=(length, contract.state_dim)).astype(np.float32)
        actions = random.normal(size=(length, contract.action_dim)).astype(np.float32)
        episodes.append(Episode(np.arange(length), images, state, actions, WORDS[number % len(WORDS)], '', 'success',
                                Path(f'episode_{number}')))
    return episodes


def private_memory() -> float:
    """Return this process's own memory, MB; pages of mapped files, which the system may take back, do not count."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith('RssAnon'))


class Case:
    """Trains and loads in one of the ways that are compared."""

    def __init__(self, episodes: Sequence[Episode], contract: RobotContract, config: TrainConfig) -> None:
        policy = build_policy(config, contract, episodes)
        self.objective = PolicyObjective(policy, Windows(episodes, config.policy.horizon), None, config)
        self.config, self.trainer = config, FlowTrainer(self.objective, config)
        self.trained: list[float] = []
        self.loaded: list[float] = []

    def round(self, steps: int) -> None:
        """Train some steps, then only load as many batches."""
        self.trainer.train_step()
        began = time.perf_counter()
        for _ in range(steps):
            self.trainer.train_step()
        self.trained.append(steps * self.config.batch_size / (time.perf_counter() - began))
        sampler, began = self.objective.sampler(self.config), time.perf_counter()
        for step in range(steps):
            self.objective.load(sampler.batch(step), source_of(step))
        self.loaded.append(steps * self.config.batch_size / (time.perf_counter() - began))

    def row(self) -> dict[str, float]:
        """Sum up."""
        return {'trained_per_second': statistics.median(self.trained),
                'loaded_per_second': statistics.median(self.loaded)}


def compare(arguments: Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Run all cases in turns."""
    contract = RobotContract.load(find_contract(arguments.contract))
    config = TrainConfig(batch_size=arguments.batch_size, half=False)
    before = private_memory()
    mapped = make_episodes(folder, contract, arguments.episodes, arguments.length)
    after_mapping = private_memory()
    cases = {'mapped, fetched early': Case(mapped, contract, config),
             'mapped': Case(mapped, contract, replace(config, prefetch=0))}
    for case in cases.values():
        case.round(arguments.steps)
    after_training = private_memory()
    held = make_episodes(None, contract, arguments.episodes, arguments.length)
    cases |= {'in memory, fetched early': Case(held, contract, config),
              'in memory': Case(held, contract, replace(config, prefetch=0))}
    for _ in range(arguments.rounds):
        for case in cases.values():
            case.round(arguments.steps)
    images = sum(image.nbytes for episode in mapped for image in episode.images.values()) / 1e6
    return {**{name: case.row() for name, case in cases.items()}, 'memory_mb': {
        'images': images, 'opening_mapped': after_mapping - before, 'training_mapped': after_training - after_mapping}}


def show(found: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table."""
    table = Table('episodes', 'trained /s', 'loaded /s')
    for name, row in found.items():
        if name != 'memory_mb':
            table.add_row(name, f'{row["trained_per_second"]:.0f}', f'{row["loaded_per_second"]:.0f}')
    console = Console()
    console.print(table)
    console.print('own memory, MB: ' + ', '.join(f'{key} {value:.0f}' for key, value in found['memory_mb'].items()))


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('--contract', default='metaworld')
    parser.add_argument('--episodes', type=int, default=100)
    parser.add_argument('--length', type=int, default=100)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=10, help='of each case in each round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--out', type=Path, default=Path('out/benchmarks/training.json'))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(arguments, Path(folder))
    show(found)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(arguments).items() if key != 'out'}
    arguments.out.write_text(json.dumps({'settings': settings, 'results': found, 'environment': environment()},
                                        indent=2))


if __name__ == '__main__':
    main()
