"""Ways to make an action chunk from noise and a condition."""

from flow_vla_core.generators.base import Generator
from flow_vla_core.generators.flow_matching import FlowMatching
from flow_vla_core.generators.refiner import Refined

__all__ = ['FlowMatching', 'Generator', 'Refined']
