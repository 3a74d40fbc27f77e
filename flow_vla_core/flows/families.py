"""The registered density flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flow_vla_core.flows.autoregressive import MAF, AutoregressiveSplineFlow
from flow_vla_core.flows.base import NormalizingFlow
from flow_vla_core.flows.continuous import ContinuousNormalizingFlow
from flow_vla_core.flows.coupling import RealNVP, SplineFlow
from flow_vla_core.flows.glow import Glow
from flow_vla_core.flows.planar import PlanarFlow
from flow_vla_core.flows.radial import RadialFlow

__all__ = ['FLOWS']

# Name -> builder(dim, context_dim); 0 for no context.
FLOWS: Mapping[str, Callable[[int, int], NormalizingFlow]] = {
    'planar': PlanarFlow,
    'radial': RadialFlow,
    'real_nvp': RealNVP,
    'spline': SplineFlow,
    'spline_autoregressive': AutoregressiveSplineFlow,
    'glow': Glow,
    'maf': MAF,
    'continuous': ContinuousNormalizingFlow,
}
