"""A table on disk of what a node did, one row for each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import csv
from pathlib import Path
from typing import Any

from flow_vla_core.errors import ConfigError

__all__ = ['Trace']

BUFFER = 2 ** 20  # bytes, of several seconds


class Trace:
    """Writes a CSV file with a header. Rows stay in memory until `flush`, so that none waits for the disk.

    Args:
        path: of the file; its folder is made, an old file replaced. Nothing is written if empty.
        columns: names.

    Raises:
        ConfigError: if the file can't be made.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self._file = None
        if str(path):
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._file = Path(path).open('w', BUFFER, newline='')  # noqa: SIM115  closed by close()
            except OSError as error:
                raise ConfigError(f'trace_file: {path}: {error.strerror}') from error
            self._writer = csv.writer(self._file)
            self._writer.writerow(columns)
            self._file.flush()

    @property
    def enabled(self) -> bool:
        """Whether rows go anywhere."""
        return self._file is not None

    def write(self, row: Iterable[Any]) -> None:
        """Add a row."""
        if self._file is not None:
            self._writer.writerow(row)

    def flush(self) -> None:
        """Bring what was added to the disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush, and write no more."""
        if self._file is not None:
            self._file.close()
            self._file = None
