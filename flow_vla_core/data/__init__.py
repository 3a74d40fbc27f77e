"""Recorded episodes: bags in, windows of training data out."""

from flow_vla_core.data.bags import find_bags, read_metadata

__all__ = ['find_bags', 'read_metadata']
