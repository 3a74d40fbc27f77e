"""Turns aligned frames into arrays: decodes what was selected, and keeps the longest stretch without a gap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flow_vla_core.contract import Camera, RobotContract, StateStream
from flow_vla_core.data.alignment import AlignedFrame
from flow_vla_core.errors import DataError, ObservationError
from flow_vla_core.messages import decode_image, decode_state

__all__ = ['FrameDecoder', 'Frames', 'GrowingArray', 'Rows', 'StretchKeeper', 'frame_bytes']


@dataclass(frozen=True)
class Frames:
    """Holds one stretch of N frames; the shapes are those of `Episode`, with the words of each frame."""

    stamps: np.ndarray
    images: Mapping[str, np.ndarray]
    state: np.ndarray
    actions: np.ndarray
    actors: np.ndarray
    instructions: list[str]

    def __len__(self) -> int:
        return len(self.stamps)

    def cut(self, begin: int, end: int) -> Frames:
        """Return those from ``begin`` to before ``end``, as views."""
        places = slice(begin, end)
        return Frames(self.stamps[places], {name: rows[places] for name, rows in self.images.items()},
                      self.state[places], self.actions[places], self.actors[places], self.instructions[places])


class Rows(Protocol):
    """Is an array that grows by rows."""

    def append(self, row: np.ndarray) -> None:
        """Add a row."""

    def finish(self, count: int) -> np.ndarray:
        """Return the first ``count`` rows; nothing is added any more."""

    def discard(self) -> None:
        """Forget everything."""


class GrowingArray:
    """Is an array in memory that grows by rows.

    Example:
        >>> rows = GrowingArray((2,), np.uint8)
        >>> rows.append(np.array([1, 2]))
        >>> rows.finish(1).tolist()
        [[1, 2]]
    """

    def __init__(self, shape: tuple[int, ...], kind: type) -> None:
        self._array, self._count = np.empty((16, *shape), kind), 0

    def append(self, row: np.ndarray) -> None:
        """Add a row."""
        if self._count == len(self._array):
            larger = np.empty((2 * self._count, *self._array.shape[1:]), self._array.dtype)
            larger[:self._count] = self._array
            self._array = larger
        self._array[self._count] = row
        self._count += 1

    def finish(self, count: int) -> np.ndarray:
        """Return the first ``count`` rows."""
        return self._array[:count]

    def discard(self) -> None:
        """Forget everything."""
        self._array = self._array[:0]


class FrameDecoder:
    """Decodes the messages of frames; one that is selected twice in a row is decoded once.

    Args:
        contract: says how.
        names: topic of the contract -> recorded name.
        decode: recorded name and serialized data -> message.
        threads: that decode images; 0 decodes them here.
    """

    def __init__(self, contract: RobotContract, names: Mapping[str, str], decode: Callable[[str, bytes], Any],
                 threads: int = 0) -> None:
        self._contract, self._names, self._decode = contract, names, decode
        self._pool = ThreadPoolExecutor(threads) if threads else None
        self._last: dict[str, tuple[Any, Any]] = {}

    def images(self, frame: AlignedFrame) -> dict[str, Future[np.ndarray]]:
        """Return camera name -> (Y, X, C) uint8, to come. Its `DataError` names topic and reason."""
        return {camera.name: self._once(camera, frame.samples[camera.name][1]) for camera in self._contract.cameras}

    def state(self, frame: AlignedFrame) -> np.ndarray:
        """Return (S,) float32. Raise `DataError` if a message is damaged or not what the contract says."""
        parts = [self._once(stream, frame.samples[stream.name][1]).result() for stream in self._contract.state]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _once(self, stream: Camera | StateStream, data: Any) -> Future[np.ndarray]:
        last = self._last.get(stream.name)
        if last is None or last[0] is not data:
            self._last[stream.name] = last = data, self._start(stream, data)
        return last[1]

    def _start(self, stream: Camera | StateStream, data: Any) -> Future[np.ndarray]:
        if self._pool is not None and isinstance(stream, Camera):
            return self._pool.submit(self._work, stream, data)
        future: Future[np.ndarray] = Future()
        try:
            future.set_result(self._work(stream, data))
        except DataError as error:
            future.set_exception(error)
        return future

    def _work(self, stream: Camera | StateStream, data: Any) -> np.ndarray:
        name = self._names.get(stream.topic, stream.topic)
        message = self._decode(name, data) if isinstance(data, bytes) else data
        try:
            return decode_image(message, stream) if isinstance(stream, Camera) else decode_state(message, stream)
        except ObservationError as error:
            raise DataError(f'{name}: {error}') from error


class StretchKeeper:
    """Keeps the longest stretch of the frames that it is given.

    Args:
        contract: gives the shapes.
        decoder: of the messages.
        grow: name of a camera, shape and type of a row -> where its rows go.
        ahead: frames whose images may be on their way at once.

    Attributes:
        best: the longest stretch of those that are closed; None without one.
    """

    def __init__(self, contract: RobotContract, decoder: FrameDecoder,
                 grow: Callable[[str, tuple[int, ...], type], Rows], ahead: int = 8) -> None:
        self._contract, self._decoder, self._grow, self._ahead = contract, decoder, grow, ahead
        self.best: Frames | None = None
        self._kept: _Stretch | None = None
        self._stretch: _Stretch | None = None
        self._number = -1

    def add(self, frame: AlignedFrame) -> None:
        """Take in a frame. Raise `DataError` if a message is damaged or not what the contract says."""
        if self._stretch is None or frame.stretch != self._number:
            self.close()
            self._stretch, self._number = _Stretch(self._contract, self._grow), frame.stretch
        self._stretch.add(frame, self._decoder.state(frame), self._decoder.images(frame))
        self._stretch.settle(self._ahead)

    def close(self, end: int | None = None) -> None:
        """End the stretch at hand, without frames after ``end`` (ns); what follows begins another one."""
        if self._stretch is None:
            return
        kept = len(self.best) if self.best else 0
        self._stretch.settle(0)
        if self._stretch.count(end) <= kept:
            self._stretch.discard()
        else:
            if self._kept is not None:
                self._kept.discard()
            self.best, self._kept = self._stretch.finish(end), self._stretch
        self._stretch = None


def frame_bytes(contract: RobotContract) -> int:
    """Return what a frame takes in memory, without the Python objects around it."""
    images = sum(camera.size[0] * camera.size[1] * camera.channels for camera in contract.cameras)
    return images + 4 * (contract.state_dim + contract.action_dim)


class _Stretch:
    """Collects frames that follow one another."""

    def __init__(self, contract: RobotContract, grow: Callable[[str, tuple[int, ...], type], Rows]) -> None:
        self._rows = {camera.name: grow(camera.name, (*camera.size, camera.channels), np.uint8)
                      for camera in contract.cameras}
        self._frames: list[AlignedFrame] = []
        self._states: list[np.ndarray] = []
        self._coming: deque[dict[str, Future[np.ndarray]]] = deque()

    def add(self, frame: AlignedFrame, state: np.ndarray, images: dict[str, Future[np.ndarray]]) -> None:
        self._frames.append(frame._replace(samples={}))
        self._states.append(state)
        self._coming.append(images)

    def settle(self, left: int) -> None:
        """Take the images over, in order, until ``left`` frames are on their way."""
        while len(self._coming) > left:
            for name, image in self._coming.popleft().items():
                self._rows[name].append(image.result())

    def count(self, end: int | None) -> int:
        return len(self._frames) if end is None else sum(frame.stamp <= end for frame in self._frames)

    def discard(self) -> None:
        for rows in self._rows.values():
            rows.discard()

    def finish(self, end: int | None) -> Frames:
        count = self.count(end)
        frames = self._frames[:count]
        return Frames(np.array([frame.stamp for frame in frames], np.int64),
                      {name: rows.finish(count) for name, rows in self._rows.items()},
                      np.array(self._states[:count], np.float32),
                      np.array([frame.action for frame in frames], np.float32),
                      np.array([frame.actor for frame in frames], np.uint8), [frame.instruction for frame in frames])
