"""Finds a contract's streams among the features of a dataset, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flow_vla_core.contract import Camera, RobotContract
from flow_vla_core.data.lerobot.reader import Dataset, Frames
from flow_vla_core.data.lerobot.schema import ACTION, STATE, action_names, camera_key, state_names
from flow_vla_core.errors import ConfigError, DataError, closest

__all__ = ['Match']


@dataclass(frozen=True)
class Match:
    """Says where in a dataset each part of a contract stands.

    Args:
        cameras: camera -> feature.
        state: feature of the state and the places of the contract's numbers in it; None for a contract without.
        action: the same for the actions.
    """

    cameras: Mapping[str, str]
    state: tuple[str, np.ndarray] | None
    action: tuple[str, np.ndarray]

    @classmethod
    def find(cls, dataset: Dataset, contract: RobotContract, features: Mapping[str, str] | None = None,
             by_position: bool = False) -> Match:
        """Match by names.

        Numbers are found by ``stream.name``, or by ``name`` or lerobot's ``name.pos`` where that is the only one.

        Args:
            dataset: any.
            contract: whose parts are looked for.
            features: camera's name, ``state`` or ``action`` -> feature, where it is called otherwise.
            by_position: take numbers in their order and not by name.

        Raises:
            DataError: names the feature, and what it should look like.
            ConfigError: if ``features`` speaks of a part that the contract does not have.
        """
        given = dict(features or {})
        parts = [camera.name for camera in contract.cameras] + ['state', 'action']
        for part in given:
            if part not in parts:
                raise ConfigError(f'no part {part!r} in the contract {contract.name}; {closest(part, parts)}')
        cameras = {camera.name: _camera(dataset, camera, given.get(camera.name, camera_key(camera)))
                   for camera in contract.cameras}
        state = _numbers(dataset, given.get('state', STATE), state_names(contract), by_position)
        action = _numbers(dataset, given.get('action', ACTION), action_names(contract), by_position)
        return cls(cameras, state if contract.state_dim else None, action)

    @property
    def features(self) -> list[str]:
        """All features that are needed."""
        return [*self.cameras.values(), *([self.state[0]] if self.state else []), self.action[0]]

    def values(self, frames: Frames, which: str) -> np.ndarray:
        """Return the state or the actions of an episode in the contract's order, (N, D) float32."""
        found = getattr(self, which)
        if found is None:
            return np.zeros((len(frames), 0), np.float32)
        name, places = found
        return np.ascontiguousarray(frames.numbers[name].reshape(len(frames), -1)[:, places], np.float32)


def _camera(dataset: Dataset, camera: Camera, name: str) -> str:
    if name not in dataset.info.cameras:
        raise DataError(f'{dataset.folder}: no images {name!r} for the camera {camera.name!r}; '
                        f'{closest(name, dataset.info.cameras)}; --feature {camera.name}=NAME chooses another')
    shape, names = dataset.feature(name)['shape'], dataset.feature(name)['names'] or ()
    rows_and_columns = tuple(shape[1:]) if names and str(names[0]).startswith('channel') else tuple(shape[:2])
    if rows_and_columns != camera.resolution:
        rows, columns = camera.resolution
        raise DataError(f'{dataset.folder}: {name}: shape {tuple(shape)}, the contract says {rows} rows and {columns} '
                        f'columns (resolution of the camera {camera.name!r})')
    return name


def _numbers(dataset: Dataset, name: str, wanted: list[str], by_position: bool) -> tuple[str, np.ndarray]:
    if not wanted:
        return name, np.zeros(0, np.int64)
    feature = dataset.feature(name)
    names = _flat(feature['names'])
    expected = f'expected {len(wanted)}: {", ".join(wanted)}'
    if not str(feature['dtype']).startswith(('float', 'int')):
        raise DataError(f'{dataset.folder}: {name}: dtype {feature["dtype"]}, {expected} numbers')
    size = int(np.prod(feature['shape']))
    if by_position:
        if size != len(wanted):
            raise DataError(f'{dataset.folder}: {name}: shape {feature["shape"]}, {expected}')
        return name, np.arange(size)
    if len(names) != size:
        raise DataError(f'{dataset.folder}: {name}: {size} numbers without names, {expected}; --by-position takes '
                        'them in this order')
    return name, np.array([_find(dataset, name, names, one, expected) for one in wanted])


def _find(dataset: Dataset, feature: str, names: Sequence[str], wanted: str, expected: str) -> int:
    bare = wanted.partition('.')[2]
    for candidate in (wanted, bare, f'{bare}.pos'):
        if names.count(candidate) == 1:
            return names.index(candidate)
    raise DataError(f'{dataset.folder}: {feature}: no number {wanted!r} among {", ".join(names)}; {expected}; '
                    '--by-position takes them in their order')


def _flat(names: Any) -> list[str]:
    """Return names that may be a list, or a mapping with one list, or with numbers, as older datasets have them."""
    if isinstance(names, Mapping):
        lists = [value for value in names.values() if isinstance(value, (list, tuple))]
        return [str(name) for value in lists for name in value] if lists else [str(name) for name in names]
    return [str(name) for name in names or ()]
