"""Recorded episodes: bags in, windows of training data out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flow_vla_core.data.bags import find_bags, read_metadata
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.reading import ReadOptions, read_episode, read_episodes

if TYPE_CHECKING:  # reading works without torch, which takes seconds to import
    from flow_vla_core.data.windows import Window, Windows

__all__ = ['Episode', 'EpisodeCache', 'ReadOptions', 'Window', 'Windows', 'find_bags', 'read_episode', 'read_episodes',
           'read_metadata']


def __getattr__(name: str) -> Any:
    if name not in ('Window', 'Windows'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from flow_vla_core.data import windows
    return getattr(windows, name)
