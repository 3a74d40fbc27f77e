"""A leader arm that a person moves, and the robot follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import math

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, StateInvalid, StateNotFinite, StreamMissing, closest
from flow_vla_core.execution.braking import stopping_speed
from flow_vla_core.teleoperation.axes import axes_of, brisk_accelerations, largest_rates, ranges
from flow_vla_core.teleoperation.chunks import ChunkSeries
from flow_vla_core.teleoperation.memory import FadingMemory
from flow_vla_core.teleoperation.settings import check_axes, check_range
from flow_vla_core.types import ActionChunk

__all__ = ['Joint', 'Leader', 'LeaderSettings', 'usual_joints']

MET = 1e-3       # of the way of a second at the largest velocity: so near the leader has been met
TRAVEL = 0.5     # s from one end to the other of a value without a velocity limit
MEMORY = 60.0    # 1/s: what was seen of the leader fades as exp(-MEMORY t)
GENTLE = 0.6     # of what a released stick brakes with: so the robot stops beside a leader that stands
AHEAD = 0.15     # s that the robot goes on as the leader moved when it was last seen


@dataclass(frozen=True)
class Joint:
    r"""Maps a joint of the leader to a value of the robot: :math:`scale \cdot q + offset`, or one range to another.

    Args:
        leader: joint's name in the leader's JointState.
        moves: axis of the robot, ``PART.NAME``.
        scale: factor.
        offset: in the contract's unit.
        range: the leader's values, low and high, that become the contract's ``min`` and ``max``; for grippers.
            ``scale`` and ``offset`` do not count then.
    """

    leader: str
    moves: str
    scale: float = 1.0
    offset: float = 0.0
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.range is not None and self.range[0] == self.range[1]:
            raise ConfigError(f'joints: {self.leader}: range: {self.range} has no width')


@dataclass(frozen=True)
class LeaderSettings:
    """Says how a leader arm is followed.

    Args:
        joints: which joint moves what; the same names if empty.
        near: leader and robot may be so far apart when it takes over, in the unit of each joint.
        blend: if they are not, the robot closes in with this share of its largest velocities; 0: it is refused.
        timeout: without a message for so long the leader counts as lost, s.
        reach: a chunk says how to go on for so long if nothing follows it, s.
    """

    joints: tuple[Joint, ...] = ()
    near: float = 0.15
    blend: float = 0.0
    timeout: float = 0.25
    reach: float = 0.2

    def __post_init__(self) -> None:
        check_range('near', self.near, 0, 10)
        check_range('blend', self.blend, 0, 1)
        check_range('timeout', self.timeout, 0.02, 1)
        check_range('reach', self.reach, 0.05, 0.5)


class Leader:
    """Turns the joints of a leader into chunks of positions for the robot, no faster than its limits.

    `start` compares the two. If they are too far apart it refuses, or, with ``blend``, lets the robot close in slowly
    before it follows at full speed. What is left to a leader that was too fast is made up with a speed from which the
    robot can stop beside it. A chunk goes on as the leader moves, for a while, so that the robot doesn't lag behind.

    Args:
        contract: all its parts must be joint positions or grippers.
        settings: which joint moves what, and how near they have to be.

    Raises:
        ConfigError: if the contract has another part, or the settings leave a value of it without a joint.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('so101'))
        >>> leader = Leader(contract, LeaderSettings(near=0.2))
        >>> robot = np.zeros(6)
        >>> posture = {name: 0.1 for name in contract.state[0].names}
        >>> leader.start(leader.target(posture), robot)
        >>> leader.chunk(leader.target(posture), now=0).actions[0].round(3).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        >>> leader.start(leader.target({**posture, 'elbow_flex': 1.0}), robot)
        Traceback (most recent call last):
        flow_vla_core.errors.StateInvalid: leader and robot are too far apart: arm.elbow_flex by 1; allowed: 0.2
    """

    def __init__(self, contract: RobotContract, settings: LeaderSettings | None = None) -> None:
        self._contract, self._settings = contract, settings or LeaderSettings()
        self.axes = axes_of(contract)
        for part in contract.actions:
            if part.kind not in ('joint_position', 'gripper'):
                raise ConfigError(f'actions.{part.name}: a leader arm moves joint positions and grippers, this is '
                                  f'{part.kind!r}')
        joints = self._settings.joints or usual_joints(contract)
        check_axes((joint.moves for joint in joints), self.axes, 'joints')
        self._joints = {joint.moves: joint for joint in joints}
        if missing := [axis for axis in self.axes if axis not in self._joints]:
            raise ConfigError(f'joints: nothing moves {missing[0]}')
        self._low, self._high = ranges(contract)
        self._top, self._acceleration = largest_rates(contract, TRAVEL), GENTLE * brisk_accelerations(contract)
        self._series = ChunkSeries(contract, self._settings.reach)
        self.stop()

    @property
    def started(self) -> bool:
        """Whether the robot follows."""
        return self._goal is not None

    @property
    def met(self) -> bool:
        """Whether the robot has closed in on the leader."""
        return self._met

    def target(self, positions: Mapping[str, float]) -> np.ndarray:
        """Map the leader's joints, name -> position, to the contract's values (A,), inside their ranges.

        Raises:
            StateInvalid: if a joint is missing.
            StateNotFinite: if a position is NaN or infinite.
        """
        return np.clip([self._mapped(axis, positions) for axis in self.axes], self._low, self._high)

    def start(self, target: np.ndarray, robot: np.ndarray) -> None:
        """Begin to follow from the robot's values (A,), NaN where nothing is known; there the leader's count.

        Raises:
            StateInvalid: if they are too far apart and may not be blended.
            StreamMissing: if a joint of the robot is not known; a gripper may be.
        """
        self._check_known(robot)
        robot = np.where(np.isfinite(robot), robot, target)
        apart = np.where(self._grippers(), 0.0, np.abs(target - robot))
        if not self._settings.blend and (apart > self._settings.near).any():
            worst = int(np.argmax(apart))
            raise StateInvalid(f'leader and robot are too far apart: {self.axes[worst]} by {apart[worst]:.3g}; '
                               f'allowed: {self._settings.near:g}')
        self._goal, self._seen = np.clip(robot, self._low, self._high), target
        self._met, self._memory = bool((apart <= self._settings.near).all()), FadingMemory(self._goal, MEMORY)
        self._series.begin_anew()

    def stop(self) -> None:
        """Follow no more."""
        self._goal: np.ndarray | None = None
        self._met = False

    def chunk(self, target: np.ndarray, now: int, seen: int | None = None) -> ActionChunk:
        """Make the chunk for a time.

        Args:
            target: (A,) the leader's values, as `target` maps them.
            now: ROS time, ns; the stamp.
            seen: when the leader was there, ROS time, ns; now if None. The same time again adds nothing.
        """
        seen = now if seen is None else min(seen, now)
        elapsed = self._series.elapsed(seen)
        if elapsed > 0:
            self._goal = self._followed(target, elapsed)
            self._memory.see(self._goal, elapsed)
            self._seen = target
        self._met = self._met or bool((np.abs(target - self._goal) <= MET * self._top).all())
        ahead = self._ahead((now - seen) * 1e-9)
        return self._series.make(now, np.clip(self._memory.values + ahead, self._low, self._high))

    def _ahead(self, age: float) -> np.ndarray:
        """Compute how far (H, A) it goes on from where it was seen ``age`` s ago: an even acceleration, then rest."""
        times = np.minimum(age + np.arange(self._series.horizon) * self._series.step, AHEAD)[:, None]
        ways = times * (self._memory.rates + times * self._memory.curvatures / 2)
        fastest = self._top * np.diff(times, axis=0, prepend=0.0)
        return np.cumsum(np.clip(np.diff(ways, axis=0, prepend=0.0), -fastest, fastest), axis=0)

    def _followed(self, target: np.ndarray, elapsed: float) -> np.ndarray:
        """Move the goal with the leader, and nearer to it, within the velocities."""
        pace = elapsed * self._top * (1.0 if self._met else self._settings.blend)
        carried = np.clip(target - self._seen, -pace, pace)
        left = target - self._goal - carried
        closer = np.sign(left) * elapsed * stopping_speed(np.abs(left), self._acceleration, elapsed)
        return self._goal + np.clip(carried + closer, -pace, pace)

    def _mapped(self, axis: str, positions: Mapping[str, float]) -> float:
        joint, index = self._joints[axis], self.axes.index(axis)
        if joint.leader not in positions:
            raise StateInvalid(f'the leader has no joint {joint.leader!r}; {closest(joint.leader, positions)}')
        value = float(positions[joint.leader])
        if not math.isfinite(value):
            raise StateNotFinite(f"the leader's joint {joint.leader} is {value}")
        if joint.range is None:
            return joint.scale * value + joint.offset
        share = (value - joint.range[0]) / (joint.range[1] - joint.range[0])
        return self._low[index] + share * (self._high[index] - self._low[index])

    def _check_known(self, robot: np.ndarray) -> None:
        unknown = np.flatnonzero(~np.isfinite(robot) & ~self._grippers())
        if unknown.size:
            raise StreamMissing(f'where {self.axes[unknown[0]]} is has neither been commanded nor measured yet')

    def _grippers(self) -> np.ndarray:
        return np.concatenate([np.full(part.dim, part.kind == 'gripper') for part in self._contract.actions])


def usual_joints(contract: RobotContract) -> tuple[Joint, ...]:
    """Let each of the leader's joints move the robot's of the same name."""
    return tuple(Joint(name, f'{part.name}.{name}') for part in contract.actions for name in part.names)
