"""Follows action chunks and turns them into bounded commands."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import Code, ConfigError
from flow_vla_core.execution.admission import Admission
from flow_vla_core.execution.command import Command, ExecutionState
from flow_vla_core.execution.interpolation import InterpolationName, Interpolator
from flow_vla_core.execution.limits import RATES, make_limiter
from flow_vla_core.execution.motion import Motion
from flow_vla_core.execution.plan_clock import PlanClock
from flow_vla_core.execution.schedules import Plan, ScheduleName, make_schedule
from flow_vla_core.execution.sources import measured_by, position_of
from flow_vla_core.types import ActionChunk

__all__ = ['ChunkFollower']

CAREFUL = 0.5       # speed of a plan that the policy is not sure of
ROUNDING = 1e-6


class ChunkFollower:
    """Follows chunks by a schedule, interpolates their actions, and bounds what comes out, last of all.

    When the plan has run out, or may no longer be trusted, the robot is slowed down within its limits and held. An
    emergency stop drops the plan and latches. When time goes backwards the plan is dropped. Positions that a state
    stream measures begin there: until it has come, nothing is followed.

    At a speed below 1 the clock of the plans runs slower by that factor, from now on, and velocities are as much
    smaller: the robot takes the same way in more time. At 0 it holds. A plan ends at its own time all the same.

    Args:
        contract: says the parts of the action vector and their limits.
        control_hz: of `command`; the contract's if None.
        schedule: which actions of which chunks are due: ``asynchronous``, ``synchronous`` or ``ensembling``.
        interpolation: between actions: ``auto``, ``linear``, ``cubic`` or ``hold``, as of `Interpolator`.
        future_tolerance: a chunk may be stamped this far ahead of the clock, ns; one policy step if None.
        trust: a chunk is followed for so long after its first action is due, ns; to its end if None.
        execute: actions of a chunk that ``synchronous`` executes; all if None.
        least_confidence: a chunk that is less sure is refused; one that does not say counts as 0.
        careful_below: a chunk that is less sure is followed at half speed.

    Raises:
        ConfigError: if one of these is unknown or out of range.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> follower = ChunkFollower(RobotContract.load(find_contract('metaworld')))
        >>> actions = np.full((2, 4), 0.1, np.float32)
        >>> follower.accept(ActionChunk(stamp=0, dt=50_000_000, actions=actions), now=0)
        True
        >>> command = follower.command(0, {'ee_position': np.array([0.0, 0.6, 0.2])})
        >>> command.state.name, command.values[:3].tolist() == actions[0, :3].tolist()
        ('FOLLOWING', True)
    """

    def __init__(self, contract: RobotContract, *, control_hz: float | None = None,
                 schedule: ScheduleName = 'asynchronous', interpolation: InterpolationName = 'auto',
                 future_tolerance: int | None = None, trust: int | None = None, execute: int | None = None,
                 least_confidence: float = 0.0, careful_below: float = 0.0) -> None:
        self._contract, self._trust = contract, trust
        self._dt = contract.rates.policy_dt_ns
        self._careful_below = _fraction('careful_below', careful_below)
        self._period = 1 / (control_hz or contract.rates.control_hz)
        self._admission = Admission(contract, self._dt if future_tolerance is None else future_tolerance,
                                    _fraction('least_confidence', least_confidence))
        self._interpolator = Interpolator(contract, interpolation)
        self._schedule = make_schedule(schedule, self._interpolator.rotations, execute)
        limiters = [make_limiter(part, self._period, contract.rates.policy_dt) for part in contract.actions]
        self._parts = list(zip(contract.actions, contract.action_slices.values(), limiters))
        self._names = tuple(part.name for part in contract.actions)
        self._rates = np.concatenate([np.full(part.dim, part.kind in RATES) for part in contract.actions])
        self._sources = [measured_by(part, contract) for part in contract.actions]
        self._clock, self._speed, self._stopped = PlanClock(), 1.0, False
        self.clear()

    @property
    def plan(self) -> ActionChunk | None:
        """The newest chunk in force."""
        return self._plans[-1].chunk if self._plans else None

    @property
    def needs(self) -> frozenset[str]:
        """Names of the state streams that `command` makes use of."""
        boxes = {part.position_from for part, _, limiter in self._parts if limiter.needs_position}
        return frozenset(boxes | {source[0] for source in self._sources if source is not None})

    @property
    def moving(self) -> bool:
        """Whether the last command was not rest."""
        return any(limiter.moving for _, _, limiter in self._parts)

    @property
    def speed(self) -> float:
        """Scale of motion that was asked for, 0 to 1; it counts from the next command on."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = _fraction('speed', speed)

    def clear(self) -> None:
        """Forget plan and motion; an emergency stop and the speed stay."""
        self._plans: tuple[Plan, ...] = ()
        self._now: int | None = None
        self._began = False
        self._jumped = False
        self._clock.clear()
        for _, _, limiter in self._parts:
            limiter.clear()

    def drop_plan(self) -> None:
        """Slow down and hold until the next chunk."""
        self._plans = ()

    def estop(self) -> None:
        """Drop the plan, slow down and hold until `reset_estop`."""
        self._stopped, self._plans = True, ()

    def reset_estop(self) -> None:
        """Wait for a new chunk."""
        self._stopped = False

    def accept(self, chunk: ActionChunk, now: int, *, anew: bool = False) -> bool:
        """Put a chunk into force; tell whether it is, which it isn't during an emergency stop.

        Args:
            chunk: to follow.
            now: ROS time, ns.
            anew: it is somebody else's: the plans in force are neither continued nor blended with it.

        Raises:
            ChunkShape: if it is not (H, A) with H at least 1.
            ChunkNotFinite: if it holds NaN or infinity.
            ChunkStep: if its step is not the contract's.
            ChunkUnsure: if its confidence is below the least.
            ChunkJump: if no robot within the limits can join its actions, or reach the one that is due.
            ChunkFromFuture: if it is stamped ahead of ``now``.
            ChunkTooOld: if all its actions lie in the past, or it is older than the chunk in force.
        """
        self._admission.check_content(chunk)
        self._notice_jump(now)
        begin, end = self._schedule.span(chunk, now)
        end = end if self._trust is None else min(end, begin + self._trust)
        sure = not self._careful_below or chunk.confidence >= self._careful_below
        plan = Plan(chunk, self._interpolator(chunk.actions), begin, end, (now - chunk.stamp) / self._dt, sure)
        before = () if anew else self._plans
        self._admission.check_times(plan, before[-1] if before else None, now)
        self._admission.check_start(plan, self._asked_by(plan, now).values,
                                    [limiter.last for _, _, limiter in self._parts], now)
        if self._stopped:
            return False
        self._plans, self._began, self._jumped = self._schedule.keep(before, plan), True, False
        return True

    def command(self, now: int, measured: Mapping[str, np.ndarray] | None = None) -> Command:
        """Compute the command for a time, ns; called once in each control period.

        Args:
            now: ROS time, ns.
            measured: state stream -> (n,) in the contract's units; only fresh ones.
        """
        measured = measured or {}
        elapsed = self._advance(now)
        self._start_from(measured)
        code = self._code(now, measured)
        speed = self._speed * (1.0 if not self._plans or self._plans[-1].sure else CAREFUL)
        self._clock.change(now, speed)
        if code == Code.OK and speed > 0:
            return self._follow(now, speed, elapsed, measured)
        return self._rest(code, speed, elapsed, measured)

    def _advance(self, now: int) -> float:
        """Return the time since the last command, s, at most one period: lateness never allows a bigger change."""
        self._notice_jump(now)
        before, self._now = self._now, now
        return self._period if before is None else min((now - before) * 1e-9, self._period)

    def _notice_jump(self, now: int) -> None:
        if self._now is not None and now < self._now:
            self._now, self._plans, self._jumped = None, (), True
            self._clock.clear()

    def _start_from(self, measured: Mapping[str, np.ndarray]) -> None:
        for source, (_, _, limiter) in zip(self._sources, self._parts):
            if source is not None and limiter.last is None and source[0] in measured:
                limiter.start_at(np.append(measured[source[0]], np.nan)[source[1]])

    def _code(self, now: int, measured: Mapping[str, np.ndarray]) -> Code:
        if self._stopped:
            return Code.EMERGENCY_STOP
        if self._jumped:
            return Code.CLOCK_JUMP
        if all(plan.end <= now for plan in self._plans):
            return Code.NO_CHUNK
        lost = any(limiter.needs_position and position_of(part, measured) is None for part, _, limiter in self._parts)
        unknown = any(source is not None and limiter.last is None and source[0] not in measured
                      for source, (_, _, limiter) in zip(self._sources, self._parts))
        return Code.STATE_STALE if lost or unknown else Code.OK

    def _steps(self, plan: Plan, now: int) -> float:
        return max(self._clock.between(plan.begin, now), 0) / self._dt

    def _asked_by(self, plan: Plan, now: int) -> Motion:
        return plan.curve.at(self._steps(plan, now))

    def _follow(self, now: int, speed: float, elapsed: float, measured: Mapping[str, np.ndarray]) -> Command:
        goal = self._schedule.blend([self._asked_by(plan, now) for plan in self._plans if plan.end > now])
        goal = goal.slowed(speed, self._rates)
        goals = [(part, goal[place], limiter) for part, place, limiter in self._parts]
        values = np.concatenate([limiter.follow(wish, elapsed, position_of(part, measured))
                                 for part, wish, limiter in goals])
        wanted = np.concatenate([limiter.unlimited(wish) for _, wish, limiter in goals])
        limited = bool((np.abs(values - wanted) > ROUNDING * (1 + np.abs(wanted))).any())
        plan = self._plans[-1]
        step = min(int(self._steps(plan, now)), plan.chunk.horizon - 1)
        return Command(values.astype(np.float32), self._names,
                       ExecutionState.FOLLOWING, Code.OK, limited, plan.chunk.id, step, plan.chunk.stamp,
                       self._velocities(), plan.chunk.confidence, plan.delay, speed)

    def _rest(self, code: Code, speed: float, elapsed: float, measured: Mapping[str, np.ndarray]) -> Command:
        values = np.concatenate([limiter.rest(elapsed, position_of(part, measured))
                                 for part, _, limiter in self._parts])
        names = tuple(part.name for part, _, limiter in self._parts if limiter.last is not None)
        return Command(values.astype(np.float32), names, self._state_of_rest(), code, velocities=self._velocities(),
                       speed=speed)

    def _state_of_rest(self) -> ExecutionState:
        if self._stopped:
            return ExecutionState.STOPPED
        if self.moving:
            return ExecutionState.SLOWING
        return ExecutionState.HOLDING if self._began else ExecutionState.IDLE

    def _velocities(self) -> np.ndarray:
        return np.concatenate([limiter.rates for _, _, limiter in self._parts]).astype(np.float32)


def _fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f'{name}: {value} is not allowed; allowed: 0 to 1')
    return float(value)
