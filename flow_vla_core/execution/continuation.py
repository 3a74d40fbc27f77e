"""What a new chunk has to continue: the rest of the plan in force, by stamps, and the delay until it comes."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Literal

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.execution.interpolation import Interpolator
from flow_vla_core.types import ActionChunk, Continuation

__all__ = ['ASKED', 'REALTIME', 'Asked', 'DelayWindow', 'Realtime', 'Succession', 'committed', 'continuation',
           'leftover', 'realtime_of']

Realtime = Literal['none', 'guided', 'prefix']
REALTIME: tuple[Realtime, ...] = ('none', 'guided', 'prefix')
Asked = Literal['auto', 'none', 'guided', 'prefix']
ASKED: tuple[Asked, ...] = ('auto', *REALTIME)
SEAM = 2     # actions: a curve through two plans is one as far as it goes by actions that both have
NEAR = 1e-3  # of a step: stamps that are so close to the plan's grid lie on it


class DelayWindow:
    r"""Expects the next chunk to be as late as the latest of the last, :math:`d = \max_k \lceil \tau_k / dt \rceil`.

    A window forgets: one slow inference spoils the next ``size`` chunks and no more (arXiv 2506.07339, algorithm 1).

    Args:
        dt: policy step, ns.
        size: number of delays that count.
        initial: what is expected before anything was measured, policy steps.

    Raises:
        ConfigError: for a window without room, or a negative delay.

    Example:
        >>> window = DelayWindow(dt=50_000_000, size=2)
        >>> window.add(220_000_000)
        5
        >>> window.add(70_000_000), window.add(50_000_000), window.steps
        (2, 1, 2)
    """

    def __init__(self, dt: int, size: int = 10, initial: int = 1) -> None:
        for name, value, least in (('dt', dt, 1), ('size', size, 1), ('initial', initial, 0)):
            if value < least:
                raise ConfigError(f'delay window: {name} is {value}; allowed: {least} or more')
        self._dt, self._initial = dt, initial
        self._last: deque[int] = deque(maxlen=size)

    @property
    def steps(self) -> int:
        """The delay to expect, policy steps."""
        return max(self._last, default=self._initial)

    def add(self, delay: int) -> int:
        """Take in the time from an observation's stamp to its chunk, ns; return it in policy steps, rounded up."""
        self._last.append(max(0, -(-delay // self._dt)))
        return self._last[-1]


def leftover(plan: ActionChunk, stamp: int, contract: RobotContract) -> np.ndarray:
    """Cut what is left of a plan from a time on: (n, A) float32, n = 0 if nothing is.

    Row i is what an executor that interpolates by ``auto`` makes of the plan at ``stamp + i * dt``: between two actions
    positions and velocities are interpolated, grippers and displacements keep the action in force; the plan is not
    continued past its end. Every kind is either absolute or (``ee_delta``) a displacement from wherever the step
    begins, so no row depends on the state at which the plan was made, and the rest stays valid at any later one.

    Args:
        plan: in force.
        stamp: of the new chunk, ns.
        contract: of the robot.
    """
    index = (stamp - plan.stamp) / plan.dt
    if abs(index - round(index)) < NEAR:
        index = round(index)
    if not 0 <= index < plan.horizon:
        return np.empty((0, contract.action_dim), np.float32)
    if index == int(index):
        return plan.actions[int(index):].astype(np.float32)
    curve = Interpolator(contract)(plan.actions)
    return np.stack([curve.at(step).values for step in np.arange(index, plan.horizon)]).astype(np.float32)


def continuation(plan: ActionChunk, stamp: int, delay: int, execute: int,
                 contract: RobotContract) -> Continuation | None:
    """Say what a chunk that is made for ``stamp`` has to continue; None if the plan has nothing left by then.

    With horizon H and n actions left, ``d <= s <= H - d`` and ``d <= n`` hold: a longer delay is cut down to what the
    plan can bridge, which shows as ``result.delay < delay``.

    Args:
        plan: in force.
        stamp: of the new chunk, ns.
        delay: d, policy steps until it is expected to come.
        execute: s, policy steps from one chunk to the next; more if more of the plan is over.
        contract: of the robot.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> plan = ActionChunk(stamp=0, dt=50_000_000, actions=np.zeros((12, 4), np.float32))
        >>> rest = continuation(plan, stamp=250_000_000, delay=2, execute=5, contract=contract)
        >>> len(rest.actions), rest.delay, rest.execute
        (7, 2, 5)
    """
    actions, horizon = leftover(plan, stamp, contract), plan.horizon
    if not len(actions):
        return None
    bridged = min(delay, len(actions), horizon // 2)
    return Continuation(actions, bridged, min(max(execute, horizon - len(actions), bridged), horizon - bridged))


def realtime_of(asked: Asked, engine: object) -> Realtime:
    """Say how chunks of an engine continue each other: as asked or, for ``auto``, in the way that it has chosen.

    `flow_vla_core.engine.Engine` chooses by its policy; an engine that does not say continues nothing.
    """
    return getattr(engine, 'realtime', 'none') if asked == 'auto' else asked


def committed(rest: Continuation) -> Continuation | None:
    """Keep only the actions that are executed in any case, for a chunk that answers other words; None without any."""
    return replace(rest, actions=rest.actions[:rest.delay]) if rest.delay else None


class Succession:
    """Decides when the next chunk is due, and what it has to continue: the chunk that was published last.

    The policy node and the loop in one process both go by it. Where commands go out faster than actions, between two of
    them the robot is on its way to the next one already, as steep as the one after that wants: two actions more than
    the delay are then kept, so that value and slope agree where the executor goes over to the new chunk.

    Args:
        contract: of the robot.
        replan_steps: policy steps from one chunk's stamp to the next one's, at least.
        realtime: how chunks continue each other; ``none`` lets each begin anew.
        window: number of delays that the expected one is taken from.

    Raises:
        ConfigError: for an unknown mode, or a window without room.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> chunks = Succession(contract, replan_steps=5, realtime='prefix')
        >>> plan = ActionChunk(stamp=0, dt=50_000_000, actions=np.zeros((12, 4), np.float32), instruction='go')
        >>> chunks.publish(plan, now=90_000_000)
        2
        >>> chunks.is_due(200_000_000, 'go'), chunks.is_due(250_000_000, 'go')
        (False, True)
        >>> chunks.continuation(250_000_000, 'go').delay
        2
    """

    def __init__(self, contract: RobotContract, replan_steps: int, realtime: Realtime = 'none',
                 window: int = 10) -> None:
        self._contract, self._replan = contract, replan_steps
        self.realtime = realtime
        self._dt = contract.rates.policy_dt_ns
        self._seam = SEAM if contract.rates.control_hz * contract.rates.policy_dt > 1 + NEAR else 0
        self._window = DelayWindow(self._dt, window)
        self.forget()

    @property
    def realtime(self) -> Realtime:
        """How chunks continue each other; may be changed between two of them."""
        return self._realtime

    @realtime.setter
    def realtime(self, realtime: Realtime) -> None:
        if realtime not in REALTIME:
            raise ConfigError(f'realtime: {realtime!r}; {closest(realtime, REALTIME)}')
        self._realtime = realtime

    @property
    def delay(self) -> int:
        """The delay that is expected of the next chunk, policy steps."""
        return self._window.steps

    def forget(self) -> None:
        """Let the next chunk begin anew; what is known of delays stays."""
        self._tried: tuple[int, str] | None = None
        self._plan: ActionChunk | None = None
        self._since, self._disowned = 0, False

    def disown(self, now: int) -> None:
        """Note that at a time, ns, no plan of ours was followed: one from before then has nothing to continue."""
        self._disowned = self._disowned or self._since < now

    def is_due(self, stamp: int, words: str) -> bool:
        """Whether a chunk should be made from the observation of a time, ns: never twice from the same one."""
        if (stamp, words) == self._tried:
            return False
        if self._plan is None or self._plan.instruction != words:
            return True
        return stamp - self._plan.stamp >= self._replan * self._dt

    def begin(self, stamp: int, words: str) -> None:
        """Note that a chunk is being made."""
        self._tried = (stamp, words)

    def continuation(self, stamp: int, words: str) -> Continuation | None:
        """Return what a chunk that is begun now has to continue; of a plan for other words, what can't be undone."""
        if self._realtime == 'none' or self._plan is None or self._disowned:
            return None
        rest = continuation(self._plan, stamp, self.delay + self._seam, self._replan, self._contract)
        return rest if rest is None or self._plan.instruction == words else committed(rest)

    def publish(self, chunk: ActionChunk, now: int) -> int:
        """Put a chunk into force at a time, ns; return the policy steps since its stamp, rounded up."""
        self._plan, self._since, self._disowned = chunk, now, False
        return self._window.add(now - chunk.stamp)
