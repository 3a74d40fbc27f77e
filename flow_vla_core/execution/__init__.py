"""What happens to action chunks at control rate: following by stamps, then limits."""

from __future__ import annotations

from flow_vla_core.execution.follower import ChunkFollower, Command, ExecutionState
from flow_vla_core.execution.limits import PositionLimiter, RateLimiter, stopping_speed

__all__ = ['ChunkFollower', 'Command', 'ExecutionState', 'PositionLimiter', 'RateLimiter', 'stopping_speed']
