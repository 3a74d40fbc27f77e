"""The contract itself, and what is wrong with one that can't be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator
import yaml

from flow_vla_core.contract.actions import ActionPart
from flow_vla_core.contract.files import read_yaml
from flow_vla_core.contract.parts import Camera, Count, Instruction, Name, Part, Rates, StateStream, unique
from flow_vla_core.errors import ContractError, closest

__all__ = ['RobotContract']


class RobotContract(Part):
    """Binds a robot's topics to a policy's observation and action.

    Args:
        name: of the robot.
        rates: policy step and control rate.
        history: number of observations T that the policy sees, ``policy_dt`` apart.
        cameras: images, in order.
        state: low-dimensional streams, in order.
        instruction: where the words come from.
        actions: parts of the action vector, in order.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> contract.action_dim, contract.state_dim
        (4, 4)
    """

    name: Name
    rates: Rates
    history: Count = 1
    cameras: tuple[Camera, ...] = ()
    state: tuple[StateStream, ...] = ()
    instruction: Instruction
    actions: Annotated[tuple[ActionPart, ...], Field(min_length=1)]

    @model_validator(mode='after')
    def _consistent(self) -> RobotContract:
        unique('cameras and state: name', [stream.name for stream in self.streams])
        unique('actions: name', [part.name for part in self.actions])
        unique('topic', [*(camera.topic for camera in self.cameras), self.instruction.topic])
        unique('actions: topic', [part.topic for part in self.actions])
        if not self.streams:
            raise ValueError('cameras and state are both empty: the policy would see nothing')
        positions = [stream.name for stream in self.state]
        for part in self.actions:
            if part.position_from is not None and part.position_from not in positions:
                raise ValueError(f'actions.{part.name}.position_from: no state stream {part.position_from!r}; '
                                 f'{closest(part.position_from, positions)}')
        return self

    @property
    def streams(self) -> tuple[Camera | StateStream, ...]:
        """Cameras, then state."""
        return (*self.cameras, *self.state)

    @property
    def state_dim(self) -> int:
        """Length S of the state vector."""
        return sum(len(stream.names) for stream in self.state)

    @property
    def action_dim(self) -> int:
        """Length A of the action vector."""
        return sum(part.dim for part in self.actions)

    @property
    def action_slices(self) -> dict[str, slice]:
        """Name of each part -> its place in the action vector."""
        return _slices([(part.name, part.dim) for part in self.actions])

    @property
    def state_slices(self) -> dict[str, slice]:
        """Name of each state stream -> its place in the state vector."""
        return _slices([(stream.name, len(stream.names)) for stream in self.state])

    @property
    def interface(self) -> dict[str, Any]:
        """What a policy learns by: everything but topics, limits, ages and the control rate."""
        return {
            'name': self.name,
            'policy_dt': self.rates.policy_dt,
            'history': self.history,
            'cameras': {c.name: {'size': c.size, 'channels': c.channels} for c in self.cameras},
            'state': {s.name: s.model_dump(include={'field', 'names', 'unit'}) for s in self.state},
            'actions': {a.name: a.model_dump(include={'kind', 'names', 'unit'}) for a in self.actions},
        }

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that change with the interface."""
        return hashlib.sha256(json.dumps(self.interface, sort_keys=False).encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """Name and digest, ``name@digest``."""
        return f'{self.name}@{self.digest}'

    @classmethod
    def load(cls, path: str | Path) -> RobotContract:
        """Read a YAML file. Raise `ContractError`, which names file and key, if anything is wrong with it."""
        return cls.parse(read_yaml(path), str(path))

    @classmethod
    def parse(cls, values: Any, source: str = 'contract') -> RobotContract:
        """Build from nested dictionaries; ``source`` names them in errors."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f'{source}: {_explain(item)}' for item in error.errors()]
            raise ContractError('\n'.join(lines)) from error

    def dump(self, path: str | Path) -> None:
        """Write as YAML."""
        values = self.model_dump(mode='json', exclude_none=True)
        Path(path).write_text(yaml.safe_dump(values, sort_keys=False))

    def differences(self, other: RobotContract) -> list[str]:
        """List where the interfaces of two contracts differ, as ``key: mine != theirs``."""
        mine, theirs = self.interface, other.interface
        order = [f'{key}: {list(mine[key])} != {list(theirs[key])}' for key in ('cameras', 'state', 'actions')
                 if list(mine[key]) != list(theirs[key])]
        return order or _differences(mine, theirs, '')


def _explain(item: dict) -> str:
    place = '.'.join(str(part) for part in item['loc'])
    if item['type'] == 'extra_forbidden':
        return f'{place}: unknown key; {closest(str(item["loc"][-1]), _keys_at(item["loc"][:-1]))}'
    if item['type'] == 'missing':
        return f'{place}: this key is missing'
    message = item['msg'].removeprefix('Value error, ')
    value = '' if isinstance(item['input'], dict) else f' (got {item["input"]!r})'
    return f'{place}: {message}{value}' if place else message


def _keys_at(place: tuple) -> list[str]:
    """List the keys that are allowed at a place inside a contract."""
    model: type[BaseModel] = RobotContract
    for key in place:
        if isinstance(key, str) and key in model.model_fields:
            model = _model_of(model.model_fields[key].annotation)
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_of(inner) for inner in get_args(annotation) if inner is not Ellipsis]
    return next((model for model in found if model is not Part), Part)


def _slices(parts: list[tuple[str, int]]) -> dict[str, slice]:
    slices, start = {}, 0
    for name, size in parts:
        slices[name] = slice(start, start + size)
        start += size
    return slices


def _differences(mine: Any, theirs: Any, place: str) -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [line for key in {**mine, **theirs} for line in
                _differences(mine.get(key), theirs.get(key), f'{place}.{key}' if place else key)]
    if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(mine) == len(theirs):
        return [line for index, (a, b) in enumerate(zip(mine, theirs))
                for line in _differences(a, b, f'{place}.{index}')]
    return [] if mine == theirs else [f'{place}: {mine!r} != {theirs!r}']
