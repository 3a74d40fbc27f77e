"""Finds bags, and says what stands in their metadata."""
from __future__ import annotations

from pathlib import Path

import yaml

from flow_vla_core.errors import DataError

__all__ = ['find_bags', 'read_metadata']


def find_bags(folder: Path) -> list[Path]:
    """Return the rosbag2 folders at or below a folder, sorted."""
    return sorted(path.parent for path in Path(folder).rglob('metadata.yaml'))


def read_metadata(bag: Path) -> dict[str, str]:
    """Return our marks of an episode: instruction, task, outcome, contract. Raise `DataError` if it is no bag."""
    try:
        values = yaml.load((Path(bag) / 'metadata.yaml').read_text(), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
        return dict(values['rosbag2_bagfile_information'].get('custom_data') or {})
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f'{bag}: metadata.yaml is not that of a rosbag2 folder: {error}') from error
