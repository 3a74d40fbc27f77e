"""Message definitions without ROS: the standard ones, and those of this package."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from flow_vla_core.contract import config_folder
from flow_vla_core.errors import DataError

__all__ = ['full_name', 'schema', 'typestore']


@cache
def typestore() -> Typestore:
    """Return the types of ROS 2 and of flow_vla."""
    store = get_typestore(Stores.ROS2_KILTED)
    definitions: dict = {}
    for path in sorted(_message_folder().glob('*.msg')):
        definitions.update(get_types_from_msg(path.read_text(), f'flow_vla/msg/{path.stem}'))
    store.register(definitions)
    return store


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


def _message_folder() -> Path:
    return config_folder().parent / 'msg'
