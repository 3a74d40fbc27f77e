"""Shows a recorded bag in Rerun: pictures, numbers by name, words, marks and who acts, on the time of ROS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import Bag, BagMessage
from flow_vla_core.data.inspection.collectors import Collectors, EpisodeCollector, ValueCollector, WordCollector
from flow_vla_core.data.inspection.pictures import shrink
from flow_vla_core.errors import DataError, ObservationError
from flow_vla_core.types import Actor

if TYPE_CHECKING:
    from rerun import RecordingStream

__all__ = ['TIME', 'RerunLog', 'blueprint', 'log_bag', 'log_series', 'numbers']

TIME = 'ros_time'
PNG = b'\x89PNG'
IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
STATUS = 'flow_vla/msg/ExecutionStatus'
EVENTS = ('started', 'ended', 'instruction', 'marked', 'discarded')
WHOLE = 1 << 16  # rows: pictures are shown as they are
MOST = 64        # numbers of one message of a topic that no contract names


def log_bag(bag: Bag, contract: RobotContract | None, recording: RecordingStream, quality: int = 90) -> dict[str, int]:
    """Log a bag, message by message, by the stamps of the messages.

    Args:
        bag: opened.
        contract: names the cameras, state and actions; topics that it does not name stand below ``topic``.
        recording: of Rerun.
        quality: JPEG quality of raw pictures, 1 to 100; 0 logs them as they are. Compressed ones stay untouched.

    Returns:
        Entity -> how many times it was logged.
    """
    log = RerunLog(bag, contract, recording, quality)
    for message in bag.read():
        log.take(message)
    return log.finish()


class RerunLog:
    """Logs one message after another; numbers are gathered and logged at the end, each name in one go."""

    def __init__(self, bag: Bag, contract: RobotContract | None, recording: RecordingStream, quality: int) -> None:
        self._bag, self._recording, self._quality = bag, recording, quality
        chosen = Collectors(bag.types, contract, 0)
        self._collectors = {topic: chosen.make(topic) for topic in bag.types}
        self._roles = {topic: chosen.role(topic) for topic in bag.types}
        self._numbers: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        self._counts: dict[str, int] = defaultdict(int)
        self._actor: int | None = None

    def take(self, message: BagMessage) -> None:
        """Log a message; one that is damaged is left out."""
        if not self._bag.is_known(message.topic):
            return
        try:
            stamp = self._bag.stamp(message, zero_is_receipt=True)
            decoded = self._bag.decode(message.topic, message.data)
            self._show(message, stamp, decoded)
        except (DataError, ObservationError):
            self._counts['damaged'] += 1

    def finish(self) -> dict[str, int]:
        """Log the numbers, and return entity -> how many times it was logged."""
        for topic, held in self._collectors.items():
            if isinstance(held, ValueCollector):
                kind = 'action' if self._roles[topic].startswith('action ') else 'state'
                for index, name in enumerate(held.part.names):
                    self._log_series(f'{kind}/{held.part.name}/{name}', held.stamps, held.values[:, index])
        for entity, (stamps, values) in self._numbers.items():
            self._log_series(entity, np.array(stamps, np.int64), np.array(values))
        self._recording.flush()
        return dict(self._counts)

    def _show(self, message: BagMessage, stamp: int, decoded: Any) -> None:
        topic, kind = message.topic, self._bag.types[message.topic]
        collector = self._collectors[topic]
        if kind in IMAGES:
            self._log_picture(f'camera/{self._roles[topic] or topic.strip("/")}', stamp, decoded)
        elif isinstance(collector, WordCollector):
            self._say('instruction', message.log_time, decoded.data)
        elif isinstance(collector, EpisodeCollector):
            words = (EVENTS[decoded.event] if decoded.event < len(EVENTS) else '', decoded.id, decoded.instruction)
            self._say('episode', message.log_time, ' '.join(filter(None, words)))
        elif isinstance(collector, ValueCollector):
            collector.take(message.log_time, stamp, decoded, 0)
        else:
            self._log_any(topic, stamp, decoded)
        if kind == STATUS:
            self._log_actor(message.log_time, int(decoded.source))

    def _log_picture(self, entity: str, stamp: int, decoded: Any) -> None:
        import rerun as rr
        if hasattr(decoded, 'format'):
            data = bytes(decoded.data)
            picture: Any = rr.EncodedImage(contents=data, media_type='image/png' if data[:4] == PNG else 'image/jpeg')
        else:
            pixels = shrink(decoded, WHOLE)
            if pixels is None:
                return
            picture = rr.Image(pixels) if not self._quality else rr.EncodedImage(
                contents=_jpeg(pixels, self._quality), media_type='image/jpeg')
        self._log(entity, stamp, picture)

    def _say(self, entity: str, time: int, words: str) -> None:
        import rerun as rr
        self._log(entity, time, rr.TextLog(words))

    def _log_actor(self, time: int, source: int) -> None:
        stamps, values = self._numbers['actor']
        stamps.append(time)
        values.append(source)
        if source != self._actor:
            self._actor = source
            self._say('actor/changes', time, Actor(source).name.lower() if source in list(Actor) else str(source))

    def _log_any(self, topic: str, stamp: int, decoded: Any) -> None:
        for path, value in list(numbers(decoded))[:MOST]:
            stamps, values = self._numbers[f'topic/{topic.strip("/")}/{path}']
            stamps.append(stamp)
            values.append(value)

    def _log(self, entity: str, time: int, content: Any) -> None:
        self._recording.set_time(TIME, timestamp=np.datetime64(time, 'ns'))
        self._recording.log(entity, content)
        self._counts[entity] += 1

    def _log_series(self, entity: str, stamps: np.ndarray, values: np.ndarray) -> None:
        if len(stamps):
            log_series(self._recording, entity, stamps, values)
            self._counts[entity] = len(stamps)


def log_series(recording: RecordingStream, entity: str, stamps: np.ndarray, values: np.ndarray) -> None:
    """Log (N,) values at (N,) times, ns."""
    import rerun as rr
    times = rr.TimeColumn(TIME, timestamp=stamps.astype('datetime64[ns]'))
    recording.send_columns(entity, indexes=[times], columns=rr.Scalars.columns(scalars=np.asarray(values, np.float64)))


def blueprint(contract: RobotContract | None, counts: Mapping[str, int]) -> Any:
    """Arrange cameras on the left, a plot for each part on the right, and words below."""
    from rerun import blueprint as rrb
    cameras = [rrb.Spatial2DView(origin=entity, name=entity.partition('/')[2]) for entity in counts
               if entity.startswith('camera/')]
    parts = [('action', part.name) for part in contract.actions] if contract else []
    parts += [('state', stream.name) for stream in contract.state] if contract else []
    plots = [rrb.TimeSeriesView(name=f'{kind} {name}', contents=[f'/{kind}/{name}/**', f'/policy/{name}/**'])
             for kind, name in parts]
    plots = plots or [rrb.TimeSeriesView(name='topics', origin='/topic')]
    if 'actor' in counts:
        plots.append(rrb.TimeSeriesView(name='actor: 0 nobody, 1 policy, 2 person', origin='/actor'))
    words = rrb.TextLogView(name='words and marks', contents=['/instruction', '/episode', '/actor/changes'])
    left = [rrb.Vertical(*cameras)] if cameras else []
    return rrb.Blueprint(rrb.Vertical(rrb.Horizontal(*left, rrb.Vertical(*plots)), words, row_shares=[5, 1]))


def numbers(message: Any, prefix: str = '') -> Iterator[tuple[str, float]]:
    """Yield the numbers in a message with dotted names; those of a list are named by ``name`` beside it, if it fits.

    Example:
        >>> from types import SimpleNamespace
        >>> from flow_vla_core.data.typestore import typestore
        >>> point = typestore().types['geometry_msgs/msg/Point']
        >>> list(numbers(point(x=1.0, y=2.0, z=3.0)))
        [('x', 1.0), ('y', 2.0), ('z', 3.0)]
    """
    names = list(getattr(message, 'name', ()) or ()) or list(getattr(message, 'joint_names', ()) or ())
    for part in fields(message):
        value = getattr(message, part.name)
        place = f'{prefix}{part.name}'
        constant = part.name.isupper() or part.name.startswith('__')
        if part.name == 'header' or constant or isinstance(value, (str, bytes)):
            continue
        if is_dataclass(value):
            yield from numbers(value, f'{place}.')
        elif isinstance(value, (bool, int, float, np.number)):
            yield place, float(value)
        elif isinstance(value, (list, np.ndarray)) and len(value) <= MOST:
            yield from _items(value, place, names)


def _items(values: Any, place: str, names: list[str]) -> Iterator[tuple[str, float]]:
    for index, value in enumerate(values):
        label = names[index] if len(names) == len(values) else str(index)
        if is_dataclass(value):
            yield from numbers(value, f'{place}.{label}.')
        elif isinstance(value, (bool, int, float, np.number)):
            yield f'{place}.{label}', float(value)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    from PIL import Image
    file = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, 'JPEG', quality=quality)
    return file.getvalue()
