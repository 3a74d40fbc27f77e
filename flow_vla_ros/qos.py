"""The quality-of-service profiles of every topic, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

if TYPE_CHECKING:  # reading bags needs torch, and the executor starts without
    from flow_vla_core.data.offers import Offer

__all__ = ['CHUNK', 'CLOCK', 'COMMAND', 'DIAGNOSTICS', 'LATCHED', 'LATCHED_STATE', 'RECORD', 'RELIABLE_SENSOR',
           'SENSOR', 'STATE', 'STATUS', 'describe', 'for_playing', 'for_recording']


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)


SENSOR = _profile(10, reliable=False)  # to subscribe to cameras and state: fits every publisher
RELIABLE_SENSOR = _profile(60)         # to publish cameras: fits every subscriber, and outlasts a recorder's pause
STATE = _profile(200)
COMMAND = _profile(200)
CHUNK = _profile(2)
STATUS = _profile(10)
DIAGNOSTICS = _profile(10)
CLOCK = _profile(10)                   # fits the best-effort subscription that rclpy's time source makes
LATCHED = _profile(1, latched=True)    # instruction and episode: the last one stays in force for those who come late
LATCHED_STATE = _profile(10, latched=True)  # of the simulator, and to hear words: for those who come late
RECORD = _profile(1000)


def for_recording(node: Node, topic: str) -> QoSProfile:
    """Return `RECORD`, weakened to what every present publisher of a topic offers, those of the node left out."""
    own = node.get_name(), node.get_namespace()
    offers = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)
              if (info.node_name, info.node_namespace) != own]
    reliable = all(offer.reliability != ReliabilityPolicy.BEST_EFFORT for offer in offers)
    latched = bool(offers) and all(offer.durability == DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
    return _profile(RECORD.depth, reliable=reliable, latched=latched)


def for_playing(offer: Offer) -> QoSProfile:
    """Return what a recorded topic is offered with again; the history is deep enough for a reader that pauses."""
    depth = max(1, offer.depth) if offer.latched else max(offer.depth, RELIABLE_SENSOR.depth)
    return _profile(depth, reliable=offer.reliable, latched=offer.latched)


def describe(profile: QoSProfile) -> dict[str, object]:
    """Describe an offered profile in rosbag2's form."""
    return {
        'history': profile.history.name.lower(), 'depth': profile.depth,
        'reliability': 'reliable' if profile.reliability == ReliabilityPolicy.RELIABLE else 'best_effort',
        'durability': 'transient_local' if profile.durability == DurabilityPolicy.TRANSIENT_LOCAL else 'volatile',
        'deadline': {'sec': 9223372036, 'nsec': 854775807}, 'lifespan': {'sec': 9223372036, 'nsec': 854775807},
        'liveliness': 'automatic', 'liveliness_lease_duration': {'sec': 9223372036, 'nsec': 854775807},
        'avoid_ros_namespace_conventions': False,
    }
