"""A bounded store of episodes that come and go while something is trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flow_vla_core.data.episode import Episode
from flow_vla_core.errors import ConfigError, DataError, closest

__all__ = ['KEEP', 'EpisodeBuffer', 'size_of']

KEEP = ('newest', 'reservoir')


@dataclass(frozen=True)
class _Kept:
    """Holds an episode and what decides how long it stays: the least priority leaves first."""

    episode: Episode
    priority: float


class EpisodeBuffer:
    """Holds as many episodes as fit; when another one comes, the least important ones leave.

    ``newest`` lets the oldest leave. ``reservoir`` keeps a uniform sample of all that ever came (each draws a number,
    the smallest leave), so that a long replay is not forgotten; an episode may leave as soon as it has come.

    Args:
        max_frames: of all episodes.
        max_bytes: of their images, states and actions.
        keep: which stay.
        seed: of the reservoir.

    Raises:
        ConfigError: for no room, or an unknown ``keep``.

    Example:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> row = np.zeros((6, 1), np.float32)
        >>> make = lambda name: Episode(np.arange(6), {}, row, row, 'go', '', 'success', Path(name))
        >>> buffer = EpisodeBuffer(max_frames=12)
        >>> [buffer.add(make(name)) for name in 'abc']
        [0, 0, 1]
        >>> [str(episode.source) for episode in buffer.episodes], buffer.frames
        (['b', 'c'], 12)
    """

    def __init__(self, max_frames: int, max_bytes: int = 2 ** 62, keep: str = 'newest', seed: int = 0) -> None:
        for name, value in (('max_frames', max_frames), ('max_bytes', max_bytes)):
            if value < 1:
                raise ConfigError(f'{name}: {value}; allowed: 1 or more')
        if keep not in KEEP:
            raise ConfigError(f'keep: {keep!r}; {closest(keep, KEEP)}')
        self._max_frames, self._max_bytes, self._keep = max_frames, max_bytes, keep
        self._random = np.random.default_rng(seed)
        self._kept: list[_Kept] = []
        self._count = 0

    @property
    def episodes(self) -> Sequence[Episode]:
        """Those that are there, in the order in which they came."""
        return [kept.episode for kept in self._kept]

    @property
    def frames(self) -> int:
        """Frames of all episodes that are there."""
        return sum(len(kept.episode) for kept in self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all episodes that are there."""
        return sum(size_of(kept.episode) for kept in self._kept)

    def add(self, episode: Episode) -> int:
        """Take an episode in; return how many had to leave.

        Raises:
            DataError: if it does not fit even alone.
        """
        if len(episode) > self._max_frames or size_of(episode) > self._max_bytes:
            raise DataError(f'{episode.source}: {len(episode)} frames of {size_of(episode)} bytes do not fit into a '
                            f'buffer for {self._max_frames} frames and {self._max_bytes} bytes')
        self._count += 1
        priority = float(self._count) if self._keep == 'newest' else self._random.random()
        self._kept.append(_Kept(episode, priority))
        left = 0
        while self.frames > self._max_frames or self.bytes > self._max_bytes:
            del self._kept[min(range(len(self._kept)), key=lambda index: self._kept[index].priority)]
            left += 1
        return left


def size_of(episode: Episode) -> int:
    """Return the bytes of an episode's images, states and actions."""
    return sum(part.nbytes for part in (*episode.images.values(), episode.state, episode.actions))
