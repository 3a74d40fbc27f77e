"""Frees the shared memory that killed processes have left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ['remove_abandoned']

FOLDER = Path('/dev/shm')


def remove_abandoned(folder: Path = FOLDER) -> int:
    """Delete Fast DDS's segments whose owner is gone, as ``fastdds shm clean`` does; return the bytes that it freed.

    A process that is killed cannot give its segments back, and nothing else does: with the sizes of config/dds.xml
    they are 35 MB each, and a full /dev/shm keeps nodes from hearing each other. The owner of a segment holds a lock
    on the file ``NAME_el`` for as long as it lives, whatever happens to it.
    """
    return sum(_remove_if_abandoned(lock) for lock in folder.glob('fastdds_*_el'))


def _remove_if_abandoned(lock: Path) -> int:
    name, freed = lock.name.removesuffix('_el'), 0
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:  # removed meanwhile, or somebody else's
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in (lock.with_name(name), lock.with_name(f'sem.{name}_mutex'), lock):
            freed += _remove(path)
    except BlockingIOError:  # its owner lives
        return 0
    finally:
        os.close(descriptor)
    return freed


def _remove(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except OSError:
        return 0
    return size
