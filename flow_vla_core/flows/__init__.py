"""Flows with an exact density: bijections between data and Gaussian noise, conditional on a context."""

from flow_vla_core.flows.autoregressive import MAF, AutoregressiveLayer, AutoregressiveSplineFlow
from flow_vla_core.flows.base import Composition, FlowDistribution, Inverted, NormalizingFlow, Transform
from flow_vla_core.flows.continuous import ContinuousNormalizingFlow, ContinuousTransform, OdeSettings, VelocityField
from flow_vla_core.flows.coupling import CouplingLayer, RealNVP, Shuffle, SplineFlow
from flow_vla_core.flows.families import FLOWS
from flow_vla_core.flows.glow import ActNorm, Glow, LinearLU
from flow_vla_core.flows.planar import Planar, PlanarFlow
from flow_vla_core.flows.radial import Radial, RadialFlow
from flow_vla_core.flows.splines import RationalQuadratic
from flow_vla_core.flows.univariate import Affine, Univariate

__all__ = [
    'FLOWS', 'MAF', 'ActNorm', 'Affine', 'AutoregressiveLayer', 'AutoregressiveSplineFlow', 'Composition',
    'ContinuousNormalizingFlow', 'ContinuousTransform', 'CouplingLayer', 'FlowDistribution', 'Glow', 'Inverted',
    'LinearLU', 'NormalizingFlow', 'OdeSettings', 'Planar', 'PlanarFlow', 'Radial', 'RadialFlow', 'RationalQuadratic',
    'RealNVP', 'Shuffle', 'SplineFlow', 'Transform', 'Univariate', 'VelocityField',
]
