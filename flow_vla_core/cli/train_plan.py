"""What a training would do, for `flow-vla train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
import torch

from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.mixture import choose_dataset
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.randomness import source_of

__all__ = ['print_plan']

MB = 1e6


def print_plan(console: Console, objective: PolicyObjective, config: TrainConfig, processes: int) -> None:
    """Show what would be drawn how often, how large the policy is and what memory the training would take."""
    mixture = objective.mixture.table()
    episodes = objective.mixture.windows.episodes
    for title, entries in mixture.items():
        table = Table('name', 'windows', 'share of the draws', title=title, title_justify='left')
        for entry in entries:
            table.add_row(entry['name'], str(entry['windows']), f'{entry["share"]:.1%}')
        console.print(table)
    for number, dataset in enumerate(objective.datasets):
        count = sum(choose_dataset(episode.source, objective.datasets) == number for episode in episodes)
        weight = '' if dataset.weight is None else f', weight {dataset.weight:g}'
        console.print(f'{dataset.folder}: {count} episodes to train on{weight}', soft_wrap=True)
    for line in _lines(objective, config, processes):
        console.print(line, soft_wrap=True)


def _lines(objective: PolicyObjective, config: TrainConfig, processes: int) -> Iterator[str]:
    windows, policy = objective.mixture.windows, objective.module
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    every = sum(parameter.numel() for parameter in policy.parameters())
    held = objective.describe()['validation']
    rounds = config.steps * config.batch_size / len(windows)
    yield f'validation: {held["episodes"]} episodes, {held["windows"]} windows' if held else 'validation: none'
    yield (f'{config.steps} steps of {config.batch_size} windows in {config.accumulate} parts over {processes} '
           f'processes: {rounds:.1f} times as many draws as there are windows')
    yield f'{every:,} parameters, {trained:,} of them trained; a checkpoint of {4 * every / MB:.1f} MB'
    weights, batches = 4 * (2 * every + 3 * trained), _batch_bytes(objective, config) * (1 + config.prefetch)
    yield (f'memory of each process: {weights / MB:.0f} MB for weights, their average, gradients and optimiser; '
           f'{batches / MB:.0f} MB for batches; and what the networks keep for the gradient')
    images = sum(image.nbytes for episode in windows.episodes for image in episode.images.values())
    yield f'images of the episodes to train on: {images / MB:.0f} MB, {_place(windows.episodes[0].images)}'


def _batch_bytes(objective: PolicyObjective, config: TrainConfig) -> int:
    part = torch.arange(min(len(objective), config.batch_size // config.accumulate))
    batch, actions, mask = objective.load(part, source_of(0))
    return sum(tensor.nbytes for tensor in (*batch.images.values(), batch.state, batch.words, actions, mask))


def _place(images: dict[str, Any]) -> str:
    mapped = all(_is_mapped(image) for image in images.values())
    return 'memory-mapped from the cache' if mapped else 'held in memory'


def _is_mapped(array: Any) -> bool:
    while array is not None:
        if type(array).__name__ == 'memmap':
            return True
        array = getattr(array, 'base', None)
    return False
