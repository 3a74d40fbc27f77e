"""The register of families: settings of each, told apart by their ``family``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from flow_vla_core.generators.base import FamilyConfig
from flow_vla_core.generators.consistency import ConsistencyTrainingConfig
from flow_vla_core.generators.consistency_distillation import ConsistencyDistillationConfig
from flow_vla_core.generators.diffusion import DiffusionConfig
from flow_vla_core.generators.distilled import DistilledConfig
from flow_vla_core.generators.flow_matching import FlowMatchingConfig
from flow_vla_core.generators.hierarchical import HierarchicalFlowConfig
from flow_vla_core.generators.likelihood import LikelihoodFlowConfig
from flow_vla_core.generators.meanflow import MeanFlowConfig
from flow_vla_core.generators.multimodal import MultimodalFlowConfig
from flow_vla_core.generators.rectified import RectifiedFlowConfig
from flow_vla_core.generators.regression import RegressionConfig
from flow_vla_core.generators.score import ScoreConfig
from flow_vla_core.generators.shortcut import ShortcutConfig
from flow_vla_core.generators.vae import ActionVAEConfig

__all__ = ['FAMILIES', 'GeneratorConfig']

GeneratorConfig = (  # the first one is meant where no family is named
    FlowMatchingConfig | ActionVAEConfig | ConsistencyDistillationConfig | ConsistencyTrainingConfig |
    DiffusionConfig | DistilledConfig | HierarchicalFlowConfig | LikelihoodFlowConfig | MeanFlowConfig |
    MultimodalFlowConfig | RectifiedFlowConfig | RegressionConfig | ScoreConfig | ShortcutConfig)

FAMILIES: Mapping[str, type[FamilyConfig]] = {
    config.__dataclass_fields__['family'].default: config for config in get_args(GeneratorConfig)}
