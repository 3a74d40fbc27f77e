"""Aligns streams and commands on the policy's time grid as they arrive, from bags and from topics alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import struct
from typing import Any, NamedTuple

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import header_stamp
from flow_vla_core.data.inlet import UNLIMITED, Inlet
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import DataError, in_one_line
from flow_vla_core.messages import decode_action, stamp_of
from flow_vla_core.types import Actor

__all__ = ['STATUS', 'STATUS_AGE', 'STATUS_TOPIC', 'AlignedFrame', 'EpisodeAligner']

STATUS_TOPIC, STATUS = 'executor/status', 'flow_vla/ExecutionStatus'
STATUS_AGE = 10 ** 9  # ns; nobody is known to act where the newest status is older
SECOND = 10 ** 9


class AlignedFrame(NamedTuple):
    """Holds what belongs to one time of the grid; messages are as they were pushed, not decoded.

    Args:
        stamp: the grid time, ns.
        samples: stream name -> stamp (ns) and message.
        action: (A,) float32, the command in force; empty if commands are not read.
        actor: who acts, a value of `Actor`.
        instruction: the words in force, empty before the first ones.
        stretch: counts up with each gap; frames of one stretch are ``policy_dt`` apart.
    """

    stamp: int
    samples: Mapping[str, tuple[int, Any]]
    action: np.ndarray
    actor: int
    instruction: str
    stretch: int


class EpisodeAligner:
    """Gives a frame for each time of the grid as soon as nothing that belongs to it can still arrive.

    The grid begins when every stream and every command has been seen; its times lie ``policy_dt`` apart. A stream
    gives its newest sample at or before a time, a command is the newest one at or before it, nothing looks ahead. Where
    a sample would be further back than the stream's ``max_skew`` there is a gap, and a new stretch begins after it. A
    frame comes when every stream is ``patience`` ahead of it and a command at or after it is known, at the latest with
    `finish`. Samples that come later than that are not used.

    Args:
        contract: says which topics.
        names: topic of the contract -> name under which it is pushed, where that is another one.
        decode: name and serialized data -> message; by default as the types of the contract are defined here.
        commands: False leaves the commands out.
        patience: how late a sample may come, s.
        budget: bytes of messages that may wait for those of a stream that has stopped.

    Attributes:
        held: bytes of messages that are kept at present.
        problem: why the first gap is one.
        stretch: number of the present one.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> aligner = EpisodeAligner(RobotContract.load(find_contract('metaworld')))
        >>> aligner.finish(), aligner.missing[0]
        ([], 'camera/front/image_raw')
    """

    def __init__(self, contract: RobotContract, names: Mapping[str, str] | None = None, *,
                 decode: Callable[[str, bytes], Any] | None = None, commands: bool = True, patience: float = 1.0,
                 budget: int = 2 ** 28) -> None:
        self.contract = contract
        self.problem: str | None = None
        self.stretch = 0
        self._decode = decode
        self._patience, self._budget, self._step = round(patience * SECOND), budget, contract.rates.policy_dt_ns
        self._streams = [Inlet(stream.topic, stream.message, stream.name,
                                round(stream.max_skew * SECOND)) for stream in contract.streams]
        self._commands = [Inlet(part.topic, part.message, part.name, part=part) for part in contract.actions
                          ] if commands else []
        self._status = Inlet(STATUS_TOPIC, STATUS, STATUS_TOPIC)
        self._words = Inlet(contract.instruction.topic, 'std_msgs/String', contract.instruction.topic)
        self._routes: dict[str, list[Inlet]] = {}
        for inlet in self._all():
            inlet.label = (names or {}).get(inlet.topic, inlet.topic)
            self._routes.setdefault(inlet.label, []).append(inlet)
        self._next: int | None = None
        self.held = 0

    @property
    def topics(self) -> set[str]:
        """The names that `push` takes."""
        return set(self._routes)

    @property
    def missing(self) -> list[str]:
        """Topics of streams and commands on which nothing has arrived."""
        return [inlet.topic for inlet in (*self._streams, *self._commands) if not inlet.count]

    @property
    def last_command(self) -> int:
        """Newest stamp of any command, ns; frames after it hold a command that may no longer have been meant."""
        return max((inlet.newest for inlet in self._commands), default=UNLIMITED)

    @property
    def span(self) -> tuple[int, int]:
        """First time at which everything has been seen, and the last one, ns; the first may be after the last."""
        start = max(inlet.first for inlet in (*self._streams, *self._commands))
        return start, min(self.last_command, *(inlet.newest for inlet in self._streams))

    def push(self, name: str, log_time: int, data: Any) -> list[AlignedFrame]:
        """Take in a message, and return the frames that are complete now.

        Args:
            name: its topic.
            log_time: of its receipt, ns; its stamp if it has no header, and that of a command stamped 0.
            data: serialized, or the message itself.

        Raises:
            DataError: if it is damaged, or not what the contract says; names the topic.
        """
        for inlet in self._routes[name]:
            self.held += inlet.push(self._stamp(inlet, log_time, data), data)
        frames = self._advance(self._horizon())
        if self.held > self._budget:
            frames += self._make_room()
        return frames

    def instruct(self, time: int, words: str) -> None:
        """Let words be in force from a time (ns) on."""
        self.held += self._words.push(time, words)

    def finish(self) -> list[AlignedFrame]:
        """Return the frames that are left; nothing more will come."""
        return self._advance(self._horizon(0))

    def interrupt(self) -> list[AlignedFrame]:
        """Return the frames that are left and begin anew, because messages are missing between here and what follows.

        Words stay in force.
        """
        frames = self.finish()
        for inlet in (*self._streams, *self._commands, self._status):
            inlet.clear()
        self._next, self.held = None, self._words.held
        self.stretch += 1
        return frames

    def _all(self) -> Iterator[Inlet]:
        yield from (*self._streams, *self._commands, self._status, self._words)

    def _stamp(self, inlet: Inlet, log_time: int, data: Any) -> int:
        if not isinstance(data, bytes):
            stamp = stamp_of(data)
        elif not inlet.has_header:
            stamp = None
        else:
            try:
                stamp = header_stamp(data)
            except (IndexError, struct.error) as error:
                raise DataError(f'{inlet.label}: a message of {len(data)} bytes has no header') from error
        return log_time if stamp is None or stamp == 0 and inlet.part is not None else stamp

    def _horizon(self, patience: int | None = None) -> int:
        """Return the last time, ns, that nothing can still arrive for."""
        newest = min(inlet.newest for inlet in self._streams)
        return min(newest - (self._patience if patience is None else patience), self.last_command)

    def _advance(self, horizon: int) -> list[AlignedFrame]:
        if self._next is None:
            needed = (*self._streams, *self._commands)
            start = max(inlet.oldest for inlet in needed)
            if start > horizon:
                return []
            self._next = start
        frames = []
        begun = self._next
        while self._next <= horizon:
            late = self._gap(self._next)
            if late is None:
                frames.append(self._frame(self._next))
                self._next += self._step
            else:
                self._skip(late, horizon)
        if frames or self._next != begun:
            for inlet in self._all():
                self.held -= inlet.forget(self._next)
        return frames

    def _gap(self, time: int) -> Inlet | None:
        """Return a stream whose newest sample at or before a time is too far back."""
        for inlet in self._streams:
            found = inlet.buffer.at_or_before(time)
            if found is None or time - found[0] > inlet.max_skew:
                if self.problem is None and found is not None:
                    self.problem = (f'{inlet.name}: nearest sample lies {(time - found[0]) / 1e9:.3f} s before the '
                                    f'reference time, allowed: {inlet.max_skew / 1e9:g} s')
                return inlet
        return None

    def _skip(self, inlet: Inlet, horizon: int) -> None:
        """Go on with the first time for which a stream has a new sample."""
        later = inlet.buffer.after(self._next)
        target = min(horizon + 1 if later is None else later, horizon + 1)
        self._next += max(1, -(-(target - self._next) // self._step)) * self._step
        self.stretch += 1

    def _frame(self, time: int) -> AlignedFrame:
        samples = {inlet.name: inlet.buffer.at_or_before(time) for inlet in self._streams}
        actions = [self._command(inlet, time) for inlet in self._commands]
        action = np.concatenate(actions) if actions else np.zeros(0, np.float32)
        return AlignedFrame(time, samples, action, self._actor(time), self._instruction(time), self.stretch)

    def _command(self, inlet: Inlet, time: int) -> np.ndarray:
        stamp, data = inlet.buffer.at_or_before(time)
        if inlet.decoded is None or inlet.decoded[0] is not data:
            values = decode_action(self._message(inlet, data), inlet.part)
            if not np.isfinite(values).all():
                raise DataError(f'{inlet.label}: the command at {stamp / 1e9:.3f} s is not finite')
            inlet.decoded = data, values
        return inlet.decoded[1]

    def _actor(self, time: int) -> int:
        inlet = self._status
        found = inlet.buffer.at_or_before(time)
        if found is None or time - found[0] > STATUS_AGE:
            return Actor.NOBODY
        if inlet.decoded is None or inlet.decoded[0] is not found[1]:
            inlet.decoded = found[1], int(getattr(self._message(inlet, found[1]), 'source', Actor.NOBODY))
        return inlet.decoded[1]

    def _instruction(self, time: int) -> str:
        found = self._words.buffer.at_or_before(time)
        return '' if found is None else self._text(found[1])

    def _text(self, data: Any) -> str:
        """Return words that were pushed as a message, serialized or not, or as text."""
        if isinstance(data, str):
            return data
        inlet = self._words
        if inlet.decoded is None or inlet.decoded[0] is not data:
            inlet.decoded = data, str(self._message(inlet, data).data).strip()
        return inlet.decoded[1]

    def _message(self, inlet: Inlet, data: Any) -> Any:
        if not isinstance(data, bytes):
            return data
        if self._decode is not None:
            return self._decode(inlet.label, data)
        try:
            return typestore().deserialize_cdr(data, inlet.kind)
        except Exception as error:  # bytes from anywhere make the parser raise anything
            raise DataError(f'{inlet.label}: damaged message: {in_one_line(error)}') from error

    def _make_room(self) -> list[AlignedFrame]:
        """Decide without patience, then without the streams that have stopped.

        Before the grid has begun, and of what is not aligned, the older half goes.
        """
        frames = self._advance(self._horizon(0))
        if self.held <= self._budget:
            return frames
        fullest = max(self._all(), key=lambda inlet: inlet.held)
        middle = fullest.buffer.middle
        if self._next is not None and fullest not in (self._status, self._words):
            return frames + self._advance(middle)
        for inlet in self._all() if self._next is None else (fullest,):
            self.held -= inlet.forget(middle)
        return frames
