"""Velocity networks: ``network(x (B, H, A), t (B,) or (B, H), condition) -> (B, H, A)``."""

from flow_vla_core.networks.base import Modulation, VelocityNetwork
from flow_vla_core.networks.config import NetworkConfig, Sizes
from flow_vla_core.networks.mlp import ResidualMLP
from flow_vla_core.networks.transformer import ActionTransformer
from flow_vla_core.networks.unet import UNet1d

__all__ = ['ActionTransformer', 'Modulation', 'NetworkConfig', 'ResidualMLP', 'Sizes', 'UNet1d', 'VelocityNetwork']
