"""The register of families: settings of each, told apart by their ``family``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from flow_vla_core.generators.base import FamilyConfig
from flow_vla_core.generators.flow_matching import FlowMatchingConfig
from flow_vla_core.generators.regression import RegressionConfig

__all__ = ['FAMILIES', 'GeneratorConfig']

GeneratorConfig = FlowMatchingConfig | RegressionConfig  # the first one is meant where no family is named

FAMILIES: Mapping[str, type[FamilyConfig]] = {
    config.__dataclass_fields__['family'].default: config for config in get_args(GeneratorConfig)}
