"""What a policy that only watches leaves behind: a summary as JSON and a row for each chunk as CSV."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.open_loop import Comparison

__all__ = ['OpenLoopSummary']


class OpenLoopSummary:
    """Adds comparisons up; its size does not grow with their number, the rows go to the file at once.

    Args:
        names: of the action values.
        file: of the summary, JSON; the rows go beside it, with the suffix ``.csv``. None writes nothing.

    Raises:
        ConfigError: if the file can't be written.

    Example:
        >>> from flow_vla_core.types import ActionChunk
        >>> summary = OpenLoopSummary(['ee.x'])
        >>> chunk = ActionChunk(0, 1, np.zeros((2, 1), np.float32), instruction='go')
        >>> summary.add(Comparison(chunk, np.array([[0.1], [0.3]]), 2.0))
        >>> summary.chunks, round(summary.values()['errors']['ee.x'], 3), summary.mean
        (1, 0.2, 2.0)
    """

    def __init__(self, names: Sequence[str], file: Path | None = None) -> None:
        self.names, self.file, self.chunks = list(names), file, 0
        self._all, self._by_words, self._by_checkpoint = _Sum(), {}, {}
        self._ahead: list[_Sum] = []
        self._rows = None if file is None else _open(file.with_suffix('.csv'))
        if self._rows is not None:
            self._writer = csv.writer(self._rows)
            self._writer.writerow(['chunk_id', 'observation_stamp', 'checkpoint', 'instruction', 'steps', 'mean',
                                   *self.names])

    @property
    def mean(self) -> float:
        """Mean over all chunks, each value divided by its scale; NaN without one."""
        return self._all.mean

    def add(self, found: Comparison) -> None:
        """Take a comparison in."""
        self.chunks += 1
        errors, chunk = found.errors.mean(0), found.chunk
        self._all.add(found.mean, errors)
        self._by_words.setdefault(chunk.instruction, _Sum()).add(found.mean, errors)
        self._by_checkpoint.setdefault(found.checkpoint, _Sum()).add(found.mean, errors)
        for step, row in enumerate(found.errors):
            if step == len(self._ahead):
                self._ahead.append(_Sum())
            self._ahead[step].add(float(row.mean()), row)
        if self._rows is not None:
            self._writer.writerow([chunk.id, chunk.stamp, found.checkpoint, chunk.instruction, len(found.errors),
                                   f'{found.mean:.6g}', *(f'{value:.6g}' for value in errors)])

    def values(self) -> dict[str, Any]:
        """Return the summary: means over chunks, in all, by instruction, by checkpoint and by step ahead."""
        return {'chunks': self.chunks, 'mean': self.mean, 'errors': self._named(self._all),
                'by_instruction': {words: self._describe(part) for words, part in self._by_words.items()},
                'by_checkpoint': {name: self._describe(part) for name, part in self._by_checkpoint.items()},
                'by_step': [{'chunks': part.count, 'errors': self._named(part)} for part in self._ahead]}

    def write(self) -> None:
        """Write the summary, if there is a file for it, and what is left of the rows."""
        if self.file is not None:
            self._rows.flush()
            self.file.write_text(json.dumps(self.values(), indent=1) + '\n')

    def close(self) -> None:
        """Let go of the file of the rows."""
        if self._rows is not None:
            self._rows.close()

    def _describe(self, part: _Sum) -> dict[str, Any]:
        return {'chunks': part.count, 'mean': part.mean, 'errors': self._named(part)}

    def _named(self, part: _Sum) -> dict[str, float]:
        return dict(zip(self.names, part.errors.tolist())) if part.count else {}


class _Sum:
    """Adds up means and errors (A,)."""

    def __init__(self) -> None:
        self.count, self._mean, self._errors = 0, 0.0, 0.0

    def add(self, mean: float, errors: np.ndarray) -> None:
        self.count, self._mean, self._errors = self.count + 1, self._mean + mean, self._errors + errors

    @property
    def mean(self) -> float:
        return self._mean / self.count if self.count else float('nan')

    @property
    def errors(self) -> np.ndarray:
        return self._errors / self.count


def _open(path: Path) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open('w', newline='')
    except OSError as error:
        raise ConfigError(f'report_file: {path}: {error.strerror}') from error
