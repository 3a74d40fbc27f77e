"""The robot contract: how topics become an observation, and how an action chunk becomes commands."""

from __future__ import annotations

from collections import Counter
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
import yaml

from flow_vla_core.errors import ContractError, closest

__all__ = ['ActionKind', 'ActionPart', 'Camera', 'Instruction', 'Limits', 'Rates', 'RobotContract', 'StateStream',
           'find_contract']

ActionKind = Literal['joint_position', 'joint_velocity', 'ee_pose', 'ee_delta', 'ee_twist', 'gripper']
Encoding = Literal['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8']
StateMessage = Literal['sensor_msgs/JointState', 'geometry_msgs/PoseStamped', 'geometry_msgs/PointStamped',
                       'geometry_msgs/TwistStamped', 'geometry_msgs/WrenchStamped']
ActionMessage = Literal['geometry_msgs/TwistStamped', 'geometry_msgs/PoseStamped',
                        'trajectory_msgs/JointTrajectory', 'std_msgs/Float64MultiArray']
TWIST_AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz')

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, gt=0)]
Name = Annotated[str, Field(strict=True, min_length=1)]


class Part(BaseModel):
    """Is the base of every part of a contract: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra='forbid', frozen=True)


class Rates(Part):
    """Says how far apart actions are and how often commands go out.

    Args:
        policy_dt: time between two actions of a chunk, s.
        control_hz: rate of the executor, Hz.
    """

    policy_dt: Positive
    control_hz: Annotated[Positive, Field(ge=1, le=1000)]

    @property
    def policy_dt_ns(self) -> int:
        """Time between two actions, ns."""
        return round(self.policy_dt * 1e9)


class Camera(Part):
    """Describes one camera.

    Args:
        name: how the policy calls it.
        topic: a sensor_msgs/Image topic, relative to the namespace unless it begins with a slash.
        encoding: of the messages; the policy always sees RGB (or one channel for mono8).
        resolution: rows and columns of the messages.
        size: rows and columns that the policy sees.
        max_age: newest sample may be this old when inference starts, s.
        max_skew: a sample may be this far before the reference time, s.
    """

    name: Name
    topic: Name
    encoding: Encoding
    resolution: tuple[Count, Count]
    size: tuple[Count, Count]
    max_age: Positive
    max_skew: Positive

    @property
    def channels(self) -> int:
        """Channels that the policy sees."""
        return 1 if self.encoding == 'mono8' else 3


class StateStream(Part):
    """Describes one low-dimensional measurement.

    Args:
        name: how the policy calls it.
        topic: where it is published.
        message: its type.
        field: dotted path of the numbers inside the message, such as ``pose.position`` or ``position``.
        names: which numbers, in order; joint names for a JointState, attributes otherwise.
        unit: of the numbers.
        max_age: newest sample may be this old when inference starts, s.
        max_skew: a sample may be this far before the reference time, s.
    """

    name: Name
    topic: Name
    message: StateMessage
    field: Name
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    unit: Name
    max_age: Positive
    max_skew: Positive

    @model_validator(mode='after')
    def _names_differ(self) -> StateStream:
        _unique('names', self.names)
        return self


class Instruction(Part):
    """Says where the words come from (std_msgs/String; the last ones stay in force)."""

    topic: Name


class Limits(Part):
    """Bounds one action part; every list has one number for each of its names.

    Args:
        min: smallest value, in the part's unit.
        max: largest value.
        velocity: largest rate of change of a position, unit/s; for a twist or a joint velocity, of the value itself.
        acceleration: largest change of the velocity, unit/s^2.
        jerk: largest change of the acceleration, unit/s^3.
        workspace_min: corner of the box that the end effector stays in, m (end-effector kinds).
        workspace_max: opposite corner, m.
    """

    min: tuple[Number, ...] | None = None
    max: tuple[Number, ...] | None = None
    velocity: tuple[Positive, ...] | None = None
    acceleration: tuple[Positive, ...] | None = None
    jerk: tuple[Positive, ...] | None = None
    workspace_min: tuple[Number, Number, Number] | None = None
    workspace_max: tuple[Number, Number, Number] | None = None

    @model_validator(mode='after')
    def _ordered(self) -> Limits:
        _below('min', self.min, 'max', self.max)
        _below('workspace_min', self.workspace_min, 'workspace_max', self.workspace_max)
        return self


class ActionPart(Part):
    """Describes one part of the action vector and the command that it becomes.

    Args:
        name: how the policy calls it.
        kind: what the numbers mean.
        names: joints, or axes out of x, y, z, rx, ry, rz.
        unit: of the numbers.
        limits: bounds, applied last by the executor.
        message: type of the command.
        topic: where the command goes.
        frame: frame_id of a stamped command.
        position_from: state stream that measures the end effector's position, for the workspace box.
    """

    name: Name
    kind: ActionKind
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    unit: Name
    limits: Limits
    message: ActionMessage
    topic: Name
    frame: str = ''
    position_from: str | None = None

    @property
    def dim(self) -> int:
        """Number of values."""
        return len(self.names)

    @model_validator(mode='after')
    def _consistent(self) -> ActionPart:
        _unique('names', self.names)
        for key in ('min', 'max', 'velocity', 'acceleration', 'jerk'):
            values = getattr(self.limits, key)
            if values is not None and len(values) != self.dim:
                raise ValueError(f'limits.{key} has {len(values)} values, names has {self.dim}')
        if self.kind in ('ee_twist', 'joint_velocity'):
            _need(self.limits, self.kind, 'velocity')
        else:
            _need(self.limits, self.kind, 'min', 'max')
        if self.kind.startswith('ee_') and (wrong := [n for n in self.names if n not in TWIST_AXES]):
            raise ValueError(f'names: {wrong[0]!r} is no axis; {closest(wrong[0], TWIST_AXES)}')
        if self.limits.workspace_min is not None and self.position_from is None:
            raise ValueError('position_from is needed for a workspace box: the state stream that measures the position')
        return self


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
        _unique('cameras and state: name', [stream.name for stream in self.streams])
        _unique('actions: name', [part.name for part in self.actions])
        _unique('topic', [*(camera.topic for camera in self.cameras), self.instruction.topic])
        _unique('actions: topic', [part.topic for part in self.actions])
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
        try:
            values = yaml.load(Path(path).read_text(), _StrictLoader)
        except OSError as error:
            raise ContractError(f'{path}: {error.strerror}') from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ContractError(f'{path}: not valid YAML: {error}') from error
        return cls.parse(values, str(path))

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


def find_contract(name: str | Path) -> Path:
    """Return the file of a contract, given its path or the name of one in ``config/robots``."""
    if Path(name).suffix in ('.yaml', '.yml'):
        return Path(name)
    robots = config_folder() / 'robots'
    path = robots / f'{name}.yaml'
    if not path.is_file():
        raise ContractError(f'no contract {str(name)!r} in {robots}; '
                            f'{closest(str(name), [p.stem for p in robots.glob("*.yaml")])}')
    return path


def config_folder() -> Path:
    """Return the folder ``config`` of the source tree or of the installed share folder."""
    import sys
    source = Path(__file__).resolve().parents[1] / 'config'
    if source.is_dir():
        return source
    for parent in (*Path(__file__).resolve().parents, Path(sys.prefix)):
        if (found := parent / 'share' / 'flow_vla' / 'config').is_dir():
            return found
    raise ContractError('the folder config of flow_vla is not installed')


class _StrictLoader(yaml.SafeLoader):
    """Refuses a mapping in which a key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key, count in Counter(map(str, keys)).items():
            if count > 1:
                raise yaml.YAMLError(f'line {node.start_mark.line + 1}: key {key!r} stands {count} times')
        return super().construct_mapping(node, deep)


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


def _unique(what: str, names: Any) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f'{what}: {name!r} stands {count} times')


def _below(low_key: str, low: tuple | None, high_key: str, high: tuple | None) -> None:
    if (low is None) != (high is None):
        raise ValueError(f'{low_key} and {high_key} go together: give both or none')
    if low is not None and len(low) != len(high):
        raise ValueError(f'{low_key} has {len(low)} values, {high_key} has {len(high)}')
    for index, (a, b) in enumerate(zip(low or (), high or ())):
        if a > b:
            raise ValueError(f'{low_key}[{index}] = {a} is above {high_key}[{index}] = {b}')


def _need(limits: Limits, kind: str, *keys: str) -> None:
    for key in keys:
        if getattr(limits, key) is None:
            raise ValueError(f'limits.{key} is needed for the kind {kind!r}')


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
