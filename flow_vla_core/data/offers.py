"""The quality of service that the publishers of a recorded topic offered, as the bag's metadata has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flow_vla_core.data.bags import read_information
from flow_vla_core.errors import DataError

__all__ = ['Offer', 'read_offers']

TRANSIENT_LOCAL = ('transient_local', 1)  # as text, and as the number of older versions
BEST_EFFORT = ('best_effort', 2)


@dataclass(frozen=True)
class Offer:
    """Says how a topic is to be offered again, so that everybody who could hear it then can hear it now.

    Args:
        reliable: unless every publisher was best effort.
        latched: transient local; if any publisher was.
        depth: deepest history of them; 0 where it is not known.
    """

    reliable: bool = True
    latched: bool = False
    depth: int = 0


def read_offers(bag: Path) -> dict[str, Offer]:
    """Return the offer of every topic that a bag's metadata lists; of none where they are missing or damaged."""
    try:
        listed = read_information(bag).get('topics_with_message_count') or []
    except DataError:
        return {}
    found = [item.get('topic_metadata') for item in listed if isinstance(item, dict)]
    return {str(topic.get('name')): _join(_profiles(topic.get('offered_qos_profiles')))
            for topic in found if isinstance(topic, dict)}


def _profiles(value: Any) -> list[Mapping[str, Any]]:
    """Read a list, or the text that versions of rosbag2 before 9 have in its place; anything else offers nothing."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            return []
    return [profile for profile in value if isinstance(profile, Mapping)] if isinstance(value, list) else []


def _join(profiles: Iterable[Mapping[str, Any]]) -> Offer:
    profiles = list(profiles)
    if not profiles:
        return Offer()
    depths = [profile.get('depth') for profile in profiles]
    return Offer(any(profile.get('reliability') not in BEST_EFFORT for profile in profiles),
                 any(profile.get('durability') in TRANSIENT_LOCAL for profile in profiles),
                 max((depth for depth in depths if isinstance(depth, int)), default=0))
