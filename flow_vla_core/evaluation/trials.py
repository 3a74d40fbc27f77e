"""What families are compared on: examples to learn from, and scores for what was learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flow_vla_core.evaluation.bimodal import Bimodal
from flow_vla_core.evaluation.comparison_plots import plot_chunks
from flow_vla_core.evaluation.cost import make_chunks
from flow_vla_core.evaluation.family_result import FamilyResult
from flow_vla_core.generators import Generator, GeneratorConfig
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['BimodalTrial', 'Trial']


class Trial(ABC):
    """Declares what families are compared on.

    Args:
        network: the network that each family uses.
        actions: (N, H, A) normalised chunks to learn from.
        conditions: of the same N.
        mask: (N, H) bool, false for actions that don't count.
    """

    def __init__(self, network: NetworkConfig, actions: Tensor, conditions: Condition,
                 mask: Tensor | None = None) -> None:
        self.network, self.actions, self.conditions, self.mask = network, actions, conditions, mask

    @property
    def sizes(self) -> Sizes:
        """Sizes of chunk and condition."""
        tokens = 0 if self.conditions.tokens is None else self.conditions.tokens.shape[2]
        return Sizes(*self.actions.shape[1:], self.conditions.vector.shape[1], tokens)

    @property
    @abstractmethod
    def reference(self) -> Mapping[str, float]:
        """What the expert itself scores."""

    @abstractmethod
    def score(self, generator: Generator, steps: int | None = None) -> Mapping[str, float]:
        """Measure a trained generator: name of the figure -> figure.

        Args:
            generator: in evaluation mode.
            steps: effort; None takes the generator's own.
        """

    def act(self, folder: Path, config: GeneratorConfig, generator: Generator) -> Mapping[str, float]:
        """Put a trained generator to its final use, and return how well it did; nothing if there is no such use.

        Args:
            folder: for what is made on the way.
            config: of the family.
            generator: trained.
        """
        return {}

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Say what is compared on; two comparisons may be put together if this is the same."""

    @abstractmethod
    def examples(self, count: int) -> tuple[Tensor, Condition]:
        """Choose conditions that show what was learned, and what the expert does for them: (count, H, A)."""

    @abstractmethod
    def draw(self, folder: Path, made: Mapping[str, Tensor], results: Sequence[FamilyResult]) -> None:
        """Draw what each family makes.

        Args:
            folder: of the pictures.
            made: name -> chunks for the conditions of `examples`.
            results: of all families.
        """


class BimodalTrial(Trial):
    """Compares on `Bimodal`.

    Args:
        task: its sizes.
        network: the network that each family uses.
        count: chunks to learn from.
        seed: of these chunks.
        observations: as many are tested.
        samples: chunks for each of them.

    Example:
        >>> trial = BimodalTrial(count=100, observations=2, samples=50)
        >>> sorted(trial.reference)
        ['between', 'error', 'mode_error', 'w2']
    """

    def __init__(self, task: Bimodal | None = None, network: NetworkConfig | None = None, count: int = 100_000,
                 seed: int = 0, observations: int = 16, samples: int = 1024) -> None:
        self.task, self.seed = task or Bimodal(), seed
        self.observations, self.samples = observations, samples
        actions, conditions = self.task.sample(count, torch.Generator().manual_seed(seed))
        super().__init__(network or NetworkConfig('mlp', 256, 3), actions, conditions)

    @property
    def reference(self) -> Mapping[str, float]:
        """The distance between two draws of the expert is not 0."""
        return asdict(self.task.score(self.task.expert, self.observations, self.samples, self.seed + 1))

    def score(self, generator: Generator, steps: int | None = None) -> Mapping[str, float]:
        """Return the figures of `BimodalScore`."""
        return asdict(self.task.score(lambda condition, random: make_chunks(generator, condition, steps, random),
                                      self.observations, self.samples, self.seed + 1))

    def identity(self) -> Mapping[str, Any]:
        """Name the task, its examples and its test."""
        return {'data': 'bimodal', **asdict(self.task), 'examples': len(self.actions), 'seed': self.seed,
                'network': asdict(self.network), 'observations': self.observations, 'samples': self.samples}

    def examples(self, count: int) -> tuple[Tensor, Condition]:
        """Take one observation, for which both ways are equally likely."""
        condition = Condition(torch.tensor([[0.6, 0.0, 0.0]])).expand(count)
        return self.task.expert(condition, torch.Generator().manual_seed(self.seed + 2)), condition

    def draw(self, folder: Path, made: Mapping[str, Tensor], results: Sequence[FamilyResult]) -> None:
        """Draw the ways that each family takes for one observation."""
        own = {result.name: result.measures[0] for result in results}
        notes = {name: f'{measure.evaluations} evaluation{"s" * (measure.evaluations > 1)}, '
                       f'W2 {measure.scores["w2"]:.2f}, {measure.scores["between"]:.0%} between'
                 for name, measure in own.items()}
        expert, _ = self.examples(len(next(iter(made.values()))))
        plot_chunks(folder / 'chunks.png', expert.numpy(), {name: made[name].numpy() for name in made}, notes)
