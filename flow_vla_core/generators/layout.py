"""Where numbers, rotations and classes lie in an action."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_vla_core.errors import ConfigError, InputError, closest
from flow_vla_core.generators.manifold import Point, rotation_from_columns

__all__ = ['KINDS', 'Layout', 'PartConfig']

CROOKED = 1e-2  # the columns of a rotation may be so far from orthonormal

KINDS: Mapping[str, Callable[[int], int]] = {  # numbers that a part of some size takes in an action
    'continuous': lambda size: size, 'rotation': lambda size: 6 * size, 'discrete': lambda size: 1}


@dataclass(frozen=True)
class PartConfig:
    """Describes one part of an action.

    Args:
        kind: ``continuous``; ``rotation``: each 6 numbers, the first two columns of its matrix, not normalised;
            ``discrete``: one number, class k of K being -1 + 2 k / (K - 1), which is what normalisation to [-1, 1]
            makes of evenly spaced commands; whatever lies between counts as the nearest.
        size: how many numbers, how many rotations, or how many classes.

    Raises:
        ConfigError: for an unknown kind, size 0 or fewer than two classes.

    Example:
        >>> PartConfig('rotation', 2).width
        12
    """

    kind: str = 'continuous'
    size: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f'parts: kind {self.kind!r}; {closest(self.kind, KINDS)}')
        least = 2 if self.kind == 'discrete' else 1
        if self.size < least:
            raise ConfigError(f'parts: a {self.kind} part of size {self.size}; allowed: {least} or more')

    @property
    def width(self) -> int:
        """Numbers that it takes in an action."""
        return KINDS[self.kind](self.size)


class Layout:
    """Takes actions (B, H, A) apart into a point of the product manifold and classes, and puts them together.

    Args:
        parts: in the order of the action vector; none means that all A numbers are continuous.
        action_dim: A.

    Raises:
        ConfigError: if the parts are not A numbers wide, or all of them are discrete.

    Example:
        >>> layout = Layout((PartConfig('discrete', 3), PartConfig('continuous', 2)), 3)
        >>> point, classes = layout.split(torch.tensor([[[0.1, 5.0, 6.0]]]))
        >>> point.vectors, classes
        (tensor([[[5., 6.]]]), tensor([[[1]]]))
        >>> layout.join(point, classes)
        tensor([[[0., 5., 6.]]])
    """

    def __init__(self, parts: Sequence[PartConfig], action_dim: int) -> None:
        self.parts = tuple(parts) or (PartConfig('continuous', action_dim),)
        widths = [part.width for part in self.parts]
        if sum(widths) != action_dim:
            raise ConfigError(f'parts: {" + ".join(map(str, widths))} numbers; allowed: {action_dim} in all')
        if all(part.kind == 'discrete' for part in self.parts):
            raise ConfigError('parts: all are discrete; allowed: at least one that is continuous or a rotation')
        self.vectors = sum(part.size for part in self.parts if part.kind == 'continuous')
        self.rotations = sum(part.size for part in self.parts if part.kind == 'rotation')
        self.counts = tuple(part.size for part in self.parts if part.kind == 'discrete')

    def places(self, kind: str) -> tuple[int, ...]:
        """Return which numbers of an action belong to parts of one kind."""
        kinds = [part.kind for part in self.parts for _ in range(part.width)]
        return tuple(index for index, found in enumerate(kinds) if found == kind)

    def split(self, actions: Tensor) -> tuple[Point, Tensor]:
        """(B, H, A) -> point and classes (B, H, P); columns are made orthonormal."""
        columns = self._gather('rotation', actions).unflatten(-1, (self.rotations, 6))
        levels = self._gather('discrete', actions)
        classes = [((level + 1) / 2 * (count - 1)).round().clamp(0, count - 1).long()
                   for level, count in zip(levels.split(1, -1), self.counts)]
        point = Point(self._gather('continuous', actions), rotation_from_columns(columns))
        return point, torch.cat([levels[..., :0].long(), *classes], -1)

    def gauss(self, noise: Tensor) -> tuple[Point, Tensor]:
        """Turn Gaussian noise (B, H, A) into a Gaussian and uniform point, and uniform numbers (B, H, P)."""
        return self.split(noise)[0], torch.special.ndtr(self._gather('discrete', noise))

    def join(self, point: Point, classes: Tensor) -> Tensor:
        """Undo `split`."""
        levels = [2 * chosen.to(point.vectors) / (count - 1) - 1
                  for chosen, count in zip(classes.split(1, -1), self.counts)]
        sources = {'continuous': point.vectors, 'rotation': point.rotations[..., :2].mT.flatten(-3),
                   'discrete': torch.cat([point.vectors[..., :0], *levels], -1)}
        begun, pieces = dict.fromkeys(sources, 0), []
        for part in self.parts:
            pieces.append(sources[part.kind][..., begun[part.kind]:begun[part.kind] + part.width])
            begun[part.kind] += part.width
        return torch.cat(pieces, -1)

    def check(self, actions: Tensor) -> None:
        """Raise `InputError` if the columns of a rotation are not orthonormal."""
        if not self.rotations:
            return
        columns = self._gather('rotation', actions).unflatten(-1, (self.rotations, 2, 3))
        products = (columns[..., :, None, :] * columns[..., None, :, :]).sum(-1)
        worst = (products - torch.eye(2).to(products)).abs().max().item()
        if worst > CROOKED:
            raise InputError(f'actions: columns of a rotation are {worst:.2g} from orthonormal; allowed: {CROOKED}; '
                             'rotations must not be normalised')

    def _gather(self, kind: str, actions: Tensor) -> Tensor:
        """Put the numbers of one kind side by side."""
        pieces = actions.split([part.width for part in self.parts], -1)
        return torch.cat([actions[..., :0], *(piece for piece, part in zip(pieces, self.parts) if part.kind == kind)],
                         -1)
