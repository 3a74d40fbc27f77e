"""Episodes from topics while they are heard: the same frames that their bags give offline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.alignment import STATUS_TOPIC, AlignedFrame, EpisodeAligner
from flow_vla_core.data.episode import OUTCOMES, Episode
from flow_vla_core.data.frames import FrameDecoder, Frames, GrowingArray, StretchKeeper, frame_bytes
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import DataError

__all__ = ['Heard', 'LiveEpisodes', 'Mark']

STARTED, ENDED, INSTRUCTED, MARKED, DISCARDED = range(5)  # events, as in Episode.msg
JUDGED = ('unknown', 'success', 'failure')
FEW_SECONDS = 1.0  # that a beginning may come late; what was heard meanwhile is kept
SAME_CLOCK = 10 ** 10  # ns; marks and messages that lie further apart do not go by the same clock


class Heard(NamedTuple):
    """Holds a message as it came.

    Args:
        topic: of the contract.
        log_time: ROS time of its receipt, ns.
        data: serialized.
        time: of its receipt by a monotonic clock, s.
    """

    topic: str
    log_time: int
    data: bytes
    time: float


@dataclass(frozen=True)
class Mark:
    """Holds an Episode message; the fields are those of Episode.msg.

    Args:
        event: what has happened.
        stamp: ROS time, ns.
        id: of the episode.
        instruction: in force after it.
        task: free label.
        outcome: judged so far.
    """

    event: int
    stamp: int
    id: str = ''
    instruction: str = ''
    task: str = ''
    outcome: int = 0


class LiveEpisodes:
    """Cuts what is heard into episodes, aligns it as it comes, and hands each one out when it is whole.

    Episode marks begin and end episodes. The order of messages on different topics is not kept on the way, so a message
    belongs to an episode if ROS time at its receipt lies between the marks' stamps, although it comes before the
    beginning or after the end: an episode is over when nothing more has come for ``settle``. Who acts at the beginning
    has been said before it. Without marks an episode
    is what lies between two jumps of ROS time, or silences. Other words begin another episode in any case.

    Args:
        contract: of the robot.
        on_episode: gets each episode.
        on_refused: gets the reason why one can't be used.
        settle: s.
        silence: s, after which an episode without marks has ended.
        room: bytes that the frames of one episode may take; one that goes on for ever, because whoever marks its end
            has died, is given up there.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> live = LiveEpisodes(RobotContract.load(find_contract('metaworld')), print, print)
        >>> live.mark(Mark(STARTED, 0, 'first', 'open the drawer'), 0.0)
        >>> live.mark(Mark(ENDED, 10, 'first', outcome=1), 5.0)
        >>> live.tick(6.0)
        first: nothing on camera/front/image_raw, camera/gripper/image_raw, ee_pose, joint_states, servo/twist_cmd, \
gripper/command
    """

    def __init__(self, contract: RobotContract, on_episode: Callable[[Episode], None],
                 on_refused: Callable[[str], None], settle: float = 0.25, silence: float = 2.0,
                 room: int = 2 ** 32) -> None:
        self._contract, self._on_episode, self._on_refused = contract, on_episode, on_refused
        self._settle, self._silence, self._room = settle, silence, room
        self._before: deque[Heard] = deque()
        self._words: str = ''
        self._open: _Open | None = None
        self._has_marks, self._count = False, 0
        self._streams = {stream.topic for stream in contract.streams}

    @property
    def topics(self) -> set[str]:
        """Topics of the contract that `hear` takes."""
        return EpisodeAligner(self._contract).topics

    @property
    def present(self) -> str:
        """Name of the episode that is heard, empty for none."""
        return self._open.name if self._open else ''

    def hear(self, message: Heard) -> None:
        """Take in a message of a stream, a command, the instruction, or the executor's status."""
        self.tick(message.time)
        if message.topic == self._contract.instruction.topic:
            self._words = _text(message.data)
        self._before.append(message)
        while self._before and message.time - self._before[0].time > FEW_SECONDS:
            self._before.popleft()
        if self._open is None and not self._has_marks and message.topic in self._streams:
            self._begin('', message.time)
        elif self._open is not None:
            self._open.hear(message)

    def mark(self, mark: Mark, time: float) -> None:
        """Take in an Episode message, received at a time of the monotonic clock, s."""
        self.tick(time)
        if mark.event == STARTED:
            if self._open is not None and not self._has_marks and time - self._open.began < FEW_SECONDS:
                self._open = None  # its messages were only faster than this mark, and belong to it
            elif self._open is not None:
                self._close()
            self._has_marks = True
            self._begin(mark.id, time, mark)
        elif self._open is not None and mark.id == self._open.name:
            self._open.mark(mark, time)
            if mark.event == DISCARDED:
                self._open = None

    def jump(self) -> None:
        """End an episode without marks: ROS time has jumped."""
        if self._open is not None and not self._open.marked:
            self._close()
        self._before.clear()

    def tick(self, time: float) -> None:
        """End what is over by a time of the monotonic clock, s."""
        if self._open is not None and self._open.is_over(time, self._silence):
            self._close()

    def abandon(self, reason: str) -> None:
        """Give up the present episode, if any: messages were lost."""
        if self._open is not None:
            self._open.give_up(reason)

    def finish(self) -> None:
        """End the present episode; nothing more will come."""
        if self._open is not None:
            self._close()

    def _begin(self, name: str, time: float, mark: Mark | None = None) -> None:
        self._count += 1
        name = name or f'heard_{self._count:06d}'
        self._open = _Open(self._contract, name, time, self._settle, mark, self._words, self._room)
        for message in self._before:
            if mark is None or message.log_time >= mark.stamp or message.topic == STATUS_TOPIC:
                self._open.hear(message)
        if mark is not None:
            self._before.clear()

    def _close(self) -> None:
        done, self._open = self._open, None
        try:
            for episode in done.episodes():
                self._on_episode(episode)
        except DataError as error:
            self._on_refused(f'{done.name}: {error}')


class _Open:
    """Is an episode that is being heard."""

    def __init__(self, contract: RobotContract, name: str, began: float, settle: float, mark: Mark | None,
                 words: str, room: int) -> None:
        self.name, self.began, self.marked, self._settle = name, began, mark is not None, settle
        self.problem = ''
        self._task, self._outcome = (mark.task, mark.outcome) if mark else ('', 0)
        self._aligner = EpisodeAligner(contract)
        decode = _decoder(contract)
        self._decoder = FrameDecoder(contract, _same_names(contract), decode)
        self._keeper = StretchKeeper(contract, self._decoder, _in_memory)
        self._most, self._count = room // frame_bytes(contract), 0
        self._last, self._log_time = began, 0
        self._end: float | None = None
        self._until: int | None = None
        self._first_words = mark.instruction.strip() if mark and mark.instruction.strip() else words
        if self._first_words:
            self._aligner.instruct(-1, self._first_words)

    def hear(self, message: Heard) -> None:
        """Take in a message; what is wrong with it comes with `episodes`. Marks know the words better than a topic."""
        if self._until is not None and message.log_time > self._until:
            return
        self._last, self._log_time = message.time, message.log_time
        if not self.problem and not (self.marked and message.topic == self._aligner.contract.instruction.topic):
            self._add(lambda: self._aligner.push(message.topic, message.log_time, message.data))

    def mark(self, mark: Mark, time: float) -> None:
        """Take in an event after the first."""
        self._outcome = mark.outcome or self._outcome
        if mark.event == INSTRUCTED and mark.instruction.strip():
            self._aligner.instruct(mark.stamp, mark.instruction.strip())
        elif mark.event == ENDED:
            self._end = time + self._settle
            self._until = mark.stamp if abs(mark.stamp - self._log_time) < SAME_CLOCK else None

    def is_over(self, time: float, silence: float) -> bool:
        """Tell whether nothing more belongs to it."""
        if self._end is None:
            return not self.marked and time - self._last > silence
        return time >= (self._end if self._until is None else max(self._end, self._last + self._settle))

    def episodes(self) -> Iterator[Episode]:
        """Yield what was heard, divided where the words change. Raise `DataError` if it can't be used."""
        self._add(self._aligner.finish)
        frames = None if self.problem else self._kept()
        if frames is None or not len(frames):
            missing = ', '.join(self._aligner.missing)
            raise DataError(self.problem or (f'nothing on {missing}' if missing else
                                             self._aligner.problem or 'streams and commands never overlap'))
        start, end = self._aligner.span
        whole = len(frames) > (end - start) // self._aligner.contract.rates.policy_dt_ns
        for part, words in _divide(frames, self._first_words):
            yield self._episode(part, words, whole)

    def _kept(self) -> Frames | None:
        self._keeper.close(self._aligner.last_command)
        return self._keeper.best

    def _add(self, step: Callable[[], list[AlignedFrame]]) -> None:
        try:
            for frame in step():
                self._count += 1
                if self._count > self._most:
                    raise DataError(f'more than {self._most} frames, for which there is no room')
                self._keeper.add(frame)
        except DataError as error:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """Take note of why this can't be used, and let go of what was kept."""
        self.problem = self.problem or reason
        self._aligner = EpisodeAligner(self._aligner.contract)
        self._keeper = StretchKeeper(self._aligner.contract, self._decoder, _in_memory)

    def _episode(self, frames: Frames, words: str, whole: bool) -> Episode:
        if not words:
            raise DataError('the instruction is empty')
        outcome = JUDGED[self._outcome] if self._outcome < len(JUDGED) else OUTCOMES[-1]
        return Episode(frames.stamps, frames.images, frames.state, frames.actions, words, self._task, outcome,
                       Path(self.name), whole, frames.actors)


def _divide(frames: Frames, first_words: str) -> Iterator[tuple[Frames, str]]:
    """Yield each run of frames with the same words."""
    first = next((words for words in frames.instructions if words), first_words)
    texts = np.array([words or first for words in frames.instructions])
    borders = [0, *(np.flatnonzero(texts[1:] != texts[:-1]) + 1).tolist(), len(texts)]
    for begin, end in zip(borders, borders[1:]):
        yield frames.cut(begin, end), str(texts[begin])


def _decoder(contract: RobotContract) -> Callable[[str, bytes], Any]:
    from flow_vla_core.data.typestore import full_name
    kinds = {stream.topic: full_name(getattr(stream, 'message', 'sensor_msgs/Image')) for stream in contract.streams}

    def decode(topic: str, data: bytes) -> Any:
        try:
            return typestore().deserialize_cdr(data, kinds[topic])
        except Exception as error:  # bytes from anywhere make the parser raise anything
            raise DataError(f'{topic}: damaged message: {error}') from error
    return decode


def _same_names(contract: RobotContract) -> dict[str, str]:
    return {stream.topic: stream.topic for stream in contract.streams}


def _text(data: bytes) -> str:
    try:
        return typestore().deserialize_cdr(data, 'std_msgs/msg/String').data.strip()
    except Exception:  # as above; whoever aligns it says so
        return ''


def _in_memory(_: str, shape: tuple[int, ...], kind: type) -> GrowingArray:
    return GrowingArray(shape, kind)
