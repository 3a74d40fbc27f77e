"""Finds bags, and says what stands in their metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from flow_vla_core.errors import DataError

__all__ = ['find_bags', 'read_information', 'read_metadata']


def find_bags(folder: Path) -> list[Path]:
    """Return the rosbag2 folders at or below a folder, sorted."""
    return sorted(path.parent for path in Path(folder).rglob('metadata.yaml'))


def read_information(bag: Path) -> dict[str, Any]:
    """Return what ``metadata.yaml`` says about a bag. Raise `DataError` if it is no bag."""
    path = Path(bag) / 'metadata.yaml'
    try:
        values = yaml.load(path.read_text(), getattr(yaml, 'CSafeLoader', yaml.SafeLoader))
    except OSError as error:
        raise DataError(f'{bag}: not a rosbag2 folder: metadata.yaml: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: not valid YAML: {error}') from error
    information = values.get('rosbag2_bagfile_information') if isinstance(values, dict) else None
    if not isinstance(information, dict) or not isinstance(information.get('custom_data') or {}, dict):
        raise DataError(f'{path}: not that of a rosbag2 folder: rosbag2_bagfile_information is missing or no mapping')
    return information


def read_metadata(bag: Path) -> dict[str, str]:
    """Return our marks of an episode: instruction, task, outcome, contract. Raise `DataError` if it is no bag."""
    return dict(read_information(bag).get('custom_data') or {})
