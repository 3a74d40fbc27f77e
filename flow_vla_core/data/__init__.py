"""Recorded episodes: bags in, windows of training data out."""

from flow_vla_core.data.bags import find_bags, read_metadata
from flow_vla_core.data.cache import EpisodeCache
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.reading import ReadOptions, read_episode, read_episodes
from flow_vla_core.data.windows import Window, Windows

__all__ = ['Episode', 'EpisodeCache', 'ReadOptions', 'Window', 'Windows', 'find_bags', 'read_episode', 'read_episodes',
           'read_metadata']
