"""Choice and size of a velocity network."""

from __future__ import annotations

from dataclasses import dataclass

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.networks.base import VelocityNetwork
from flow_vla_core.networks.mlp import ResidualMLP
from flow_vla_core.networks.time import FASTEST
from flow_vla_core.networks.transformer import ActionTransformer
from flow_vla_core.networks.unet import UNet1d

__all__ = ['NetworkConfig', 'Sizes']


@dataclass(frozen=True)
class Sizes:
    """Holds the widths that a generator and its networks have to agree on.

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: width of the condition's vector.
        token_dim: width of the condition's tokens; 0 if it has none.

    Example:
        >>> Sizes(horizon=12, action_dim=4, condition_dim=256).token_dim
        0
    """

    horizon: int
    action_dim: int
    condition_dim: int
    token_dim: int = 0


@dataclass(frozen=True)
class NetworkConfig:
    """Chooses and sizes the velocity network.

    Args:
        kind: ``unet``, ``transformer`` or ``mlp``.
        width: channels of the finest scale of a U-Net, else of the hidden layers.
        depth: scales of a U-Net, each twice as wide as the one before, else blocks.
        heads: of a transformer's attention.

    Example:
        >>> type(NetworkConfig('mlp', 8, 1).build(Sizes(4, 2, 3))).__name__
        'ResidualMLP'
    """

    kind: str = 'unet'
    width: int = 64
    depth: int = 2
    heads: int = 4

    def build(self, sizes: Sizes, fastest: float = FASTEST) -> VelocityNetwork:
        """Make the network.

        Args:
            sizes: of chunk and condition.
            fastest: highest frequency of the time embedding, rad per unit of flow time; families that differentiate
                by time need a low one.

        Raises:
            ConfigError: for an unknown kind, or a size that is not allowed.
        """
        if min(self.width, self.depth) < 1:
            raise ConfigError(f'network: width {self.width} and depth {self.depth}; allowed: 1 or more')
        shape = (sizes.horizon, sizes.action_dim, sizes.condition_dim)
        if self.kind == 'transformer':
            return ActionTransformer(*shape, self.width, self.depth, self.heads, token_dim=sizes.token_dim,
                                     fastest=fastest)
        if self.kind == 'unet':
            return UNet1d(*shape, tuple(self.width * 2 ** scale for scale in range(self.depth)), fastest=fastest)
        if self.kind == 'mlp':
            return ResidualMLP(*shape, self.width, self.depth, fastest=fastest)
        raise ConfigError(f'network.kind: {self.kind!r}; {closest(self.kind, ("transformer", "unet", "mlp"))}')
