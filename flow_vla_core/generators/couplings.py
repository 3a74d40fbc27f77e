"""Which noise goes with which chunk of a batch in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from scipy.optimize import linear_sum_assignment
import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError
from flow_vla_core.types import Condition

__all__ = ['COUPLINGS', 'ConditionalOptimalTransport', 'Coupling', 'Independent', 'OptimalTransport']


class Coupling(ABC):
    """Declares how the noise of a batch is dealt out to its chunks.

    Example:
        >>> class Backwards(Coupling):
        ...     def pair(self, noise, data, condition, mask=None):
        ...         return noise.flip(0)
        >>> Backwards().pair(torch.tensor([[5.0], [1.0]]), torch.zeros(2, 1), Condition(torch.zeros(2, 1)))
        tensor([[1.],
                [5.]])
    """

    @abstractmethod
    def pair(self, noise: Tensor, data: Tensor, condition: Condition, mask: Tensor | None = None) -> Tensor:
        """Return the noise (B, ...) in the order in which it belongs to the data.

        Args:
            noise: (B, ...), each drawn on its own.
            data: (B, ...).
            condition: of the data.
            mask: (B, H) bool, false for what does not count.
        """


class Independent(Coupling):
    """Leaves noise and data as they came: right for any condition.

    Example:
        >>> noise = torch.tensor([[5.0], [1.0]])
        >>> Independent().pair(noise, torch.tensor([[0.0], [6.0]]), Condition(torch.zeros(2, 1)))
        tensor([[5.],
                [1.]])
    """

    def pair(self, noise: Tensor, data: Tensor, condition: Condition, mask: Tensor | None = None) -> Tensor:
        """Return the noise as it is."""
        return noise


class OptimalTransport(Coupling):
    """Gives each chunk of a batch noise that lies near: the assignment with the least sum of ``|noise - data|^2``.

    Paths become straighter (arXiv 2302.00482), but what noise a condition sees in training is not what it gets
    afterwards. That is wrong for a policy (arXiv 2503.10636): use it without a condition only, and
    `ConditionalOptimalTransport` otherwise.

    Example:
        >>> noise = torch.tensor([[5.0], [1.0]])
        >>> OptimalTransport().pair(noise, torch.tensor([[0.0], [6.0]]), Condition(torch.zeros(2, 1)))
        tensor([[1.],
                [5.]])
    """

    def pair(self, noise: Tensor, data: Tensor, condition: Condition, mask: Tensor | None = None) -> Tensor:
        """Solve the assignment, whatever the conditions are."""
        return _assign(noise, _squared_distances(noise, data, mask))


class ConditionalOptimalTransport(Coupling):
    """Exchanges noise between chunks of like conditions only: ``|noise_i - data_j|^2 + w |c_i - c_j|^2`` is least.

    Noise i begins with condition c_i, which it was drawn with, and so each condition goes on to see all the noise. The
    weight w is as large as lets the given share of all pairs (i, j) cost no more than the pair (j, j) that chunk j came
    with (arXiv 2503.10636). Where so many pairs have equal conditions, it is large enough to keep the
    noise of every condition to itself, which is exact. The paper takes the cosine between conditions; the squared
    distance serves conditions of one number, too.

    A batch B should be far larger than 1 / share; with fewer elements than that the coupling is independent.

    Args:
        share: of pairs that may change places, above 0 and at most 1.

    Raises:
        ConfigError: for another share.

    Example:
        >>> noise, data = torch.tensor([[5.0], [1.0], [3.0]]), torch.tensor([[0.0], [6.0], [9.0]])
        >>> condition = Condition(torch.tensor([[1.0], [1.0], [2.0]]))
        >>> ConditionalOptimalTransport().pair(noise, data, condition)
        tensor([[1.],
                [5.],
                [3.]])
    """

    def __init__(self, share: float = 0.01) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f'coupling: share {share}; allowed: above 0, at most 1')
        self.share = share

    def pair(self, noise: Tensor, data: Tensor, condition: Condition, mask: Tensor | None = None) -> Tensor:
        """Solve the assignment with the conditions in the cost."""
        cost, vector = _squared_distances(noise, data, mask), condition.vector
        apart = _squared_distances(vector, vector)
        return _assign(noise, cost + self._weight(cost, apart) * apart)

    def _weight(self, cost: Tensor, apart: Tensor) -> Tensor:
        """Return w. Pair (i, j) costs no more than (j, j) as long as w is at most (cost_jj - cost_ij) / apart_ij."""
        limit = torch.where(cost <= cost.diagonal(), (cost.diagonal() - cost) / apart, -torch.inf)
        limit = torch.where(apart == 0, torch.inf, limit).flatten()
        chosen = limit.topk(max(1, int(self.share * len(limit)))).values[-1].clamp(min=0)
        if chosen.isfinite():
            return chosen
        different = apart[apart > 0]
        return len(cost) * cost.max() / different.min() if len(different) else torch.zeros_like(chosen)


COUPLINGS: Mapping[str, type[Coupling]] = {
    'independent': Independent, 'optimal_transport': OptimalTransport,
    'conditional_optimal_transport': ConditionalOptimalTransport}


@torch.no_grad()
def _squared_distances(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``|ours_i - theirs_j|^2`` (B, B) in float64, over what counts of ``theirs``; 0 exactly for equals."""
    ours, theirs = ours.double(), theirs.double()
    if mask is None:
        return torch.cdist(ours.flatten(1), theirs.flatten(1), compute_mode='donot_use_mm_for_euclid_dist').square()
    weights = mask.double()
    return torch.stack([((ours - other).square().flatten(2).sum(2) * weight).sum(1)
                        for other, weight in zip(theirs, weights)], 1)


def _assign(noise: Tensor, cost: Tensor) -> Tensor:
    """Reorder the noise so that the sum of ``cost[noise, data]`` is least."""
    _, order = linear_sum_assignment(cost.T.cpu().numpy())
    return noise[torch.from_numpy(order).to(noise.device)]
