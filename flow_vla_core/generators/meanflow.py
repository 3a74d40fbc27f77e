"""MeanFlow: average velocities learned from an identity that they obey, without a teacher."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.base import FamilyConfig, Generator, squared_error
from flow_vla_core.generators.span import SpanNetwork, leap
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

__all__ = ['MeanFlow', 'MeanFlowConfig', 'with_slope']

FASTEST = 5.0  # rad per unit of flow time; the loss holds the derivative by time, which high frequencies blow up


@dataclass(frozen=True)
class MeanFlowConfig(FamilyConfig):
    """Sets up `MeanFlow`, whose arguments these are.

    Example:
        >>> MeanFlowConfig(share=0.25).steps
        1
    """

    family: str = field(default='meanflow', init=False)
    steps: int = 1
    share: float = 0.5

    def build(self, sizes: Sizes, network: NetworkConfig) -> MeanFlow:
        """Make it with a network of its own."""
        return MeanFlow(SpanNetwork(sizes, network, FASTEST), sizes, steps=self.steps, share=self.share)


class MeanFlow(Generator):
    """Learns the average velocity u over the span d from t, for which one evaluation takes noise to a chunk.

    With the path ``x_t = (1 - t) noise + t actions`` of velocity v, differentiating ``d u = int_t^{t+d} v`` by t where
    the end t + d is fixed gives ``u = v + d (v du/dx + du/dt - du/dd)``. The right side without gradient, one
    Jacobian-vector product, is the target of a squared loss: Mean flows (arXiv 2505.13447, equations 6 to 11, whose
    time runs the other way).

    Args:
        network: average velocity; its time embeddings need low frequencies.
        sizes: of chunk and condition.
        steps: leaps of a sample.
        share: of the training spent on spans above 0; the rest learns the velocity itself.

    Raises:
        ConfigError: for a share outside [0, 1], or fewer than one step.

    Example:
        >>> generator = MeanFlowConfig().build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> generator.loss(torch.zeros(5, 4, 2), Condition(torch.zeros(5, 3))).shape
        torch.Size([])
    """

    def __init__(self, network: SpanNetwork, sizes: Sizes, *, steps: int = 1, share: float = 0.5) -> None:
        super().__init__(sizes, steps)
        if not 0 <= share <= 1:
            raise ConfigError(f'generator.share: {share}; allowed: 0 to 1')
        self.average, self.share = network, share

    @property
    def is_fixed(self) -> bool:
        """Always."""
        return True

    def _loss(self, actions: Tensor, condition: Condition, mask: Tensor | None,
              generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(actions.shape, generator=generator).to(actions)
        t, span = (values.to(actions) for values in self._draw_spans(len(actions), generator))
        velocity = actions - noise
        mixed = noise + t[:, None, None] * velocity
        answer, slope = with_slope(self.average, mixed, t, span, velocity, condition)
        target = velocity + span[:, None, None] * slope.detach()
        return squared_error(answer, target, mask)

    def _sample(self, condition: Condition, noise: Tensor, steps: int, prefix: Tensor | None,
                generator: torch.Generator | None) -> Tensor:
        return leap(self.average, noise, condition, steps, prefix)

    def _draw_spans(self, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw begin and length of spans, of which 1 - share have length 0."""
        first, second, chosen = torch.rand(3, count, generator=generator)
        begin = torch.minimum(first, second)
        return begin, ((first - second).abs()) * (chosen < self.share)


def with_slope(average: nn.Module, x: Tensor, t: Tensor, span: Tensor, velocity: Tensor,
               condition: Condition) -> tuple[Tensor, Tensor]:
    """Return ``u(x, t, d)`` and its derivative ``v du/dx + du/dt - du/dd`` along a path whose span ends where it did.

    Both are computed in the precision of x, under autocast too.

    Args:
        average: velocity (x, t, d, condition), as `SpanNetwork`.
        x: (B, H, A).
        t: (B,).
        span: d, (B,).
        velocity: v, (B, H, A).
        condition: of the same B.

    Example:
        >>> x, one = torch.full((1, 1, 1), 3.0), torch.ones(1)
        >>> with_slope(lambda x, t, span, condition: x * t[:, None, None], x, one, one, x, Condition(one[:, None]))[1]
        tensor([[[6.]]])
    """
    tokens = condition.tokens
    condition = Condition(condition.vector.to(x), None if tokens is None else tokens.to(x))
    along = (velocity, torch.ones_like(t), -torch.ones_like(span))
    # Only this attention has a forward derivative, and convolutions have none in half precision.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(x.device.type, enabled=False):
        return torch.func.jvp(lambda x, t, span: average(x, t, span, condition), (x, t, span), along)
