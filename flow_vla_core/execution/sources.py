"""What the state streams say about the parts of the action vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flow_vla_core.contract import ActionPart, RobotContract

__all__ = ['Source', 'measured_by', 'position_of']

Source = tuple[str, list[int]]


def measured_by(part: ActionPart, contract: RobotContract) -> Source | None:
    """Find the state stream that measures a part of positions, and where each value stands in it, -1 for nowhere."""
    for stream in contract.state:
        joints = (part.kind == 'joint_position' and stream.field == 'position'
                  and set(part.names) <= set(stream.names))
        pose = part.kind == 'ee_pose' and stream.name == part.position_from
        if (joints or pose) and stream.unit == part.unit:
            return stream.name, [stream.names.index(name) if name in stream.names else -1 for name in part.names]
    return None


def position_of(part: ActionPart, measured: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the measured position (3,) of the end effector that a part moves; None if there is none, or NaN in it."""
    position = measured.get(part.position_from)
    return position if position is not None and np.isfinite(position).all() else None
