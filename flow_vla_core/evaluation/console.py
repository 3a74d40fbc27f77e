"""Shows how an evaluation goes on while it runs."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from flow_vla_core.evaluation.report import EpisodeResult, results_table, summarise

__all__ = ['Progress']


class Progress:
    """Shows the table of outcomes as it grows; without a terminal, one line for each episode.

    Use it as a context manager.

    Args:
        total: how many episodes will be run.
        console: where to write.
        tabulate: makes the table of the outcomes so far.
    """

    def __init__(self, total: int, console: Console | None = None,
                 tabulate: Callable[[list[EpisodeResult]], Table] | None = None) -> None:
        self.console = console or Console()
        self.results: list[EpisodeResult] = []
        self._total = total
        self._tabulate = tabulate or (lambda results: results_table(summarise(results)))
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, result: EpisodeResult) -> None:
        """Show one more outcome."""
        self.results.append(result)
        if self._live is None:
            outcome = 'success' if result.success else 'failure'
            made = f', made {result.motion}' if result.motion else ''
            self.console.print(f'{len(self.results):4d}/{self._total}  {result.task}  {result.instruction!r}  seed '
                               f'{result.seed}  {outcome} after {result.steps} steps{made}', soft_wrap=True)
            return
        table = self._tabulate(self.results)
        table.caption = f'episode {len(self.results)} of {self._total}'
        self._live.update(table, refresh=True)
