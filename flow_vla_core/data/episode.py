"""Turns a recorded bag into an episode on the policy's time grid, by the same rules as the live nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import logging
from pathlib import Path

import numpy as np

from flow_vla_core.align import Aligned, StreamBuffer, Synchroniser
from flow_vla_core.contract import ActionPart, Camera, RobotContract, StateStream
from flow_vla_core.data.bag_reader import Bag, read_bag
from flow_vla_core.errors import DataError, ObservationError
from flow_vla_core.messages import decode_action, decode_image, decode_state

__all__ = ['Episode', 'read_episode']

OUTCOMES = ('success', 'failure', 'unknown')


@dataclass(frozen=True)
class Episode:
    """Holds one demonstration at the grid times ``start + k * policy_dt``.

    Args:
        stamps: (N,) int64 grid times, ns.
        images: camera name -> (N, Y, X, C) uint8, as the policy sees them.
        state: (N, S) float32.
        actions: (N, A) float32: the command in force at each grid time.
        instruction: the words.
        task: free label.
        outcome: ``success``, ``failure`` or ``unknown``.
        source: the bag.
        complete: False if the bag was cut off or has a gap; a warning said so.
    """

    stamps: np.ndarray
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    instruction: str
    task: str
    outcome: str
    source: Path
    complete: bool = True

    def __len__(self) -> int:
        return len(self.stamps)


def read_episode(bag_folder: Path, contract: RobotContract) -> Episode:
    """Read a bag and align it.

    Observations are those that a live `Synchroniser` would have selected at the grid times. An action is the newest
    command at or before its grid time. The grid begins when every stream and every command has been seen and ends with
    the last reference time that has a command; nothing looks ahead. Of a bag in which a stream has a gap, longer than
    its ``max_skew`` allows, the longest stretch without one is used.

    Args:
        bag_folder: a rosbag2 folder.
        contract: says which topics, and how they are read.

    Raises:
        DataError: names the bag, the topic and the reason.
    """
    bag = read_bag(bag_folder)
    streams = {stream.name: bag.find(stream.topic, getattr(stream, 'message', 'sensor_msgs/Image'))
               for stream in contract.streams}
    synchroniser = _synchronise(bag, contract, streams)
    commands = [_commands(bag, part) for part in contract.actions]
    grid = _grid(bag, synchroniser, commands, contract.rates.policy_dt_ns)
    selected = _select(bag, synchroniser, grid)
    images, state = _observe(bag, contract, streams, selected)
    stamps = np.array([aligned.stamp for aligned in selected], np.int64)
    actions = np.stack([np.concatenate([buffer.at_or_before(int(time))[1] for buffer in commands]) for time in stamps])
    outcome = bag.marks.get('outcome', 'unknown')
    return Episode(stamps, images, state, actions, _instruction(bag, contract, int(stamps[0])),
                   str(bag.marks.get('task', '')), outcome if outcome in OUTCOMES else 'unknown', bag.path,
                   bag.complete and len(stamps) == len(grid))


def _synchronise(bag: Bag, contract: RobotContract, topics: Mapping[str, str]) -> Synchroniser:
    longest = max(len(bag.messages[topic]) for topic in topics.values())
    single = contract.model_copy(update={'history': 1})  # earlier observations are earlier grid times
    synchroniser = Synchroniser.for_contract(single, longest)
    for name, topic in topics.items():
        for stamp, data in bag.stamped(topic):
            synchroniser.push(name, stamp, data)
    return synchroniser


def _commands(bag: Bag, part: ActionPart) -> StreamBuffer:
    topic = bag.find(part.topic, part.message)
    buffer = StreamBuffer(len(bag.messages[topic]))
    for stamp, data in bag.stamped(topic, zero_is_receipt=True):
        try:
            values = decode_action(bag.decode(topic, data), part)
        except DataError as error:
            raise DataError(f'{bag.path}: {error}') from error
        if not np.isfinite(values).all():
            raise DataError(f'{bag.path}: {topic}: the command at {stamp / 1e9:.3f} s is not finite')
        buffer.push(stamp, values)
    return buffer


def _grid(bag: Bag, synchroniser: Synchroniser, commands: list[StreamBuffer], step: int) -> np.ndarray:
    """Return the grid times, (N,) int64."""
    start = max(synchroniser.start_time(), *(buffer.oldest for buffer in commands))
    end = min(synchroniser.reference_time(), max(buffer.newest for buffer in commands))
    if end < start:
        raise DataError(f'{bag.path}: streams and commands never overlap: all of them exist from {start / 1e9:.3f} s '
                        f'on, the first of them ends at {end / 1e9:.3f} s')
    return np.arange(start, end + 1, step, dtype=np.int64)


def _select(bag: Bag, synchroniser: Synchroniser, grid: np.ndarray) -> list[Aligned]:
    """Select at every grid time; where a stream has a gap, keep the longest stretch without one."""
    stretches: list[list[Aligned]] = [[]]
    problem: ObservationError | None = None
    for time in grid:
        try:
            stretches[-1].append(synchroniser.select(int(time)))
        except ObservationError as error:
            problem = problem or error
            stretches.append([])
    longest = max(stretches, key=len)
    if not longest:
        raise DataError(f'{bag.path}: {problem}')
    if problem is not None:
        logging.getLogger(__name__).warning('%s: %s; kept the longest stretch without a gap, %d of %d steps', bag.path,
                                            problem, len(longest), len(grid))
    return longest


def _observe(bag: Bag, contract: RobotContract, topics: Mapping[str, str],
             selected: list[Aligned]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    images = {camera.name: np.empty((len(selected), *camera.size, camera.channels), np.uint8)
              for camera in contract.cameras}
    state = np.empty((len(selected), contract.state_dim), np.float32)
    targets = {**images, **{name: state[:, place] for name, place in contract.state_slices.items()}}
    for index, aligned in enumerate(selected):
        for stream in contract.streams:
            data = aligned.samples[stream.name][0][1]
            targets[stream.name][index] = _decode(bag, topics[stream.name], stream, data)
    return images, state


def _decode(bag: Bag, topic: str, stream: Camera | StateStream, data: bytes) -> np.ndarray:
    message = bag.decode(topic, data)
    try:
        return decode_image(message, stream) if isinstance(stream, Camera) else decode_state(message, stream)
    except ObservationError as error:
        raise DataError(f'{bag.path}: {topic}: {error}') from error


def _instruction(bag: Bag, contract: RobotContract, start: int) -> str:
    """Return the words of the marks, else those that were in force at the start, else the first ones."""
    if words := str(bag.marks.get('instruction', '')).strip():
        return words
    topic = bag.find(contract.instruction.topic, 'std_msgs/String')
    spoken = sorted(bag.messages[topic], key=lambda pair: pair[0])
    before = [data for time, data in spoken if time <= start]
    words = bag.decode(topic, before[-1] if before else spoken[0][1]).data.strip()
    if not words:
        raise DataError(f'{bag.path}: {topic}: the instruction is empty')
    return words
