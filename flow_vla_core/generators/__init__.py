"""Ways to make an action chunk from noise and a condition."""

from flow_vla_core.generators.base import Continuing, FamilyConfig, Generator, Guidable, LikelihoodGenerator, Student
from flow_vla_core.generators.consistency import ConsistencyTraining, ConsistencyTrainingConfig
from flow_vla_core.generators.consistency_distillation import ConsistencyDistillation, ConsistencyDistillationConfig
from flow_vla_core.generators.diffusion import DiffusionConfig, DiffusionPolicy
from flow_vla_core.generators.distilled import Distilled, DistilledConfig
from flow_vla_core.generators.families import FAMILIES, GeneratorConfig
from flow_vla_core.generators.flow_matching import FlowMatching, FlowMatchingConfig
from flow_vla_core.generators.hierarchical import HierarchicalFlow, HierarchicalFlowConfig
from flow_vla_core.generators.likelihood import LikelihoodFlow, LikelihoodFlowConfig
from flow_vla_core.generators.meanflow import MeanFlow, MeanFlowConfig
from flow_vla_core.generators.multimodal import MultimodalFlow, MultimodalFlowConfig
from flow_vla_core.generators.realtime import Guide, prefix_weights
from flow_vla_core.generators.rectified import RectifiedFlow, RectifiedFlowConfig
from flow_vla_core.generators.refiner import Refined
from flow_vla_core.generators.regression import Regression, RegressionConfig
from flow_vla_core.generators.score import ScoreConfig, ScoreModel
from flow_vla_core.generators.shortcut import Shortcut, ShortcutConfig
from flow_vla_core.generators.vae import ActionVAE, ActionVAEConfig

__all__ = ['ActionVAE', 'ActionVAEConfig', 'ConsistencyDistillation', 'ConsistencyDistillationConfig',
           'ConsistencyTraining', 'ConsistencyTrainingConfig', 'Continuing', 'DiffusionConfig', 'DiffusionPolicy',
           'Distilled', 'DistilledConfig', 'FAMILIES', 'FamilyConfig', 'FlowMatching', 'FlowMatchingConfig',
           'Generator', 'GeneratorConfig', 'Guidable', 'Guide', 'HierarchicalFlow', 'HierarchicalFlowConfig',
           'LikelihoodFlow', 'LikelihoodFlowConfig', 'LikelihoodGenerator', 'MeanFlow', 'MeanFlowConfig',
           'MultimodalFlow', 'MultimodalFlowConfig', 'RectifiedFlow', 'RectifiedFlowConfig', 'Refined', 'Regression',
           'RegressionConfig', 'ScoreConfig', 'ScoreModel', 'Shortcut', 'ShortcutConfig', 'Student', 'prefix_weights']
