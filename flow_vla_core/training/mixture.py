"""How often each window is drawn: by its dataset, its instruction, its outcome, and who acted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import ConfigError
from flow_vla_core.training.config import ActorWeights, TrainConfig
from flow_vla_core.training.sampler import balanced
from flow_vla_core.types import Actor

__all__ = ['Dataset', 'Mixture', 'choose_dataset', 'frame_weights']


@dataclass(frozen=True)
class Dataset:
    """Names a folder of bags.

    Args:
        folder: below which they lie.
        weight: how often the dataset is drawn beside others, however large it is; None leaves that to its size.

    Raises:
        ConfigError: for a weight that is not above 0.

    Example:
        >>> Dataset.parse('bags/kitchen=2')
        Dataset(folder=PosixPath('bags/kitchen'), weight=2.0)
    """

    folder: Path
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < float('inf'):
            raise ConfigError(f'{self.folder}={self.weight:g}: the weight of a dataset is above 0; leave a dataset out '
                              'that is not to be drawn')

    @classmethod
    def parse(cls, text: str) -> Dataset:
        """Read ``FOLDER`` or ``FOLDER=WEIGHT``; a folder that is there under the whole text is meant itself."""
        folder, equals, weight = text.rpartition('=')
        if not equals or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(folder), float(weight))
        except ValueError as error:
            raise ConfigError(f'{text}: {weight!r} is no weight; allowed: FOLDER or FOLDER=NUMBER') from error


def choose_dataset(source: Path, datasets: Sequence[Dataset]) -> int:
    """Return the number of the dataset that a bag lies in, 0 where there are none."""
    return next((number for number, dataset in enumerate(datasets) if source.is_relative_to(dataset.folder)), 0)


def frame_weights(actors: np.ndarray, config: ActorWeights) -> np.ndarray:
    """Return how often the frames of an episode are drawn, (N,), by who acts at each of them, (N,).

    Example:
        >>> actors = np.array([Actor.POLICY, Actor.POLICY, Actor.POLICY, Actor.PERSON, Actor.POLICY])
        >>> frame_weights(actors, ActorWeights(person=2.0, before=2)).tolist()
        [1.0, 0.0, 0.0, 2.0, 1.0]
    """
    table = np.zeros(len(Actor))
    table[[Actor.NOBODY, Actor.POLICY, Actor.PERSON]] = config.nobody, config.policy, config.person
    weights = table[actors]
    for place in np.flatnonzero((actors[1:] == Actor.PERSON) & (actors[:-1] == Actor.POLICY)) + 1:
        before = slice(max(0, place - config.before), place)
        weights[before] = np.where(actors[before] == Actor.POLICY, 0.0, weights[before])
    return weights


class Mixture:
    """Weighs windows: first by who acted at their first action and by their outcome; then, with ``balance``, so that
    each instruction is drawn equally often; then so that datasets with weights are drawn in the ratio of these.

    Once a dataset has a weight, instructions are balanced within each dataset, and a dataset without one counts 1.

    Args:
        windows: to be drawn from.
        config: of the training.
        datasets: that the episodes come from; an episode belongs to the first one whose folder its bag lies in.

    Example:
        >>> from flow_vla_core.data.episode import Episode
        >>> row = np.zeros((8, 2), np.float32)
        >>> episodes = [Episode(np.arange(n), {}, row[:n], row[:n], 'go', '', 'success', Path(name))
        ...             for n, name in ((8, 'a/1'), (2, 'b/1'))]
        >>> mixture = Mixture(Windows(episodes, 4), TrainConfig(), [Dataset(Path('a')), Dataset(Path('b'), 3.0)])
        >>> [round(entry['share'], 2) for entry in mixture.table()['datasets']]
        [0.25, 0.75]
    """

    def __init__(self, windows: Windows, config: TrainConfig, datasets: Sequence[Dataset] = ()) -> None:
        self.windows, self.config, self.datasets = windows, config, tuple(datasets)

    @cached_property
    def frames(self) -> np.ndarray:
        """(F,) how often each frame is drawn by who acted."""
        return np.concatenate([frame_weights(each.actors, self.config.actors) for each in self.windows.episodes])

    @cached_property
    def learned(self) -> Tensor | None:
        """(F,) bool, whether the action of a frame is learned; None if all are."""
        return None if (self.frames > 0).all() else torch.from_numpy(self.frames > 0)

    @cached_property
    def used(self) -> Tensor:
        """(N,) bool, whether a window is drawn at all."""
        return self._plain() > 0

    def weights(self) -> Tensor | None:
        """Return how often each window is drawn, (N,); None where all are drawn equally often."""
        weights = self._plain()
        instruction, dataset = self._instruction(), self._dataset()
        weighted = any(entry.weight is not None for entry in self.datasets)
        if self.config.balance:
            weights = balanced(instruction + (int(instruction.max()) + 1) * dataset * weighted, weights)
        if weighted:
            factors = torch.tensor([1.0 if entry.weight is None else entry.weight for entry in self.datasets])
            weights = balanced(dataset, weights) * factors.double()[dataset]
        return None if (weights == weights[0]).all() and weights[0] > 0 else weights

    def table(self) -> dict[str, list[dict[str, Any]]]:
        """Count the windows of each dataset, instruction and actor; ``share`` is how much of the draws they get."""
        weights = self.weights()
        weights = torch.ones(len(self.windows)).double() if weights is None else weights
        names = [str(entry.folder) for entry in self.datasets] or ['all']
        actors = torch.from_numpy(np.concatenate([each.actors for each in self.windows.episodes]))
        return {'datasets': _count(names, self._dataset(), weights),
                'instructions': _count(self._texts(), self._instruction(), weights),
                'actors': _count([actor.name.lower() for actor in Actor], self._of_frame(actors).long(), weights)}

    def _plain(self) -> Tensor:
        outcomes = torch.tensor([getattr(self.config.outcomes, each.outcome) for each in self.windows.episodes])
        return self._of_frame(torch.from_numpy(self.frames)) * self._of_episode(outcomes)

    def _instruction(self) -> Tensor:
        numbers = {text: number for number, text in enumerate(self._texts())}
        return self._of_episode(torch.tensor([numbers[each.instruction] for each in self.windows.episodes]))

    def _dataset(self) -> Tensor:
        return self._of_episode(torch.tensor([choose_dataset(each.source, self.datasets)
                                              for each in self.windows.episodes]))

    def _texts(self) -> list[str]:
        return sorted({episode.instruction for episode in self.windows.episodes})

    def _of_episode(self, values: Tensor) -> Tensor:
        return values[torch.from_numpy(self.windows.episode_of)]

    def _of_frame(self, values: Tensor) -> Tensor:
        return values[torch.from_numpy(self.windows.frame_of)]


def _count(names: Iterable[str], groups: Tensor, weights: Tensor) -> list[dict[str, Any]]:
    total = weights.sum().clamp(min=1e-300)
    found = [{'name': name, 'windows': int((groups == number).sum()),
              'share': (weights[groups == number].sum() / total).item()} for number, name in enumerate(names)]
    return [entry for entry in found if entry['windows']]
