"""What happens to action chunks at control rate: schedule, interpolation, limits."""

from __future__ import annotations

from flow_vla_core.execution.authority import Authority
from flow_vla_core.execution.command import Command, ExecutionState
from flow_vla_core.execution.follower import ChunkFollower
from flow_vla_core.execution.interpolation import INTERPOLATIONS, Interpolator
from flow_vla_core.execution.limits import make_limiter
from flow_vla_core.execution.motion import Motion
from flow_vla_core.execution.schedules import make_schedule

__all__ = ['INTERPOLATIONS', 'Authority', 'ChunkFollower', 'Command', 'ExecutionState', 'Interpolator', 'Motion',
           'make_limiter', 'make_schedule']
