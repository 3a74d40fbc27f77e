"""Sequences of classes, one likelihood for the whole horizon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ['ClassSequence', 'NoClasses']


class ClassSequence(nn.Module):
    """Knows the probability of a chunk of classes, step after step: ``p(c | k) = prod p(c_h,p | c_<h, c_h,<p, k)``.

    A recurrent network (GRU, arXiv 1406.1078) reads the classes of the steps before and the condition's vector k;
    within a step each class also sees those of the parts before it. So the samples of a chunk belong together, which
    independent ones would not.

    Shapes: classes (B, H, P) int64, condition (B, C).

    Args:
        horizon: H.
        condition_dim: C.
        counts: number of classes of each of the P parts.
        width: of the hidden layers.

    Example:
        >>> head = ClassSequence(4, 3, (2, 5), 8)
        >>> classes = head.sample(torch.rand(6, 4, 2), torch.zeros(6, 3))
        >>> head.log_prob(classes, torch.zeros(6, 3)).shape
        torch.Size([6, 4])
    """

    def __init__(self, horizon: int, condition_dim: int, counts: Sequence[int], width: int) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.condition = nn.Linear(condition_dim, width)
        self.place = nn.Parameter(torch.randn(horizon, width) * 0.02)
        self.enter = nn.Linear(sum(self.counts), width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.leave = nn.ModuleList([nn.Linear(width + sum(self.counts[:part]), count)
                                    for part, count in enumerate(self.counts)])

    def log_prob(self, classes: Tensor, condition: Tensor) -> Tensor:
        """Return the log-probability of each step's classes, given those before it: (B, H)."""
        shown = self.one_hot(classes).to(condition)
        before = functional.pad(shown, (0, 0, 1, -1))
        hidden, _ = self.recurrent(self._inputs(before, condition))
        return sum(self._scores(part, hidden, shown).gather(-1, classes[..., part:part + 1])[..., 0]
                   for part in range(len(self.counts)))

    def sample(self, uniform: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Choose classes by inverse distribution functions.

        Args:
            uniform: (B, H, P) numbers in [0, 1] that decide.
            condition: (B, C).
            known: (B, D, P) classes of the first steps, if they are known.
        """
        shown, state, chosen = condition.new_zeros(len(uniform), 1, sum(self.counts)), None, []
        for step in range(uniform.shape[1]):
            hidden, state = self.recurrent(self._inputs(shown, condition, step), state)
            given = known is not None and step < known.shape[1]
            now = known[:, step:step + 1] if given else self._choose(hidden, uniform[:, step:step + 1])
            shown = self.one_hot(now).to(condition)
            chosen.append(now)
        return torch.cat(chosen, 1)

    def one_hot(self, classes: Tensor) -> Tensor:
        """(B, H, P) -> (B, H, sum of the numbers of classes)."""
        return torch.cat([functional.one_hot(classes[..., part], count) for part, count in enumerate(self.counts)], -1)

    def _inputs(self, before: Tensor, condition: Tensor, begin: int = 0) -> Tensor:
        """Embed the classes of the steps before those from ``begin`` on."""
        place = self.place[begin:begin + before.shape[1]]
        return self.enter(before) + place + self.condition(condition)[:, None]

    def _scores(self, part: int, hidden: Tensor, shown: Tensor) -> Tensor:
        """Return log-probabilities of one part's classes, given those of the parts before it in the same step."""
        return self.leave[part](torch.cat([hidden, shown[..., :sum(self.counts[:part])]], -1)).log_softmax(-1)

    def _choose(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Choose the classes of one step, part after part: (B, 1, P)."""
        shown, chosen = hidden[..., :0], []
        for part, count in enumerate(self.counts):
            below = self._scores(part, hidden, shown).exp().cumsum(-1)
            chosen.append((below < uniform[..., part:part + 1]).sum(-1).clamp(max=count - 1))
            shown = torch.cat([shown, functional.one_hot(chosen[-1], count).to(hidden)], -1)
        return torch.stack(chosen, -1)


class NoClasses(nn.Module):
    """Stands in for `ClassSequence` where no part of an action is a class: probability 1, nothing to choose.

    Example:
        >>> NoClasses().log_prob(torch.zeros(6, 4, 0), torch.zeros(6, 3)).sum()
        tensor(0.)
    """

    def log_prob(self, classes: Tensor, condition: Tensor) -> Tensor:
        """Return 0 for each step: (B, H)."""
        return condition.new_zeros(classes.shape[:2])

    def sample(self, uniform: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return no class for each step: (B, H, 0)."""
        return uniform[..., :0].long()

    def one_hot(self, classes: Tensor) -> Tensor:
        """(B, H, 0) -> (B, H, 0)."""
        return classes
