"""Flows with an exact density: bijections between data and Gaussian noise, conditional on a context."""

from flow_vla_core.flows.base import Composition, FlowDistribution, Inverted, NormalizingFlow, Transform

__all__ = ['Composition', 'FlowDistribution', 'Inverted', 'NormalizingFlow', 'Transform']
