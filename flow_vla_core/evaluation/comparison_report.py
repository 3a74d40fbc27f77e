"""What a comparison found, as a table, files and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import csv
from dataclasses import asdict, dataclass
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from flow_vla_core.evaluation.comparison_plots import plot_comparison, plot_losses, plot_success
from flow_vla_core.evaluation.family_result import FamilyResult
from flow_vla_core.evaluation.report import Machine, git_state

__all__ = ['HEADINGS', 'ComparisonReport']

HEADINGS: Mapping[str, str] = {
    'success': 'success', 'error': 'error', 'chunk_error': 'chunk\nerror', 'w2': 'W2', 'between': 'between\nmodes',
    'mode_error': 'mode\nerror'}


@dataclass(frozen=True)
class ComparisonReport:
    """Sums up the results of families.

    Args:
        results: of each family.
        reference: what the expert itself scores.
        trial: what they were compared on.

    Example:
        >>> from flow_vla_core.evaluation.family_result import Measure
        >>> result = FamilyResult('vae', 1000, 12.5, 0.0, [Measure(1, 1, 80.0, {'w2': 0.7})], [(1, 2.0)], {})
        >>> ComparisonReport([result], {'w2': 0.6}, {'data': 'bimodal'}).curves()
        {'vae': [(1, 0.7)]}
    """

    results: Sequence[FamilyResult]
    reference: Mapping[str, float]
    trial: Mapping[str, Any]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row of figures for each family and effort; a family's first row is that of its own effort."""
        for result in self.results:
            for index, measure in enumerate(result.measures):
                yield {'name': result.name, 'steps': measure.steps, 'evaluations': measure.evaluations,
                       **(result.acted if index == 0 else {}), **measure.scores,
                       'chunks_per_second': measure.chunks_per_second, 'parameters': result.parameters,
                       'seconds': result.seconds, 'teacher_seconds': result.teacher_seconds}

    def table(self) -> Table:
        """Show what the families score at every effort, and above them the expert."""
        scores = [key for key in HEADINGS if any(key in row for row in self.rows())]
        table = Table('family', 'evalu-\nations', *(HEADINGS[key] for key in scores), 'chunks\n/s', 'para-\nmeters',
                      'training\n+ teacher,\ns', title=f'compared on {self.trial["data"]}', box=box.SIMPLE_HEAD,
                      pad_edge=False, padding=0, show_edge=False)
        table.columns[0].no_wrap = True
        for column in table.columns[1:]:
            column.justify = 'right'
        table.add_row('expert', '', *(_show(key, self.reference.get(key)) for key in scores), end_section=True)
        rows, seen = list(self.rows()), ''
        for row, following in zip(rows, [*rows[1:], {'name': ''}]):
            table.add_row(*_cells(row, scores, row['name'] != seen), end_section=following['name'] != row['name'])
            seen = row['name']
        return table

    def write(self, folder: Path) -> None:
        """Write ``comparison.json`` and ``.csv``, and pictures of the comparison, the training and any success."""
        folder.mkdir(parents=True, exist_ok=True)
        commit, modified = git_state()
        values = {'trial': dict(self.trial), 'reference': dict(self.reference), 'git_commit': commit,
                  'git_modified': modified, 'machine': asdict(Machine.here()),
                  'results': [asdict(result) for result in self.results]}
        (folder / 'comparison.json').write_text(json.dumps(values, indent=1))
        rows = list(self.rows())
        names = list(dict.fromkeys(key for row in rows for key in row))
        with (folder / 'comparison.csv').open('w', newline='') as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        plot_comparison(folder / 'comparison.png', self.curves(), self.reference.get('w2'))
        plot_losses(folder / 'training.png', {result.name: result.losses for result in self.results})
        rates = {result.name: (result.acted['success'], (result.acted['low'], result.acted['high']))
                 for result in self.results if result.acted}
        if rates:
            plot_success(folder / 'success.png', rates)

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Return each family's distance to the expert against evaluations for a chunk, fewest first."""
        return {result.name: sorted((measure.evaluations, measure.scores['w2']) for measure in result.measures)
                for result in self.results}


def _cells(row: Mapping[str, Any], scores: Sequence[str], first: bool) -> list[str]:
    teacher = f' + {row["teacher_seconds"]:.0f}' if row['teacher_seconds'] else ''
    alike = [f'{row["parameters"] / 1e6:.2f} M', f'{row["seconds"]:.0f}{teacher}'] if first else ['', '']
    return [row['name'] if first else '', str(row['evaluations']), *(_show(key, row.get(key)) for key in scores),
            f'{row["chunks_per_second"]:.0f}', *alike]


def _show(key: str, value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.1%}' if key in ('success', 'between') else f'{value:.3f}'
