"""A transformer over the actions of a chunk."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.errors import ConfigError, InputError
from flow_vla_core.networks.base import Modulation, VelocityNetwork
from flow_vla_core.networks.time import FASTEST, TimeEmbedding
from flow_vla_core.types import Condition

__all__ = ['ActionTransformer']


class ActionTransformer(VelocityNetwork):
    """Makes each action a token; tokens attend to each other and to the condition's tokens; adaLN-zero brings time in.

    Follows DiT (arXiv 2212.09748): each block adds ``gate f(shift + (1 + scale) norm(h))``, first with f attention,
    then with f a small network; all six are linear in ``silu(W c + embed(t))``. Flow time may differ from token to
    token, which training-time real-time chunking needs (arXiv 2512.05964).

    Args:
        horizon: H.
        action_dim: A.
        condition_dim: width of the condition's vector.
        width: of the tokens, a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads.
        token_dim: width of the condition's tokens, which every block attends to, whatever their order; 0 for none.
        fastest: highest frequency of the time embedding.

    Raises:
        ConfigError: if ``width`` is no multiple of ``heads``.
        InputError: from the call, if the condition lacks tokens of that width.

    Example:
        >>> network = ActionTransformer(4, 2, 3, width=8, depth=1, heads=2, token_dim=6)
        >>> condition = Condition(torch.zeros(5, 3), torch.zeros(5, 7, 6))
        >>> network(torch.zeros(5, 4, 2), torch.rand(5), condition).shape
        torch.Size([5, 4, 2])
    """

    def __init__(self, horizon: int, action_dim: int, condition_dim: int, width: int = 128, depth: int = 3,
                 heads: int = 4, *, token_dim: int = 0, fastest: float = FASTEST) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f'network.width {width} is no multiple of heads {heads}')
        self.time = TimeEmbedding(width, fastest)
        self.condition = nn.Linear(condition_dim, width)
        self.enter = nn.Linear(action_dim, width)
        self.place = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.tokens = nn.Linear(token_dim, width) if token_dim else None
        self.blocks = nn.ModuleList([_Block(width, heads, token_dim > 0) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, action_dim)
        for layer in (self.modulate, self.leave):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(self, times: Tensor, condition: Condition) -> list[Modulation]:
        """(K, B, 1 or H), condition -> for each time and block six modulations (B, 1 or H, W), and keys and values."""
        drive = functional.silu(self.condition(condition.vector)[:, None] + self.time(times))
        tokens = self._enter_tokens(condition)
        shift, scale = self.modulate(drive).chunk(2, -1)
        return Modulation.at_each_time([*(block.prepare(drive) for block in self.blocks), (shift, 1 + scale)],
                                       [*(block.heed(tokens) for block in self.blocks), ()])

    def answer(self, x: Tensor, told: Modulation) -> Tensor:
        """(B, H, A) -> (B, H, A)."""
        hidden = self.enter(x) + self.place
        for block, part in zip(self.blocks, told.parts):
            hidden = block(hidden, *part)
        shift, scale = told.parts[-1]
        return self.leave(torch.addcmul(shift, self.norm(hidden), scale))

    def _enter_tokens(self, condition: Condition) -> Tensor | None:
        if self.tokens is None:
            return None
        tokens, width = condition.tokens, self.tokens.in_features
        if tokens is None or tokens.ndim != 3 or tokens.shape[2] != width:
            found = 'none' if tokens is None else f'shape {tuple(tokens.shape)}'
            raise InputError(f'condition.tokens: {found}; allowed: ({len(condition)}, any, {width})')
        return self.tokens(tokens)


class _Block(nn.Module):
    """Is one transformer block whose normalisations and gates depend on time and condition."""

    def __init__(self, width: int, heads: int, crossed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.crossing = _Crossing(width, heads) if crossed else None
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 6 * width)
        self.attend = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate='tanh'),
                                    nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def prepare(self, drive: Tensor) -> tuple[Tensor, ...]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulate(drive).chunk(6, -1)
        return shift_a, 1 + scale_a, gate_a, shift_m, 1 + scale_m, gate_m

    def heed(self, tokens: Tensor | None) -> tuple[Tensor, ...]:
        return () if self.crossing is None else self.crossing.prepare(tokens)

    def forward(self, x: Tensor, shift_a: Tensor, scale_a: Tensor, gate_a: Tensor, shift_m: Tensor, scale_m: Tensor,
                gate_m: Tensor, *heeded: Tensor) -> Tensor:
        x = torch.addcmul(x, gate_a, self._attention(torch.addcmul(shift_a, self.norm(x), scale_a)))
        x = x if self.crossing is None else x + self.crossing(x, *heeded)
        return torch.addcmul(x, gate_m, self.layers(torch.addcmul(shift_m, self.norm(x), scale_m)))

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.attend(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.join(mixed.transpose(1, 2).reshape(batch, tokens, width))


class _Crossing(nn.Module):
    """Lets actions attend to the condition's tokens; adds nothing before it is trained."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.ask = nn.Linear(width, width)
        self.answer = nn.Linear(width, 2 * width)
        self.join = nn.Linear(width, width)
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.join.bias)

    def prepare(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        batch, count, _ = tokens.shape
        key, value = self.answer(tokens).reshape(batch, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return key, value

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, count, width = x.shape
        query = self.ask(self.norm(x)).reshape(batch, count, self.heads, -1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.join(mixed.transpose(1, 2).reshape(batch, count, width))
