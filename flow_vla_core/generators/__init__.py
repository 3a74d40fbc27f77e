"""Ways to make an action chunk from noise and a condition."""

from flow_vla_core.generators.base import FamilyConfig, Generator, LikelihoodGenerator, Student
from flow_vla_core.generators.families import FAMILIES, GeneratorConfig
from flow_vla_core.generators.flow_matching import FlowMatching, FlowMatchingConfig
from flow_vla_core.generators.refiner import Refined
from flow_vla_core.generators.regression import Regression, RegressionConfig

__all__ = ['FAMILIES', 'FamilyConfig', 'FlowMatching', 'FlowMatchingConfig', 'Generator', 'GeneratorConfig',
           'LikelihoodGenerator', 'Refined', 'Regression', 'RegressionConfig', 'Student']
