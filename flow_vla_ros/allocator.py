"""Lets a process keep the memory of large messages for the next ones."""

from __future__ import annotations

import ctypes
import sys

__all__ = ['keep_memory']

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt
KEPT, AHEAD, LARGEST = 128 * 2 ** 20, 16 * 2 ** 20, 32 * 2 ** 20


def keep_memory() -> bool:
    """Keep up to 128 MB of freed memory; tell whether the C library can do so.

    By default glibc gives the memory of each image back to the kernel and asks for it again with the next one, page by
    page; taking an image from the middleware then costs three times as much.
    """
    if sys.platform != 'linux':
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    return all([mallopt(TRIM_THRESHOLD, KEPT), mallopt(TOP_PAD, AHEAD), mallopt(MMAP_THRESHOLD, LARGEST)])
