"""The inference path: one observation in, one chunk out, by the fastest way that the device has."""

from flow_vla_core.engine.choice import RUNNERS
from flow_vla_core.engine.engine import Engine
from flow_vla_core.engine.modes import MODES

__all__ = ['MODES', 'RUNNERS', 'Engine']
