"""Random numbers that a place in the training names, and nothing that went before."""

from __future__ import annotations

import hashlib

import torch

__all__ = ['source_of']


def source_of(*numbers: int) -> torch.Generator:
    """Return a source of randomness that begins anew for each row of numbers, such as seed, step and shard.

    Example:
        >>> draws = [torch.randn(1, generator=source_of(*place)).item() for place in ((0, 5, 1), (0, 5, 1), (0, 51))]
        >>> draws[0] == draws[1] != draws[2]
        True
    """
    text = ' '.join(map(str, numbers)).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), 'little'))
