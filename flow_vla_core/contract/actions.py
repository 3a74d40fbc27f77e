"""What a robot is told: parts of the action vector, their limits and their commands."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flow_vla_core.contract.parts import Name, Number, Part, Positive, unique
from flow_vla_core.errors import closest

__all__ = ['ActionKind', 'ActionPart', 'Goals', 'Limits', 'Trajectory']

ActionKind = Literal['joint_position', 'joint_velocity', 'ee_pose', 'ee_delta', 'ee_twist', 'gripper']
ActionMessage = Literal['geometry_msgs/TwistStamped', 'geometry_msgs/PoseStamped',
                        'trajectory_msgs/JointTrajectory', 'std_msgs/Float64MultiArray',
                        'control_msgs/action/GripperCommand', 'control_msgs/action/ParallelGripperCommand']
TWIST_AXES = ('x', 'y', 'z', 'rx', 'ry', 'rz')


class Limits(Part):
    """Bounds one action part; every list has one number for each of its names.

    Args:
        min: smallest value, in the part's unit.
        max: largest value.
        velocity: largest rate of change of a position, unit/s; for a twist or a joint velocity, of the value itself.
        acceleration: largest change of the velocity, unit/s^2.
        jerk: largest change of the acceleration, unit/s^3.
        workspace_min: corner of the box that the end effector stays in, m (end-effector kinds).
        workspace_max: opposite corner, m.
    """

    min: tuple[Number, ...] | None = None
    max: tuple[Number, ...] | None = None
    velocity: tuple[Positive, ...] | None = None
    acceleration: tuple[Positive, ...] | None = None
    jerk: tuple[Positive, ...] | None = None
    workspace_min: tuple[Number, Number, Number] | None = None
    workspace_max: tuple[Number, Number, Number] | None = None

    @model_validator(mode='after')
    def _ordered(self) -> Limits:
        _below('min', self.min, 'max', self.max)
        _below('workspace_min', self.workspace_min, 'workspace_max', self.workspace_max)
        return self


class Trajectory(Part):
    """Says how a trajectory controller is told.

    Args:
        lead: time in which it is to reach a command, s; one control period if None.
        start: what ``header.stamp`` of a command says: ``stamp``, the time of the command, which wants the clocks of
            both machines to agree; or ``now``, zero, that is from when it arrives.
    """

    lead: Positive | None = None
    start: Literal['stamp', 'now'] = 'stamp'


class Goals(Part):
    """Says when a gripper is sent a goal, and with what force.

    Args:
        threshold: least change between two goals, in the part's unit; 1 % of its range if None.
        rate: largest rate of goals, Hz.
        effort: largest force or torque, N or Nm; 0 leaves it to the gripper.
    """

    threshold: Positive | None = None
    rate: Annotated[Positive, Field(le=100)] = 5.0
    effort: Annotated[Number, Field(ge=0)] = 0.0


class ActionPart(Part):
    """Describes one part of the action vector and the command that it becomes.

    Args:
        name: how the policy calls it.
        kind: what the numbers mean.
        names: joints, or axes out of x, y, z, rx, ry, rz.
        unit: of the numbers.
        limits: bounds, applied last by the executor.
        message: type of the command; of the goals, if it is an action.
        topic: where the command goes; the name of an action.
        frame: frame_id of a stamped command.
        position_from: state stream that measures the end effector's position, for the workspace box.
        trajectory: details of a JointTrajectory.
        goals: details of an action.
    """

    name: Name
    kind: ActionKind
    names: Annotated[tuple[Name, ...], Field(min_length=1)]
    unit: Name
    limits: Limits
    message: ActionMessage
    topic: Name
    frame: str = ''
    position_from: str | None = None
    trajectory: Trajectory | None = None
    goals: Goals | None = None

    @property
    def dim(self) -> int:
        """Number of values."""
        return len(self.names)

    @property
    def is_action(self) -> bool:
        """Whether it is commanded by goals of an action, not by messages on a topic."""
        return '/action/' in self.message

    @model_validator(mode='after')
    def _consistent(self) -> ActionPart:
        unique('names', self.names)
        for key in ('min', 'max', 'velocity', 'acceleration', 'jerk'):
            values = getattr(self.limits, key)
            if values is not None and len(values) != self.dim:
                raise ValueError(f'limits.{key} has {len(values)} values, names has {self.dim}')
        if self.kind in ('ee_twist', 'joint_velocity'):
            _need(self.limits, self.kind, 'velocity')
        else:
            _need(self.limits, self.kind, 'min', 'max')
        if self.kind.startswith('ee_') and (wrong := [n for n in self.names if n not in TWIST_AXES]):
            raise ValueError(f'names: {wrong[0]!r} is no axis; {closest(wrong[0], TWIST_AXES)}')
        if self.limits.workspace_min is not None and self.position_from is None:
            raise ValueError('position_from is needed for a workspace box: the state stream that measures the position')
        self._check_message()
        return self

    def _check_message(self) -> None:
        if self.trajectory is not None and not self.message.endswith('/JointTrajectory'):
            raise ValueError(f'trajectory goes with trajectory_msgs/JointTrajectory, not with {self.message}')
        if self.goals is not None and not self.is_action:
            raise ValueError(f'goals go with an action of control_msgs, not with {self.message}')
        if self.is_action and (self.kind != 'gripper' or self.dim != 1):
            raise ValueError(f"{self.message} is for the kind 'gripper' with one name; "
                             f'this is {self.kind!r} with {self.dim}')


def _below(low_key: str, low: tuple | None, high_key: str, high: tuple | None) -> None:
    if (low is None) != (high is None):
        raise ValueError(f'{low_key} and {high_key} go together: give both or none')
    if low is not None and len(low) != len(high):
        raise ValueError(f'{low_key} has {len(low)} values, {high_key} has {len(high)}')
    for index, (a, b) in enumerate(zip(low or (), high or ())):
        if a > b:
            raise ValueError(f'{low_key}[{index}] = {a} is above {high_key}[{index}] = {b}')


def _need(limits: Limits, kind: str, *keys: str) -> None:
    for key in keys:
        if getattr(limits, key) is None:
            raise ValueError(f'limits.{key} is needed for the kind {kind!r}')
