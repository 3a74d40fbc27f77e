"""A LeRobotDataset to bags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from flow_vla_core.contract import Camera, Rates, RobotContract, StateStream
from flow_vla_core.data.alignment import STATUS, STATUS_TOPIC
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.encoding import encode_action, encode_image, encode_message, encode_state
from flow_vla_core.data.lerobot.matching import Match
from flow_vla_core.data.lerobot.reader import Dataset, Frames
from flow_vla_core.data.lerobot.schema import CONTRACT_FILE
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.types import Actor

__all__ = ['contract_of', 'import_dataset']

START = 1_000_000_000    # ns; where the clock of an episode begins that has no stamps
EPISODE_TOPIC = 'episode'
STARTED, ENDED, INSTRUCTED = 0, 1, 2  # constants of Episode.msg
OUTCOMES = {'unknown': 0, 'success': 1, 'failure': 2}


def contract_of(dataset: Path) -> RobotContract:
    """Return the contract that an export put into a dataset. Raise `DataError` if there is none."""
    path = Path(dataset) / CONTRACT_FILE
    if not path.is_file():
        raise DataError(f'{dataset}: brings no contract ({CONTRACT_FILE}); --contract is needed')
    return RobotContract.load(path)


def import_dataset(dataset: Dataset, contract: RobotContract, out: Path, features: Mapping[str, str] | None = None,
                   by_position: bool = False) -> Iterator[Path]:
    """Write each episode of a dataset as a bag, ``out/episode_000001`` and so on; yield the folders.

    Args:
        dataset: of ours or of others'.
        contract: says topics and messages; its parts are found among the features by name.
        out: folder for the bags; must be empty or missing.
        features: camera's name, ``state`` or ``action`` -> feature, where it is called otherwise.
        by_position: take numbers in their order and not by name.

    Raises:
        DataError: if a feature is missing or does not fit, or a file can't be read.
        ConfigError: if there is something in ``out``.
    """
    match = Match.find(dataset, contract, features, by_position)
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f'{out}: not empty')
    for part in contract.actions:
        encode_action(part, np.zeros(part.dim), START)  # raises for a command that no bag can hold
    own = [name for name in ('stamp', 'actor', 'next.success') if name in dataset.info.features]
    for index in range(len(dataset)):
        frames = dataset.read(index, [*match.features, *own])
        folder = out / f'episode_{index + 1:06d}'
        _write(folder, frames, _Content.of(frames, match, contract, dataset.info.fps), contract)
        yield folder


@dataclass(frozen=True)
class _Content:
    """Holds what becomes messages: stamps (N,) ns, N images by camera, state (N, S), actions (N, A), actors (N,)."""

    stamps: np.ndarray
    images: Mapping[str, Iterator[np.ndarray]]
    state: np.ndarray
    actions: np.ndarray
    actors: np.ndarray
    outcome: str

    @classmethod
    def of(cls, frames: Frames, match: Match, contract: RobotContract, fps: float) -> _Content:
        count, own = len(frames), frames.numbers
        stamps = own['stamp'] if 'stamp' in own else _stamps(count, fps, contract.rates)
        actors = own['actor'] if 'actor' in own else np.full(count, Actor.NOBODY)
        images = {camera.name: frames.images[match.cameras[camera.name]] for camera in contract.cameras}
        outcome = frames.row.get('flow_vla/outcome')
        if outcome not in OUTCOMES:
            outcome = 'success' if own.get('next.success', np.zeros(1, bool)).any() else 'unknown'
        return cls(stamps, images, match.values(frames, 'state'), match.values(frames, 'action'), actors, outcome)


def _stamps(count: int, fps: float, rates: Rates) -> np.ndarray:
    """Return stamps (N,), ns; at the contract's rate they lie on its grid, whose steps are whole nanoseconds."""
    step = rates.policy_dt_ns if abs(fps * rates.policy_dt - 1) < 1e-6 else 1e9 / fps
    return START + np.round(np.arange(count) * step).astype(np.int64)


def _write(folder: Path, frames: Frames, content: _Content, contract: RobotContract) -> None:
    task = str(frames.row.get('flow_vla/task') or '')
    marks = {'instruction': frames.instructions[0], 'task': task, 'outcome': content.outcome,
             'contract': contract.label}
    with_actors = bool(content.actors.any())
    writer = EpisodeWriter(folder, _topics(contract, with_actors), marks)
    try:
        for topic, stamp, data in _messages(folder.name, frames, content, contract, marks, with_actors):
            writer.write('/' + topic.lstrip('/'), data, stamp, stamp)
        writer.close()
    except BaseException:
        writer.discard()
        raise


def _messages(name: str, frames: Frames, content: _Content, contract: RobotContract, marks: Mapping[str, str],
              with_actors: bool) -> Iterator[tuple[str, int, bytes]]:
    """Yield topic, stamp and bytes in the order of time."""
    stamps, words = content.stamps.tolist(), ''
    yield EPISODE_TOPIC, stamps[0], _mark(name, STARTED, stamps[0], marks, 'unknown')
    for index, stamp in enumerate(stamps):
        if frames.instructions[index] != words:
            words = frames.instructions[index]
            if index:
                yield EPISODE_TOPIC, stamp, _mark(name, INSTRUCTED, stamp, {**marks, 'instruction': words}, 'unknown')
            yield contract.instruction.topic, stamp, encode_message('std_msgs/String', data=words)
        yield from ((topic, stamp, data) for topic, data in _observation(content, contract, index, stamp))
        yield from ((topic, stamp, data) for topic, data in _commands(content, contract, index, stamp))
        if with_actors:
            yield STATUS_TOPIC, stamp, encode_message(STATUS, header=_header(stamp),
                                                      source=int(content.actors[index]))
    yield EPISODE_TOPIC, stamps[-1], _mark(name, ENDED, stamps[-1], marks, content.outcome)


def _observation(content: _Content, contract: RobotContract, index: int, stamp: int) -> Iterator[tuple[str, bytes]]:
    for topic, streams in _by_topic(contract):
        parts = [(stream, content.state[index, contract.state_slices[stream.name]]) for stream in streams]
        yield topic, encode_state(parts, stamp)
    for camera in contract.cameras:
        yield camera.topic, encode_image(_channels(next(content.images[camera.name]), camera), camera, stamp)


def _commands(content: _Content, contract: RobotContract, index: int, stamp: int) -> Iterator[tuple[str, bytes]]:
    reach_in = round(1e9 / contract.rates.control_hz)
    for part, place in zip(contract.actions, contract.action_slices.values()):
        yield part.topic, encode_action(part, content.actions[index, place], stamp, reach_in)


def _by_topic(contract: RobotContract) -> Iterator[tuple[str, list[StateStream]]]:
    ordered = sorted(contract.state, key=lambda stream: stream.topic)
    yield from ((topic, list(streams)) for topic, streams in groupby(ordered, key=lambda stream: stream.topic))


def _topics(contract: RobotContract, with_actors: bool) -> list[Topic]:
    named = {**{part.topic: part.message for part in (*contract.streams, *contract.actions)},
             contract.instruction.topic: 'std_msgs/String', EPISODE_TOPIC: 'flow_vla/Episode'}
    if with_actors:
        named[STATUS_TOPIC] = STATUS
    return [Topic('/' + name.lstrip('/'), kind) for name, kind in named.items()]


def _channels(image: np.ndarray, camera: Camera) -> np.ndarray:
    """Return an image with the camera's channels; a grey one is the mean of three, which are equal in an export."""
    if image.shape[:2] != camera.resolution:
        rows, columns = camera.resolution
        raise DataError(f'{camera.name}: an image of {image.shape[0]} rows and {image.shape[1]} columns, '
                        f'the dataset says {rows} and {columns}')
    if camera.channels == 3:
        return image
    return np.round(image.mean(-1, keepdims=True)).astype(np.uint8)


def _mark(name: str, event: int, stamp: int, marks: Mapping[str, str], outcome: str) -> bytes:
    return encode_message('flow_vla/Episode', header=_header(stamp), id=name, event=event, task=marks['task'],
                          instruction=marks['instruction'], contract=marks['contract'], outcome=OUTCOMES[outcome])


def _header(stamp: int) -> dict[str, Any]:
    return {'stamp': {'sec': stamp // 10 ** 9, 'nanosec': stamp % 10 ** 9}}
