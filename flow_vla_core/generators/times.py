"""How flow time is drawn in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ['TIMES', 'beta_time', 'logit_normal_time', 'uniform_time']


def uniform_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t uniformly from [0, 1): (count,)."""
    return torch.rand(count, generator=generator)


def beta_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t with more mass near the noise, as pi0 does: t = 1 - (0.999 Beta(1.5, 1) + 0.001), (count,).

    Beta(1.5, 1) has the distribution function s^1.5, so s = u^(2/3) for a uniform u. The mean of t is 0.3996
    (arXiv 2410.24164, appendix B).
    """
    return 1 - (0.999 * torch.rand(count, generator=generator) ** (2 / 3) + 0.001)


def logit_normal_time(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t with more mass in the middle: the logistic function of a standard Gaussian, (count,).

    As in arXiv 2403.03206, section 3.1, with location 0 and scale 1.
    """
    return torch.randn(count, generator=generator).sigmoid()


TIMES: Mapping[str, Callable[..., Tensor]] = {'uniform': uniform_time, 'beta': beta_time,
                                              'logit_normal': logit_normal_time}
