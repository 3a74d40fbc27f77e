"""Reads nested settings into frozen dataclasses; whatever does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

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

    Fields may be dataclasses, unions of dataclasses told apart by ``family``, tuples, numbers, texts and any of these
    or None.

    Args:
        kind: dataclass to build.
        values: nested dictionaries.
        place: names the values in errors.

    Raises:
        ConfigError: for an unknown key or a value of another type.
    """
    values = _without_tag(kind, values, place)
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind) if field.init}
    for key in values:
        if key not in known:
            raise ConfigError(f'{_join(place, str(key))}: unknown key; {closest(str(key), known)}')
    return kind(**{key: _convert(hints[key], value, _join(place, key)) for key, value in values.items()})


def _convert(kind: Any, value: Any, place: str) -> Any:
    if get_origin(kind) in (UnionType, Union):
        if value is None and NoneType in get_args(kind):
            return None
        kind = _choose([member for member in get_args(kind) if member is not NoneType], value, place)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f'{place}: {value!r} is no group of keys')
        return from_values(kind, value, place)
    if get_origin(kind) is tuple:
        return _convert_tuple(get_args(kind), value, place)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f'{place}: {value!r} is no {kind.__name__}')
    return value


def _convert_tuple(kinds: tuple[Any, ...], value: Any, place: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f'{place}: {value!r} is no list')
    if Ellipsis in kinds:
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f'{place}: {value!r} has {len(value)} items; allowed: {len(kinds)}')
    return tuple(_convert(kind, item, f'{place}.{index}') for index, (kind, item) in enumerate(zip(kinds, value)))


def _choose(kinds: list[Any], value: Any, place: str) -> Any:
    """Return the member of a union of dataclasses that the tag names, the first without one."""
    if len(kinds) == 1 or not isinstance(value, Mapping) or TAG not in value:
        return kinds[0]
    known = {_tag_of(kind): kind for kind in kinds}
    if str(value[TAG]) not in known:
        raise ConfigError(f'{_join(place, TAG)}: {value[TAG]!r}; {closest(str(value[TAG]), known)}')
    return known[str(value[TAG])]


def _without_tag(kind: type, values: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Take away the tag, which the kind sets itself; another kind's is an error."""
    tag = _tag_of(kind)
    if tag is None or TAG not in values:
        return values
    if values[TAG] != tag:
        raise ConfigError(f'{_join(place, TAG)}: {values[TAG]!r}; allowed: {tag!r}')
    return {key: value for key, value in values.items() if key != TAG}


def _tag_of(kind: type) -> str | None:
    field = kind.__dataclass_fields__.get(TAG)
    return field.default if field is not None and not field.init else None


def _join(place: str, key: str) -> str:
    return f'{place}.{key}' if place else key
