"""What is kept of the contents of a topic while a bag is read."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from flow_vla_core.contract import ActionPart, Camera, RobotContract, StateStream
from flow_vla_core.data.inspection.pictures import EvenlySpaced, image_shape, shrink
from flow_vla_core.data.typestore import full_name
from flow_vla_core.errors import DataError, ObservationError, StateNotFinite
from flow_vla_core.messages import decode_action, decode_state

__all__ = ['ActorCollector', 'Collector', 'Collectors', 'EpisodeCollector', 'ImageCollector', 'LossCollector',
           'ValueCollector', 'WordCollector']

IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
INSTRUCTION = 'instruction'


class Collector:
    """Counts what can't be read; the kinds of it keep the rest."""

    def __init__(self) -> None:
        self.refused = 0
        self.reason = ''

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Take a decoded message; ``body`` is a checksum of it without the stamp. Raise `DataError` to refuse it."""
        raise NotImplementedError

    def refuse(self, reason: str) -> None:
        """Count a message that is not what its type says."""
        self.refused += 1
        self.reason = self.reason or reason


class ImageCollector(Collector):
    """Counts shapes and encodings, follows how long the picture stays the same, and keeps thumbnails."""

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self.shapes: Counter[tuple[str, tuple[int, int] | None]] = Counter()
        self.invalid = 0
        self.why = ''
        self.thumbnails = EvenlySpaced(pictures)
        self.still: list[tuple[int, int]] = []  # first and last stamp of the same picture
        self._body: int | None = None

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Follow the picture; decode it only for a thumbnail."""
        shape = image_shape(message)
        self.shapes[shape] += 1
        self._follow(stamp, body)
        if hasattr(message, 'step') and message.step * message.height != len(message.data):
            self._blame(f'{len(message.data)} bytes, {message.height} rows of {message.step} need '
                        f'{message.step * message.height}')
        elif self.thumbnails.wants():
            self._draw(log_time, message)

    def _follow(self, stamp: int, body: int) -> None:
        if body == self._body:
            self.still[-1] = (self.still[-1][0], stamp)
        elif self.still and self.still[-1][0] == self.still[-1][1]:
            self.still[-1] = (stamp, stamp)
        else:
            self.still.append((stamp, stamp))
        self._body = body

    def _draw(self, log_time: int, message: Any) -> None:
        try:
            picture = shrink(message)
        except (DataError, ObservationError) as error:
            self._blame(str(error).removeprefix('thumbnail: '))
        else:
            if picture is not None:
                self.thumbnails.keep((log_time, picture))

    def _blame(self, why: str) -> None:
        self.invalid += 1
        self.why = self.why or why


class ValueCollector(Collector):
    """Keeps the numbers of a state stream or of an action part, NaN where they are not finite."""

    def __init__(self, part: StateStream | ActionPart) -> None:
        super().__init__()
        self.part = part
        self.why = ''  # a measurement is not finite
        self._stamps, self._values = array('q'), array('d')

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Decode; a command without a stamp counts from its receipt."""
        if isinstance(self.part, ActionPart):
            stamp = stamp or log_time
        self._values.extend(self._decode(message))
        self._stamps.append(stamp)

    @property
    def stamps(self) -> np.ndarray:
        """(N,) int64, ns."""
        return np.array(self._stamps, np.int64)

    @property
    def values(self) -> np.ndarray:
        """(N, D) float64."""
        return np.array(self._values, np.float64).reshape(-1, len(self.part.names))

    def _decode(self, message: Any) -> np.ndarray:
        if isinstance(self.part, ActionPart):
            return decode_action(message, self.part)
        try:
            return decode_state(message, self.part)
        except StateNotFinite as error:
            self.why = self.why or str(error)
            return np.full(len(self.part.names), np.nan)
        except ObservationError as error:
            raise DataError(str(error)) from error


class WordCollector(Collector):
    """Keeps instructions as they change, with their time."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[tuple[int, str]] = []

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Take words that differ from the last ones."""
        text = message.data.strip()
        if not self.words or self.words[-1][1] != text:
            self.words.append((log_time, text))


class EpisodeCollector(Collector):
    """Keeps the marks of episodes: time, event, id, instruction and outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int, str, str, int]] = []

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Take a mark."""
        self.events.append((log_time, message.event, message.id, message.instruction, message.outcome))


class ActorCollector(Collector):
    """Keeps who acts, as it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[int, int]] = []

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Take an actor that differs from the last one."""
        if not self.changes or self.changes[-1][1] != message.source:
            self.changes.append((log_time, int(message.source)))


class LossCollector(Collector):
    """Keeps the losses that the recorder counted: all, and topic by topic."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self.drops: dict[str, int] = {}

    def take(self, log_time: int, stamp: int, message: Any, body: int) -> None:
        """Take the counts, which grow until the episode ends."""
        self.dropped = max(self.dropped, int(message.dropped))
        for topic, count in zip(message.topics, message.drops):
            self.drops[topic] = max(self.drops.get(topic, 0), int(count))


OWN = {'flow_vla/msg/Episode': EpisodeCollector, 'flow_vla/msg/ExecutionStatus': ActorCollector,
       'flow_vla/msg/RecorderStatus': LossCollector}


class Collectors:
    """Chooses what is kept of each topic.

    Args:
        types: recorded name -> type.
        contract: or None.
        pictures: thumbnails of each camera.
    """

    def __init__(self, types: Mapping[str, str], contract: RobotContract | None, pictures: int) -> None:
        self._types, self._pictures = types, pictures
        self.found: dict[str, str] = {}
        self._parts: dict[str, Any] = {}
        for name, part in named_parts(contract).items():
            recorded = resolve(types, part.topic)
            if recorded is not None:
                self.found[name] = recorded
                self._parts.setdefault(recorded, (name, part))

    def role(self, topic: str) -> str:
        """Return the name of the contract's part that a topic is, or nothing."""
        return self._parts[topic][0] if topic in self._parts else ''

    def make(self, topic: str) -> Collector | None:
        """Return a new collector for a topic, or None if its contents are not looked at."""
        kind = self._types[topic]
        name, part = self._parts.get(topic, ('', None))
        if kind in IMAGES:
            return ImageCollector(self._pictures)
        if isinstance(part, (StateStream, ActionPart)) and kind == full_name(part.message):
            return ValueCollector(part)
        if kind == 'std_msgs/msg/String' and (name == INSTRUCTION or topic.endswith(f'/{INSTRUCTION}')):
            return WordCollector()
        return OWN[kind]() if kind in OWN else None


def named_parts(contract: RobotContract | None) -> dict[str, Any]:
    """Return all that a contract takes from topics, by a name that tells them apart."""
    if contract is None:
        return {}
    return {**{stream.name: stream for stream in contract.streams},
            **{f'action {part.name}': part for part in contract.actions}, INSTRUCTION: contract.instruction}


def message_of(part: Any) -> str:
    """Return the full type that a part of a contract expects."""
    plain = 'sensor_msgs/Image' if isinstance(part, Camera) else 'std_msgs/String'
    return full_name(getattr(part, 'message', plain))


def resolve(types: Mapping[str, str], topic: str) -> str | None:
    """Return the recorded name of a topic that may be relative to a namespace; None if it is not there, or not once."""
    absolute = '/' + topic.lstrip('/')
    if absolute in types:
        return absolute
    found = [] if topic.startswith('/') else [name for name in types if name.endswith(absolute)]
    return found[0] if len(found) == 1 else None
