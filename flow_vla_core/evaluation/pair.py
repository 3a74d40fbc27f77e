"""Two tasks that start from the same scene: do the words decide which motion is made?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
import json
from pathlib import Path

from rich.table import Table

from flow_vla_core.evaluation.direct import Episode
from flow_vla_core.evaluation.report import EpisodeResult, wilson_interval
from flow_vla_core.simulation.judges import FAUCET_PAIR
from flow_vla_core.simulation.metaworld import TASKS

__all__ = ['PairCount', 'PairReport', 'pair_episodes']

WORDS = ('own', 'other', 'empty')


@dataclass(frozen=True)
class PairCount:
    """Counts the motions made in one task's scenes under one instruction.

    Args:
        scene: task whose scenes they were.
        words: ``own``, ``other`` or ``empty``.
        instruction: what was said.
        episodes: how many were run.
        own_motion: how many made the motion of the scene's task.
        other_motion: how many made the motion of the other task.
        neither: how many made none in time.
    """

    scene: str
    words: str
    instruction: str
    episodes: int
    own_motion: int
    other_motion: int
    neither: int


@dataclass(frozen=True)
class PairReport:
    """Says which motion followed which words; an episode ends with the first motion whose criterion is met."""

    counts: list[PairCount]

    @classmethod
    def of(cls, results: Iterable[EpisodeResult]) -> PairReport:
        """Count the outcomes of `pair_episodes`."""
        groups: dict[tuple[str, str], list[EpisodeResult]] = {}
        for result in results:
            groups.setdefault((result.task, result.instruction), []).append(result)
        return cls([_count(scene, words, group) for (scene, words), group in groups.items()])

    @property
    def rates(self) -> dict[str, float]:
        """Rates over both scenes: the right words, the other's words (each motion), no words (each motion)."""
        sums = {words: [c for c in self.counts if c.words == words] for words in WORDS}

        def rate(words: str, motion: str) -> float:
            return sum(getattr(c, motion) for c in sums[words]) / max(1, sum(c.episodes for c in sums[words]))

        return {'own_words_own_motion': rate('own', 'own_motion'),
                'other_words_other_motion': rate('other', 'other_motion'),
                'other_words_own_motion': rate('other', 'own_motion'),
                'empty_words_own_motion': rate('empty', 'own_motion'),
                'empty_words_other_motion': rate('empty', 'other_motion')}

    def write(self, folder: Path) -> Path:
        """Write ``pair.json`` into a folder and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / 'pair.json'
        path.write_text(json.dumps({'rates': self.rates, 'counts': [asdict(c) for c in self.counts]}, indent=2) + '\n')
        return path

    def table(self) -> Table:
        """Lay the counts out for a terminal."""
        table = Table('scene of', 'words', *(f'made {task}' for task in FAUCET_PAIR), 'neither', 'as told, 95 %')
        for count in self.counts:
            made = {count.scene: count.own_motion, _other(count.scene): count.other_motion}
            table.add_row(count.scene, f'{count.words}: {count.instruction!r}',
                          *(f'{made[task]}/{count.episodes}' for task in FAUCET_PAIR), str(count.neither), _told(count))
        return table


def pair_episodes(episodes: int, seed: int) -> list[Episode]:
    """Order own, other and empty words for both tasks; each task has scenes of its own.

    For one seed both tasks give the same scene, so that the second task's seeds follow those of the first.

    Args:
        episodes: for each task and each kind of words.
        seed: of the first scene.
    """
    orders = []
    for index, task in enumerate(FAUCET_PAIR):
        seeds = range(seed + index * episodes, seed + (index + 1) * episodes)
        for text in (TASKS[task], TASKS[_other(task)], ''):
            orders.extend(Episode(task, scene, text) for scene in seeds)
    return orders


def _count(scene: str, instruction: str, results: list[EpisodeResult]) -> PairCount:
    own = sum(result.motion == scene for result in results)
    other = sum(result.motion == _other(scene) for result in results)
    words = {TASKS[scene]: 'own', TASKS[_other(scene)]: 'other'}.get(instruction, 'empty')
    return PairCount(scene, words, instruction, len(results), own, other, len(results) - own - other)


def _told(count: PairCount) -> str:
    if count.words == 'empty':
        return '-'
    made = count.own_motion if count.words == 'own' else count.other_motion
    return '{:.0%} to {:.0%}'.format(*wilson_interval(made, count.episodes))


def _other(task: str) -> str:
    return FAUCET_PAIR[1 - FAUCET_PAIR.index(task)]
