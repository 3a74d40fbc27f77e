"""Recorded episodes: bags in, windows of training data out."""

from flow_vla_core.data.bags import find_bags, read_metadata
from flow_vla_core.data.episode import Episode, read_episode
from flow_vla_core.data.windows import Window, Windows

__all__ = ['Episode', 'Window', 'Windows', 'find_bags', 'read_episode', 'read_metadata']
