"""Files and folders that outlast a loss of power."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ['flush_to_disk']


def flush_to_disk(path: Path) -> None:
    """Hand a file, or the names in a folder, to the disk. Raise `OSError` as the system does."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
