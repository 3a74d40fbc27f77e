"""What a comparison found about one family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
import json
from pathlib import Path
from typing import Any

from flow_vla_core.errors import DataError

__all__ = ['RESULT', 'WEIGHTS', 'FamilyResult', 'Measure']

RESULT, WEIGHTS = 'result.json', 'weights'  # in the folder of a family


@dataclass(frozen=True)
class Measure:
    """Holds the figures of one family at one effort.

    Args:
        steps: effort.
        evaluations: of networks for a chunk.
        chunks_per_second: one chunk at a time, on one thread.
        scores: of the trial.

    Example:
        >>> Measure(steps=5, evaluations=10, chunks_per_second=80.0, scores={'w2': 0.7}).scores['w2']
        0.7
    """

    steps: int
    evaluations: int
    chunks_per_second: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class FamilyResult:
    """Holds all that was found about one family.

    Args:
        name: of the entry.
        parameters: how many numbers are trained.
        seconds: of training.
        teacher_seconds: of training the teacher, 0 without one.
        measures: one for each effort, the family's own first.
        losses: (step, loss) in training.
        settings: what it was found with.
        acted: scores of the final use, at the family's own effort.

    Example:
        >>> FamilyResult('vae', 1000, 12.5, 0.0, [Measure(1, 1, 80.0, {'w2': 0.7})], [(1, 2.0)], {}).measures[0].steps
        1
    """

    name: str
    parameters: int
    seconds: float
    teacher_seconds: float
    measures: Sequence[Measure]
    losses: Sequence[tuple[int, float]]
    settings: Mapping[str, Any]
    acted: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f'.{path.name}')
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> FamilyResult:
        """Read what `save` wrote. Raise `DataError` if it is something else."""
        try:
            values = json.loads(path.read_text())
            known = {key.name: values[key.name] for key in fields(cls)}
            return cls(**{**known, 'measures': [Measure(**measure) for measure in known['measures']]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f'{path}: holds no result of a comparison: {error!r}') from error
