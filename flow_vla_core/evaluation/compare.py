"""Compares families: the same examples, network and optimiser steps for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
import json
import multiprocessing
from pathlib import Path
from typing import Any

from rich.console import Console
import torch
from torch import Tensor

from flow_vla_core.config import to_values
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.cost import chunks_per_second, count_evaluations, make_chunks
from flow_vla_core.evaluation.family_result import RESULT, WEIGHTS, FamilyResult, Measure
from flow_vla_core.evaluation.trials import Trial
from flow_vla_core.generators import FAMILIES, FlowMatchingConfig, Generator, GeneratorConfig, Student
from flow_vla_core.training.checkpoint import load_weights, save_weights
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.tensor_objectives import ChunkObjective
from flow_vla_core.training.trainer import FlowTrainer

__all__ = ['Comparison', 'choose_entries', 'default_entries']

TEACHER = 'flow_matching'


def default_entries() -> dict[str, GeneratorConfig]:
    """Return every registered family with its default settings, each chunk of a batch being drawn once.

    Flow matching uses the midpoint rule, as a good teacher does.

    Example:
        >>> default_entries()['flow_matching'].solver
        'midpoint'
    """
    entries = {name: config() for name, config in FAMILIES.items()}
    entries[TEACHER] = replace(entries[TEACHER], solver='midpoint', time='uniform')
    return {name: replace(entry, draws=1) if hasattr(entry, 'draws') else entry for name, entry in entries.items()}


def choose_entries(names: str, entries: Mapping[str, GeneratorConfig]) -> dict[str, GeneratorConfig]:
    """Choose entries by name: ``all``, or names with commas between them.

    Raises:
        ConfigError: for an unknown name, or none at all.

    Example:
        >>> list(choose_entries('regression, meanflow', default_entries()))
        ['regression', 'meanflow']
    """
    wanted = list(entries) if names == 'all' else [name.strip() for name in names.split(',') if name.strip()]
    for name in wanted:
        if name not in entries:
            raise ConfigError(f'generators: {name!r}; {closest(name, ["all", *entries])}')
    if not wanted:
        raise ConfigError('generators is empty; name at least one, or all')
    return {name: entries[name] for name in wanted}


@dataclass(frozen=True)
class Comparison:
    """Trains and measures families one by one; what is in the folder already is not done again.

    A student's teacher is the first entry of flow matching.

    Args:
        trial: what they are compared on.
        entries: name -> settings of a family.
        loop: how each is trained.
        out: folder of the results; each entry has a folder of its own in it.
        efforts: numbers of steps that are measured beside the family's own.
        timed: how long the rate of chunks is measured, s.

    Example:
        >>> from flow_vla_core.evaluation.trials import BimodalTrial
        >>> students = {'distilled': default_entries()['distilled']}
        >>> comparison = Comparison(BimodalTrial(count=10), students, LoopConfig(), Path('out')).with_teacher()
        >>> list(comparison.entries)
        ['flow_matching', 'distilled']
    """

    trial: Trial
    entries: Mapping[str, GeneratorConfig]
    loop: LoopConfig
    out: Path
    efforts: Sequence[int] = (1, 2, 4, 8)
    timed: float = 1.0

    def with_teacher(self) -> Comparison:
        """Return the same with flow matching as one more entry, if a student would have no teacher."""
        taught = any(isinstance(entry, FlowMatchingConfig) for entry in self.entries.values())
        if taught or not any(map(self._is_student, self.entries)):
            return self
        return replace(self, entries={TEACHER: default_entries()[TEACHER], **self.entries})

    def run(self, workers: int = 1, console: Console | None = None) -> list[FamilyResult]:
        """Return the results in the order of the entries.

        Args:
            workers: processes; each runs one family at a time.
            console: is told of each result.

        Raises:
            ConfigError: if a setting is out of range, or the folder holds results with other settings.
        """
        console = console or Console(quiet=True)
        found = {}
        for result in self._saved():
            found[result.name] = result
            _tell(result, 'was there', console)
        left = [name for name in self.entries if name not in found]
        students = [name for name in left if self._is_student(name)]
        for names in ([name for name in left if name not in students], students):
            for result in self._compete(names, workers):
                found[result.name] = result
                _tell(result, f'trained in {result.seconds:.0f} s', console)
        return [found[name] for name in self.entries]

    def compete(self, name: str) -> FamilyResult:
        """Train one entry, whose teacher has been trained, and measure it; write weights and result."""
        generator, teacher_seconds = self._build(name), 0.0
        if isinstance(generator, Student):
            teacher = self._build(self._teacher)
            load_weights(self.out / self._teacher / WEIGHTS, teacher)
            generator.learn_from(teacher)
            teacher_seconds = FamilyResult.load(self.out / self._teacher / RESULT).seconds
        trainer = FlowTrainer(ChunkObjective(generator, self.trial.actions, self.trial.conditions, self.trial.mask),
                              self.loop)
        trainer.run()
        trained, folder = trainer.average.module, self.out / name
        save_weights(folder / WEIGHTS, trained)
        losses = [(point.step, point.values['loss']) for point in trainer.points if 'loss' in point.values]
        result = FamilyResult(name, sum(p.numel() for p in trained.parameters()), trainer.seconds, teacher_seconds,
                              self._measure(trained), losses, self._settings(name),
                              self.trial.act(folder, self.entries[name], trained))
        result.save(folder / RESULT)
        return result

    def load(self, name: str) -> Generator:
        """Read the trained generator of an entry, in evaluation mode."""
        generator = self._build(name)
        load_weights(self.out / name / WEIGHTS, generator)
        return generator.eval()

    def examples(self, count: int = 100) -> dict[str, Tensor]:
        """Let every trained entry make chunks for the trial's examples: name -> (count, H, A)."""
        _, condition = self.trial.examples(count)
        return {name: make_chunks(self.load(name), condition, None, torch.Generator().manual_seed(self.loop.seed))
                for name in self.entries}

    @property
    def _teacher(self) -> str:
        for name, entry in self.entries.items():
            if isinstance(entry, FlowMatchingConfig):
                return name
        raise ConfigError('no entry of family flow_matching, which the students need as their teacher')

    def _is_student(self, name: str) -> bool:
        return isinstance(self._build(name), Student)

    def _compete(self, names: Sequence[str], workers: int) -> Iterator[FamilyResult]:
        if workers == 1 or len(names) < 2:
            yield from map(self.compete, names)
            return
        with ProcessPoolExecutor(min(workers, len(names)), multiprocessing.get_context('spawn'), torch.set_num_threads,
                                 (torch.get_num_threads(),)) as pool:
            yield from pool.map(self.compete, names)

    def _build(self, name: str) -> Generator:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.loop.seed)
            return self.entries[name].build(self.trial.sizes, self.trial.network)

    def _measure(self, generator: Generator) -> list[Measure]:
        """Measure at the generator's own effort and at others, as far as they cost something else."""
        measures: dict[int, Measure] = {}
        for steps in (generator.steps, *self.efforts):
            evaluations = count_evaluations(generator, steps)
            if evaluations not in measures:
                measures[evaluations] = Measure(steps, evaluations, chunks_per_second(generator, steps, self.timed),
                                                dict(self.trial.score(generator, steps)))
        return list(measures.values())

    def _settings(self, name: str) -> dict[str, Any]:
        values = {'trial': self.trial.identity(), 'generator': to_values(self.entries[name]),
                  'loop': to_values(self.loop), 'efforts': list(self.efforts)}
        return json.loads(json.dumps(values))

    def _saved(self) -> Iterator[FamilyResult]:
        for name in self.entries:
            path = self.out / name / RESULT
            if path.is_file():
                result, mine = FamilyResult.load(path), self._settings(name)
                for key, value in mine.items():
                    if result.settings.get(key) != value:
                        raise ConfigError(f'{path}: found with {key} {result.settings.get(key)}, not with {value}; '
                                          'choose another folder, or delete it')
                yield result


def _tell(result: FamilyResult, how: str, console: Console) -> None:
    own = result.measures[0]
    figures = ', '.join(f'{key} {value:.3g}' for key, value in {**result.acted, **own.scores}.items())
    console.print(f'{result.name}: {how}; evaluations {own.evaluations}, {figures}', soft_wrap=True)
