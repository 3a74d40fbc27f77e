"""Chunk streams that try to get a command past a bound, and the trial that counts whether one did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import time

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract
from flow_vla_core.errors import ChunkError
from flow_vla_core.evaluation.audit import Audit
from flow_vla_core.execution import ChunkFollower, ExecutionState
from flow_vla_core.execution.limits import RATES
from flow_vla_core.types import ActionChunk

__all__ = ['Adversary', 'BoundsTrial', 'TrialResult']

SHAPES = ('walk', 'bang', 'sinusoid', 'hold', 'noise', 'huge', 'not finite')
SHARES = (0.35, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05)
START = 10 ** 12    # ns


class Adversary:
    """Draws chunks: walks at the limit, bang-bang in every action, sinusoids, plateaus, noise, absurd numbers, NaN.

    Args:
        contract: says the parts and their limits.
        rng: source of all randomness.
    """

    def __init__(self, contract: RobotContract, rng: np.random.Generator) -> None:
        self._contract, self._rng, self._id = contract, rng, 0
        dt = contract.rates.policy_dt
        self._low, self._high, self._step = (np.concatenate(values) for values in zip(
            *(_ranges(part, dt) for part in contract.actions)))

    def chunk(self, now: int, last: np.ndarray) -> ActionChunk:
        """Make a chunk for about now, near the last command (A,) if its shape is one that begins somewhere."""
        rng, dt = self._rng, self._contract.rates.policy_dt_ns
        self._id += 1
        actions = self._actions(int(rng.integers(1, 17)), last)
        confidence = rng.choice([np.nan, rng.random()])
        stamp = now + int(rng.integers(-3 * dt, dt // 2))
        return ActionChunk(stamp, dt, actions.astype(np.float32), id=self._id, confidence=float(confidence))

    def _actions(self, horizon: int, last: np.ndarray) -> np.ndarray:
        """Draw actions (H, A)."""
        rng, size = self._rng, (horizon, len(last))
        shape = rng.choice(SHAPES, p=SHARES)
        scale = self._step * rng.uniform(0.1, 2.9)
        if shape == 'walk':
            return last + np.cumsum(rng.choice([-1.0, 0.0, 1.0], size=len(last)) * scale * rng.random(size), 0)
        if shape == 'bang':
            return last + scale * rng.choice([-0.5, 0.5], size=size)
        if shape == 'sinusoid':
            phase = rng.uniform(0, 2 * np.pi) + np.arange(horizon)[:, None] * rng.uniform(0.05, 3)
            return last + scale * (np.sin(phase) - np.sin(phase[0]))
        if shape == 'hold':
            level = np.clip(last + scale * rng.normal(size=len(last)), self._low, self._high)
            return np.tile(level, (horizon, 1))
        noise = rng.uniform(self._low, self._high, size)
        if shape == 'not finite':
            noise[rng.integers(horizon), rng.integers(len(last))] = rng.choice([np.nan, np.inf, -np.inf])
        return noise * 1e6 if shape == 'huge' else noise


@dataclass(frozen=True)
class TrialResult:
    """Holds what a trial found.

    Args:
        commands: so many were published.
        followed: of them, while a plan was followed.
        accepted: chunks.
        refused: chunks.
        violations: what was violated -> how often.
        seconds: CPU time of computing one command, mean.
    """

    commands: int
    followed: int
    accepted: int
    refused: int
    violations: Mapping[str, int]
    seconds: float


class BoundsTrial:
    """Plays an adversary against a follower, with stops, late ticks, changes of speed and jumps of the clock.

    The robot goes exactly where it is told, so that the workspace of a velocity can be checked at its position.

    Args:
        contract: of the robot.
        seed: of all randomness.
        control_hz: of commands; the contract's if None.
        follower: further arguments of `ChunkFollower`.
    """

    def __init__(self, contract: RobotContract, seed: int, control_hz: float | None = None,
                 **follower: object) -> None:
        self._contract, self._rng = contract, np.random.default_rng(seed)
        self._adversary = Adversary(contract, self._rng)
        hertz = control_hz or contract.rates.control_hz
        self._period = round(1e9 / hertz)
        self._follower = ChunkFollower(contract, control_hz=hertz, **follower)
        self._audit = Audit(contract, self._period * 1e-9)
        self._now, self._last = START, np.zeros(contract.action_dim)
        self._position = np.mean(_boxes(contract), axis=0)
        self._followed = self._accepted = self._refused = 0

    def run(self, commands: int) -> TrialResult:
        """Publish so many commands."""
        spent = 0.0
        for _ in range(commands):
            elapsed = self._happen()
            blind = self._rng.random() < 0.02
            begin = time.process_time()
            command = self._follower.command(self._now, {} if blind else self._measured())
            spent += time.process_time() - begin
            self._audit.check(command, elapsed)
            self._followed += command.state == ExecutionState.FOLLOWING
            self._last = command.values.astype(np.float64)
        return TrialResult(self._audit.commands, self._followed, self._accepted, self._refused,
                           dict(self._audit.violations), spent / commands)

    def _happen(self) -> float:
        """Let one tick pass and something happen; return the time since the last command, s, at most a period."""
        rng, follower = self._rng, self._follower
        draw = rng.random()
        span = self._period
        if draw < 0.1:
            self._send()
        elif draw < 0.12:
            span = int(span * rng.choice([0.0, 0.5, 1.4, 7.0]))
        elif draw < 0.125:
            follower.estop()
        elif draw < 0.15:
            follower.reset_estop()
        elif draw < 0.16:
            follower.speed = float(rng.choice([0.0, 0.3, 1.0, 1.0, rng.random()]))
        elif draw < 0.162:
            follower.drop_plan()
        elif draw < 0.163:
            self._now -= int(rng.integers(1, 10 ** 9)) + span
            return self._move(self._period)
        self._now += span
        return self._move(min(span, self._period))

    def _send(self) -> None:
        try:
            self._accepted += self._follower.accept(self._adversary.chunk(self._now, self._last), self._now)
        except ChunkError:
            self._refused += 1

    def _move(self, span: int) -> float:
        """Move the robot at the velocities that it was told."""
        for part, place in zip(self._contract.actions, self._contract.action_slices.values()):
            if part.kind in ('ee_twist', 'ee_delta'):
                scale = span * 1e-9 if part.kind == 'ee_twist' else span / self._period
                for name, value in zip(part.names, self._last[place]):
                    if name in 'xyz':
                        self._position['xyz'.index(name)] += value * scale
        self._check_workspace()
        return span * 1e-9

    def _check_workspace(self) -> None:
        low, high = _boxes(self._contract)
        if (self._position < low - 1e-6).any() or (self._position > high + 1e-6).any():
            self._audit.violations['position of the end effector: workspace'] += 1

    def _measured(self) -> dict[str, np.ndarray]:
        """Measure the end effector where it is, and joints where they were told to be."""
        joints = {name: value for part, place in zip(self._contract.actions, self._contract.action_slices.values())
                  for name, value in zip(part.names, self._last[place])}
        streams = {stream.name: np.array([joints.get(name, 0.0) for name in stream.names])
                   for stream in self._contract.state}
        return streams | {part.position_from: self._position.copy() for part in self._contract.actions
                          if part.position_from is not None}


def _ranges(part: ActionPart, dt: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return range and step of the values of a part."""
    limits = part.limits
    if part.kind in RATES and limits.velocity is not None:
        high = np.array(limits.velocity) * (dt if part.kind == 'ee_delta' else 1)
        return -high, high, high
    low, high = np.array(limits.min), np.array(limits.max)
    velocity = (high - low) / dt / 4 if limits.velocity is None else np.array(limits.velocity)
    return low, high, velocity * dt


def _boxes(contract: RobotContract) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (3,) of the workspace that all velocities of the end effector share."""
    low, high = np.full(3, -1e9), np.full(3, 1e9)
    for part in contract.actions:
        if part.limits.workspace_min is not None and part.kind in RATES:
            low, high = np.maximum(low, part.limits.workspace_min), np.minimum(high, part.limits.workspace_max)
    return low, high
