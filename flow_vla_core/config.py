"""Reads nested settings into frozen dataclasses; whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from flow_vla_core.errors import ConfigError, closest

__all__ = ['from_values', 'load_yaml', 'to_values']

Config = TypeVar('Config')

TAG = 'family'  # key that tells the members of a union of dataclasses apart


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings. Raise `ConfigError`, which names it, if that is impossible."""
    try:
        values = yaml.safe_load(Path(path).read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: {error}') from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path}: holds {type(values).__name__}, not keys and values')
    return values


def to_values(config: Any) -> dict[str, Any]:
    """Turn a tree of dataclasses into nested dictionaries."""
    return asdict(config)


def from_values(kind: type[Config], values: Mapping[str, Any], place: str = '') -> Config:
    """Build a tree of frozen dataclasses; keys left out keep their defaults.

    Args:
        kind: dataclass to build.
        values: nested dictionaries.
        place: names the values in errors.

    Raises:
        ConfigError: for an unknown key or a value of another type.
    """
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.init}
    for key in values:
        if key not in known:
            raise ConfigError(f'{_join(place, str(key))}: unknown key; {closest(str(key), known)}')
    return kind(**{key: _convert(hints[key], value, _join(place, key)) for key, value in values.items()})


def _convert(kind: Any, value: Any, place: str) -> Any:
    if isinstance(kind, UnionType):
        kind, value = _choose(get_args(kind), value, place)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f'{place}: {value!r} is no group of keys')
        return from_values(kind, value, place)
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f'{place}: {value!r} is no list')
        return tuple(_convert(get_args(kind)[0], item, place) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{place}: {value!r} is no {kind.__name__}')
    return value


def _choose(kinds: tuple[type, ...], value: Any, place: str) -> tuple[type, Any]:
    """Return the member of a union of dataclasses that the tag names, the first without one, and what is left."""
    known = {kind.__dataclass_fields__[TAG].default: kind for kind in kinds}
    if not isinstance(value, Mapping) or TAG not in value:
        return kinds[0], value
    if value[TAG] not in known:
        raise ConfigError(f'{_join(place, TAG)}: {value[TAG]!r}; {closest(str(value[TAG]), known)}')
    return known[value[TAG]], {key: item for key, item in value.items() if key != TAG}


def _join(place: str, key: str) -> str:
    return f'{place}.{key}' if place else key
