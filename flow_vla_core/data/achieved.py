"""Actions from what the robot did later, for bags without commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract, StateStream
from flow_vla_core.data.frames import Frames
from flow_vla_core.errors import DataError

__all__ = ['actions_from_state']

AXES, TURNS, QUATERNION = ('x', 'y', 'z'), ('rx', 'ry', 'rz'), ('x', 'y', 'z', 'w')
POSITION_FIELDS = ('pose.position', 'point')
ORIENTATION_FIELD = 'pose.orientation'


def actions_from_state(frames: Frames, contract: RobotContract, lead: int) -> Frames:
    """Return frames whose actions are what the state was ``lead`` steps later; the last ``lead`` frames go.

    Of a kind that is a position (``joint_position``, ``ee_pose``, ``gripper``) the action is the later state itself; of
    a displacement (``ee_delta``) the difference between the later state and that of the frame; of a velocity
    (``joint_velocity``, ``ee_twist``) this difference by the time between them.

    Args:
        frames: N of them, one stretch.
        contract: says which state stream measures what a part of the action commands.
        lead: at least 1.

    Raises:
        DataError: if no stream measures a part, or the stretch is too short; names the part.
    """
    if len(frames) <= lead:
        raise DataError(f'{len(frames)} steps without a gap, the state {lead} later needs more')
    seconds = lead * contract.rates.policy_dt
    parts = [_part(part, contract, frames.state.astype(np.float64), lead, seconds) for part in contract.actions]
    return replace(frames.cut(0, len(frames) - lead), actions=np.concatenate(parts, 1).astype(np.float32))


def _part(part: ActionPart, contract: RobotContract, state: np.ndarray, lead: int, seconds: float) -> np.ndarray:
    """Return (N - lead, dim)."""
    names = [name for name in part.names if name not in TURNS] if part.kind.startswith('ee_') else part.names
    before, after = state[:-lead], state[lead:]
    values = np.empty((len(after), part.dim))
    if names:
        columns = _columns(part, contract, names)
        places = [part.names.index(name) for name in names]
        values[:, places] = after[:, columns] if _is_place(part) else after[:, columns] - before[:, columns]
    turns = [name for name in part.names if name not in names]
    if turns:
        columns = _orientation(part, contract)
        turned = _turns(before[:, columns], after[:, columns], _is_place(part))
        values[:, [part.names.index(name) for name in turns]] = turned[:, [TURNS.index(name) for name in turns]]
    return values / seconds if part.kind in ('joint_velocity', 'ee_twist') else values


def _is_place(part: ActionPart) -> bool:
    return part.kind in ('joint_position', 'ee_pose', 'gripper')


def _columns(part: ActionPart, contract: RobotContract, names: Sequence[str]) -> list[int]:
    """Return the places of a part's numbers in the state vector."""
    measures = _measures_point if part.kind.startswith('ee_') else _measures_joints
    found = [stream for stream in contract.state if measures(stream) and set(names) <= set(stream.names)]
    chosen = [stream for stream in found if stream.name == part.position_from] or found
    if len(chosen) != 1:
        reason = (f'several state streams measure it: {", ".join(stream.name for stream in chosen)}; name one in '
                  'position_from' if chosen else f'no state stream measures {", ".join(names)}')
        raise DataError(f'actions.{part.name} ({part.kind}) can not be had from the state: {reason}')
    first = contract.state_slices[chosen[0].name].start
    return [first + chosen[0].names.index(name) for name in names]


def _measures_joints(stream: StateStream) -> bool:
    return stream.message == 'sensor_msgs/JointState' and stream.field == 'position'


def _measures_point(stream: StateStream) -> bool:
    return stream.field in POSITION_FIELDS


def _orientation(part: ActionPart, contract: RobotContract) -> list[int]:
    """Return the places of a quaternion, x y z w, in the state vector."""
    found = [stream for stream in contract.state
             if stream.field == ORIENTATION_FIELD and set(QUATERNION) <= set(stream.names)]
    if len(found) != 1:
        raise DataError(f'actions.{part.name} ({part.kind}) can not be had from the state: {len(found)} state streams '
                        f'measure {ORIENTATION_FIELD} with {", ".join(QUATERNION)}, one is needed')
    first = contract.state_slices[found[0].name].start
    return [first + found[0].names.index(name) for name in QUATERNION]


def _turns(before: np.ndarray, after: np.ndarray, is_place: bool) -> np.ndarray:
    """Return rotation vectors (N, 3): the later orientation, or the turn to it in the base frame."""
    from scipy.spatial.transform import Rotation
    try:
        later = Rotation.from_quat(after)
        return (later if is_place else later * Rotation.from_quat(before).inv()).as_rotvec()
    except ValueError as error:
        raise DataError(f'an orientation is no rotation: {error}') from error
