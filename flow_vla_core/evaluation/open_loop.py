"""How far chunks lie from the commands that were really sent, live and from recorded episodes alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flow_vla_core.align import StreamBuffer
from flow_vla_core.contract import RobotContract
from flow_vla_core.data.episode import Episode
from flow_vla_core.types import ActionChunk, Generated, Observation

__all__ = ['CommandLog', 'Comparison', 'OpenLoop', 'compare_episode', 'value_names']

REMEMBERED = 4096  # commands of each part
WAITING = 256      # chunks that wait for the commands of their last steps


class Chunker(Protocol):
    """Is what is needed of an engine."""

    def act(self, observation: Observation) -> Generated:
        """Return a chunk of actions (H, A)."""


@dataclass(frozen=True)
class Comparison:
    """Holds how far one chunk lies from what was done.

    Args:
        chunk: that was made.
        errors: (n, A) float64 absolute differences in the contract's units, for its first n actions.
        mean: over all of them, each divided by its scale.
        checkpoint: of the policy.
    """

    chunk: ActionChunk
    errors: np.ndarray
    mean: float
    checkpoint: str = ''


class CommandLog:
    """Keeps the commands of every action part, and says which ones were in force at a time.

    Args:
        contract: says which parts.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> log = CommandLog(RobotContract.load(find_contract('metaworld')))
        >>> log.push('ee', 100, np.zeros(3))
        >>> log.push('gripper', 50, np.ones(1))
        >>> log.known_until, log.at(60), log.at(120).tolist()
        (50, None, [0.0, 0.0, 0.0, 1.0])
    """

    def __init__(self, contract: RobotContract) -> None:
        self._buffers = {part.name: StreamBuffer(REMEMBERED) for part in contract.actions}

    @property
    def known_until(self) -> int | None:
        """Time up to which no further command can come, ns: the oldest of the parts' newest stamps."""
        newest = [buffer.newest for buffer in self._buffers.values()]
        return None if None in newest else min(newest)

    def push(self, part: str, stamp: int, values: np.ndarray) -> None:
        """Add a command (dim,) of an action part."""
        self._buffers[part].push(stamp, values)

    def at(self, time: int) -> np.ndarray | None:
        """Return the commands in force at a time, (A,); None while one is missing."""
        found = [buffer.at_or_before(time) for buffer in self._buffers.values()]
        return None if None in found else np.concatenate([values for _, values in found])

    def clear(self) -> None:
        """Forget every command."""
        for buffer in self._buffers.values():
            buffer.clear()


class OpenLoop:
    """Holds chunks back until the commands of all their steps are known, then compares.

    Action i of a chunk is compared with the commands in force at ``stamp + i * dt``: the newest of each part at or
    before it, the same that training takes.

    Args:
        contract: of the robot.
    """

    def __init__(self, contract: RobotContract) -> None:
        self.log = CommandLog(contract)
        self._waiting: deque[tuple[ActionChunk, np.ndarray, str]] = deque()

    def add(self, chunk: ActionChunk, scale: np.ndarray, checkpoint: str = '') -> None:
        """Take in a chunk, with the scale (A,) of each action value and the policy that it is from."""
        self._waiting.append((chunk, scale, checkpoint))

    def take(self) -> list[Comparison]:
        """Return the comparisons that have become possible, in the order of the chunks."""
        known = self.log.known_until
        done = []
        while self._waiting and ((known is not None and _last(self._waiting[0][0]) <= known)
                                 or len(self._waiting) > WAITING):
            done.append(self._compare(*self._waiting.popleft()))
        return [comparison for comparison in done if comparison is not None]

    def finish(self) -> list[Comparison]:
        """Compare what waits as far as commands are known, and forget all of them: an episode is over."""
        done = [self._compare(*item) for item in self._waiting]
        self._waiting.clear()
        self.log.clear()
        return [comparison for comparison in done if comparison is not None]

    def _compare(self, chunk: ActionChunk, scale: np.ndarray, checkpoint: str) -> Comparison | None:
        known = self.log.known_until
        times = chunk.stamp + np.arange(chunk.horizon) * chunk.dt
        commands = [self.log.at(int(time)) for time in times if known is not None and time <= known]
        rows = [command for command in commands if command is not None]
        if not rows or len(rows) < len(commands):
            return None
        return compare(chunk, np.stack(rows), scale, checkpoint)


def compare(chunk: ActionChunk, commands: np.ndarray, scale: np.ndarray, checkpoint: str = '') -> Comparison:
    """Compare the first n actions of a chunk with commands (n, A)."""
    errors = np.abs(chunk.actions[:len(commands)].astype(np.float64) - commands)
    return Comparison(chunk, errors, float((errors / scale).mean()), checkpoint)


def compare_episode(engine: Chunker, episode: Episode, contract: RobotContract, stamps: Sequence[int],
                    scale: np.ndarray) -> Iterator[Comparison]:
    """Let an engine answer a recorded episode at some of its grid times, in their order, and compare.

    Args:
        engine: answers.
        episode: whose actions are the commands in force.
        contract: of the robot.
        stamps: grid times, ns; those without enough history or not in the episode are left out.
        scale: (A,) of each action value.
    """
    places = {int(stamp): index for index, stamp in enumerate(episode.stamps)}
    for number, stamp in enumerate(stamps, 1):
        place = places.get(int(stamp), -1)
        if place + 1 < contract.history:
            continue
        made = engine.act(_observation(episode, place, contract.history)).actions
        chunk = ActionChunk(int(stamp), contract.rates.policy_dt_ns, made, number, episode.instruction)
        yield compare(chunk, episode.actions[place:place + len(made)].astype(np.float64), scale)


def value_names(contract: RobotContract) -> list[str]:
    """Name every value of the action vector, ``part.name``."""
    return [f'{part.name}.{name}' for part in contract.actions for name in part.names]


def _observation(episode: Episode, place: int, history: int) -> Observation:
    seen = slice(place + 1 - history, place + 1)
    return Observation(int(episode.stamps[place]), {name: images[seen] for name, images in episode.images.items()},
                       episode.state[seen], episode.instruction)


def _last(chunk: ActionChunk) -> int:
    return chunk.stamp + (chunk.horizon - 1) * chunk.dt
