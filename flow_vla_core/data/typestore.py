"""Message definitions without ROS: the standard ones, those of this package, and those that a bag brings along."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from flow_vla_core.contract import config_folder
from flow_vla_core.errors import DataError

__all__ = ['full_name', 'has_header', 'schema', 'typestore', 'typestore_with']

HEADER = 'std_msgs/msg/Header'
TEXT_LIMIT = 2 ** 20  # characters of a definition


@cache
def typestore() -> Typestore:
    """Return the types of ROS 2 and of flow_vla."""
    store = get_typestore(Stores.ROS2_KILTED)
    definitions: dict = {}
    for path in sorted(_message_folder().glob('*.msg')):
        definitions.update(get_types_from_msg(path.read_text(), f'flow_vla/msg/{path.stem}'))
    store.register(definitions)
    return store


@lru_cache(maxsize=16)
def typestore_with(definitions: tuple[tuple[str, tuple[str, str]], ...]) -> Typestore:
    """Return a store in which types are defined as a bag says; where it is silent or can't be understood, as we do.

    Args:
        definitions: pairs of type and (language, text); languages are ``ros2msg`` and ``ros2idl``.
    """
    found: dict = {}
    for kind, (language, text) in definitions:
        found.update(_parse(kind, language, text))
    ours = typestore().fielddefs
    other = {kind: fields for kind, fields in found.items() if kind not in ours or not _same(fields, ours[kind])}
    if not other:
        return typestore()
    store = get_typestore(Stores.EMPTY)
    try:
        store.register({**ours, **found})
        return store
    except Exception:  # definitions from anywhere make the generator raise anything
        return typestore()


def has_header(store: Typestore, kind: str) -> bool:
    """Say whether a type begins with a header. Raise `DataError` if it is unknown."""
    if kind not in store.fielddefs:
        raise DataError(f'no definition of the message type {kind!r} is known')
    fields = store.fielddefs[kind][1]
    return bool(fields) and fields[0][1][1] == HEADER


def full_name(message: str) -> str:
    """Return ``package/msg/Type`` for ``package/Type`` or the full name itself."""
    package, _, kind = message.partition('/')
    return message if kind.startswith('msg/') else f'{package}/msg/{kind}'


def schema(message: str) -> tuple[str, str]:
    """Return the definition of a message with all that it is made of (``ros2msg`` text), and its type hash.

    Raises:
        DataError: if the type is unknown.
    """
    store, name = typestore(), full_name(message)
    if name not in store.fielddefs:
        raise DataError(f'no definition of the message type {name!r} is known')
    return store.generate_msgdef(name, ros_version=2)[0], store.hash_rihs01(name)


def _parse(kind: str, language: str, text: str) -> dict:
    if len(text) > TEXT_LIMIT or language not in ('ros2msg', 'ros2idl'):
        return {}
    try:
        return _parsed(kind, language, text)
    except Exception:  # as above
        return {}


@lru_cache(maxsize=256)
def _parsed(kind: str, language: str, text: str) -> dict:
    return get_types_from_msg(text, kind) if language == 'ros2msg' else get_types_from_idl(text)


def _same(one: tuple, other: tuple) -> bool:
    """Compare the fields of two definitions; constants do not change how bytes are read."""
    return [tuple(field) for field in one[1]] == [tuple(field) for field in other[1]]


def _message_folder() -> Path:
    return config_folder().parent / 'msg'
