"""What a robot shows: rates, cameras, state and words."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ['Camera', 'Count', 'Instruction', 'Name', 'Number', 'Part', 'Positive', 'Rates', 'StateStream', 'unique']

Encoding = Literal['rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8']
ImageMessage = Literal['sensor_msgs/Image', 'sensor_msgs/CompressedImage']
StateMessage = Literal['sensor_msgs/JointState', 'geometry_msgs/PoseStamped', 'geometry_msgs/PointStamped',
                       'geometry_msgs/TwistStamped', 'geometry_msgs/WrenchStamped']

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
        topic: of the images, relative to the namespace unless it begins with a slash.
        encoding: of the messages; the policy always sees RGB (or one channel for mono8).
        resolution: rows and columns of the messages.
        size: rows and columns that the policy sees.
        max_age: newest sample may be this old when inference starts, s.
        max_skew: a sample may be this far before the reference time, s.
        message: type of the messages; compressed ones hold JPEG or PNG of any encoding.
    """

    name: Name
    topic: Name
    encoding: Encoding
    resolution: tuple[Count, Count]
    size: tuple[Count, Count]
    max_age: Positive
    max_skew: Positive
    message: ImageMessage = 'sensor_msgs/Image'

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
        unique('names', self.names)
        return self


class Instruction(Part):
    """Says where the words come from (std_msgs/String; the last ones stay in force)."""

    topic: Name


def unique(what: str, names: Any) -> None:
    """Raise `ValueError` if a name stands twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f'{what}: {name!r} stands {count} times')
