"""What a bag holds, by mcap's own reader."""

from __future__ import annotations

from pathlib import Path

from mcap.reader import make_reader

__all__ = ['recorded_stamps']


def recorded_stamps(bag: Path) -> dict[str, set[int]]:
    """Read a bag by its index, checksums included: topic -> header stamps, ns."""
    stamps: dict[str, set[int]] = {}
    for path in bag.glob('*.mcap'):
        with path.open('rb') as file:
            for _, channel, message in make_reader(file, validate_crcs=True).iter_messages():
                stamps.setdefault(channel.topic, set()).add(message.publish_time)
    return stamps
