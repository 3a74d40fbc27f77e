"""An array on disk that grows by rows, and is memory-mapped afterwards."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

__all__ = ['NpyRows', 'open_rows']


class NpyRows:
    """Writes a ``.npy`` file row by row.

    Args:
        path: of the file.
        shape: of a row.
        kind: of its numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = NpyRows(Path(folder) / 'rows.npy', (2,), np.uint8)
        ...     rows.append(np.array([1, 2]))
        ...     rows.append(np.array([3, 4]))
        ...     rows.finish(2).tolist()
        [[1, 2], [3, 4]]
    """

    def __init__(self, path: Path, shape: tuple[int, ...], kind: type) -> None:
        self.path, self._shape, self._kind = path, shape, np.dtype(kind)
        self._file = path.open('wb')
        self._write_header(0)

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        self._file.write(np.ascontiguousarray(row, self._kind).data)

    def finish(self, count: int) -> np.ndarray:
        """Return the first ``count`` rows, memory-mapped."""
        self._file.truncate(self._begin + count * self._kind.itemsize * math.prod(self._shape))
        self._file.seek(0)
        self._write_header(count)
        self._file.flush()
        os.fsync(self._file.fileno())  # an entry of the cache must not outlive its pictures
        self._file.close()
        return np.load(self.path, mmap_mode='r')

    def discard(self) -> None:
        """Delete the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write_header(self, count: int) -> None:
        """Write the header, in which numpy leaves room for any number of rows."""
        header = {'descr': np.lib.format.dtype_to_descr(self._kind), 'fortran_order': False,
                  'shape': (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._begin = self._file.tell()


def open_rows(path: Path) -> np.ndarray:
    """Map a ``.npy`` file. Raise `ValueError` or `OSError` if it is damaged, or longer or shorter than it says."""
    with path.open('rb') as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f'{path}: version {version}')
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        expected = file.tell() + kind.itemsize * math.prod(shape)
    if path.stat().st_size != expected:
        raise ValueError(f'{path}: {path.stat().st_size} bytes, {expected} expected')
    return np.load(path, mmap_mode='r', allow_pickle=False)
