"""Shows how a training goes: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ['TrainingProgress']


class TrainingProgress:
    """Is told of every step; a context manager.

    Args:
        steps: of the whole training.
        first: step that it begins with.
        console: where to write.

    Example:
        >>> with TrainingProgress(10, 0, Console(force_terminal=False, width=200)) as progress:
        ...     progress.note(5, {'loss': 0.25})  # doctest: +ELLIPSIS
        step 5/10  loss 0.25  ... steps/s  0 min left
    """

    def __init__(self, steps: int, first: int, console: Console) -> None:
        self._console, self._steps = console, steps
        self._first, self._began = first, time.monotonic()
        self._bar = Progress(TextColumn('training'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                             TextColumn('{task.description}'), console=console) if console.is_terminal else None
        self._task = self._bar.add_task('', total=steps, completed=first) if self._bar else None

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Show the newest figures, as text beside the bar or as a line."""
        text = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
        if self._bar:
            self._bar.update(self._task, description=text)
            return
        rate = (step - self._first) / max(time.monotonic() - self._began, 1e-9)
        left = (self._steps - step) / max(rate, 1e-9) / 60
        self._console.print(f'step {step}/{self._steps}  {text}  {rate:.2f} steps/s  {left:.0f} min left',
                            soft_wrap=True)
