"""Latent plans of chunks: how they are read off actions, and spread over time again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flow_vla_core.networks import Sizes

__all__ = ['PlanDecoder', 'PlanEncoder']


class PlanEncoder(nn.Module):
    """Reads a plan of L waypoints of P numbers off a chunk; it lies on the sphere of radius sqrt(L P).

    On that sphere lies nearly all the mass of a Gaussian, so a plan can't shrink to escape the noise on it. Actions
    that don't count are read as zeros, with a sign that they are.

    Args:
        sizes: of chunk and condition.
        waypoints: L.
        plan_width: P.
        width: of the hidden layers.

    Example:
        >>> encoder = PlanEncoder(Sizes(5, 2, 3), 4, 3, 16)
        >>> encoder(torch.randn(7, 5, 2), torch.ones(7, 5, dtype=torch.bool)).shape
        torch.Size([7, 4, 3])
    """

    def __init__(self, sizes: Sizes, waypoints: int, plan_width: int, width: int) -> None:
        super().__init__()
        self.shape = waypoints, plan_width
        self.layers = nn.Sequential(nn.Linear(sizes.horizon * (sizes.action_dim + 1), width), nn.SiLU(),
                                    nn.Linear(width, width), nn.SiLU(), nn.Linear(width, waypoints * plan_width))

    def forward(self, actions: Tensor, mask: Tensor) -> Tensor:
        """(B, H, A), (B, H) bool -> (B, L, P)."""
        counted = mask[..., None]
        seen = torch.cat([torch.where(counted, actions, 0.0), counted.to(actions)], -1)
        found = self.layers(seen.flatten(1)).to(actions.dtype)
        radius = found.square().mean(1, keepdim=True).clamp(min=1e-12).sqrt()
        return (found / radius).unflatten(1, self.shape)


class PlanDecoder(nn.Module):
    """Spreads a plan over time: what each action is to know of it.

    The waypoints, evenly spaced over the horizon, are interpolated by weights that begin as linear interpolation and
    are learned; then each step adds what is its own.

    Args:
        horizon: H.
        waypoints: L.
        plan_width: P.
        width: W, of the hidden layers and of what each action gets.

    Example:
        >>> PlanDecoder(5, 4, 3, 16)(torch.randn(7, 4, 3)).shape
        torch.Size([7, 5, 16])
    """

    def __init__(self, horizon: int, waypoints: int, plan_width: int, width: int) -> None:
        super().__init__()
        places = torch.linspace(0, waypoints - 1, horizon)[:, None] - torch.arange(waypoints)
        self.weights = nn.Parameter((1 - places.abs()).clamp(min=0))
        self.place = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.enter = nn.Linear(plan_width, width)
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, plan: Tensor) -> Tensor:
        """(B, L, P) -> (B, H, W)."""
        return self.leave(self.weights @ self.enter(plan) + self.place).to(plan.dtype)
