"""Who drives: the policy, until a person takes over; and then the person, until they let go."""

from __future__ import annotations

from flow_vla_core.errors import ChunkOverruled, ChunkTooOld
from flow_vla_core.execution.command import ExecutionState
from flow_vla_core.types import ActionChunk, Actor

__all__ = ['Authority']


class Authority:
    """Decides whose chunks may be followed.

    A person takes over with their first chunk and keeps control, also while they send nothing, until `release`; the
    policy's chunks are refused meanwhile. After a release, and after `wait`, only chunks count that were made from
    what the robot saw later. When time goes backwards the control stays where it is, and the waiting ends.

    Args:
        hand_back: a person who has sent no chunk for so long is taken to have let go, ns; None: never.

    Example:
        >>> import numpy as np
        >>> authority = Authority()
        >>> def chunk(stamp): return ActionChunk(stamp, 50_000_000, np.zeros((4, 4), np.float32), id=7)
        >>> authority.check(chunk(0), Actor.PERSON, now=0)
        >>> authority.take(Actor.PERSON, now=0)
        >>> authority.check(chunk(0), Actor.POLICY, now=0)
        Traceback (most recent call last):
        flow_vla_core.errors.ChunkOverruled: chunk 7 came while a person drives
        >>> authority.release(now=10), authority.person_drives
        (True, False)
    """

    def __init__(self, hand_back: int | None = None) -> None:
        self._hand_back = hand_back
        self.clear()

    def clear(self) -> None:
        """Let nobody drive, and wait for nothing."""
        self._driver = Actor.NOBODY
        self._heard = self._not_before = 0

    @property
    def person_drives(self) -> bool:
        """Whether a person has taken over and not let go."""
        return self._driver == Actor.PERSON

    def changes(self, actor: Actor) -> bool:
        """Whether the control would pass from another to this actor."""
        return self._driver not in (actor, Actor.NOBODY)

    def check(self, chunk: ActionChunk, actor: Actor, now: int) -> None:
        """Raise `ChunkOverruled` or `ChunkTooOld` if a chunk may not be followed at a time, ns."""
        self._notice_jump(now)
        if actor != Actor.PERSON and self.person_drives:
            raise ChunkOverruled(f'chunk {chunk.id} came while a person drives')
        if chunk.stamp < self._not_before:
            raise ChunkTooOld(f'chunk {chunk.id} was made from what the robot saw before it was told to wait for a '
                              'newer one')

    def take(self, actor: Actor, now: int) -> None:
        """Give the control to whoever sent the chunk that was put into force."""
        self._driver, self._heard = actor, now

    def wait(self, now: int) -> None:
        """Let only chunks count that are made from observations of now or later."""
        self._not_before = now

    def release(self, now: int) -> bool:
        """Take the control from a person, and wait; tell whether a person had it."""
        had = self.person_drives
        if had:
            self._driver = Actor.NOBODY
            self.wait(now)
        return had

    def expired(self, now: int) -> bool:
        """Whether a person has sent nothing for so long that they are taken to have let go."""
        self._notice_jump(now)
        return self.person_drives and self._hand_back is not None and now - self._heard >= self._hand_back

    def source(self, state: ExecutionState) -> Actor:
        """Say who acts while the robot is in a state: a person in control also when it rests, nobody when stopped."""
        if state == ExecutionState.STOPPED:
            return Actor.NOBODY
        if self.person_drives:
            return Actor.PERSON
        return Actor.POLICY if state == ExecutionState.FOLLOWING else Actor.NOBODY

    def _notice_jump(self, now: int) -> None:
        self._not_before = self._not_before if self._not_before <= now else 0
        self._heard = min(self._heard, now)
