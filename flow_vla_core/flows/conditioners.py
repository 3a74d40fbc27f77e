"""Networks that compute the parameters of bijections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flow_vla_core.errors import ConfigError

__all__ = ['Conditioner', 'MaskedConditioner']


class Conditioner(nn.Module):
    """Computes P parameters for each of D bijections from other numbers and the context; it begins with zeros.

    Args:
        inputs: I.
        context_dim: C.
        outputs: D.
        parameters: P.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: for a width below 1.

    Example:
        >>> Conditioner(3, 2, 4, 5, (16,))(torch.randn(7, 3), torch.randn(7, 2)).shape
        torch.Size([7, 4, 5])
    """

    def __init__(self, inputs: int, context_dim: int, outputs: int, parameters: int,
                 hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.layers = _layers((inputs + context_dim, *hidden, outputs * parameters))
        self.shape = outputs, parameters

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., I), (..., C) -> (..., D, P)."""
        h = x if context is None else torch.cat((x, context), -1)
        for layer in self.layers[:-1]:
            h = functional.relu_(layer(h))
        return self.layers[-1](h).unflatten(-1, self.shape)


class MaskedConditioner(nn.Module):
    """Computes P parameters for each of D numbers, from those that come before it and the context only.

    Hidden unit j sees the numbers at the places below its degree; masks on the weights hold that (MADE, Germain et
    al., arXiv 1502.03509, eq. 8 and 9). Units are sorted by degree, so `fill` computes each of them only once.
    It begins with zeros.

    Args:
        places: place of each of the D numbers in the order, a permutation of 0 .. D - 1.
        context_dim: C.
        parameters: P.
        hidden: widths of the hidden layers.

    Raises:
        ConfigError: for places that are no permutation, or a width below 1.

    Example:
        >>> network = MaskedConditioner((0, 1, 2), 0, 2, (16, 16))
        >>> _ = nn.init.ones_(network.layers[-1].weight)
        >>> x, other = torch.tensor([[1.0, 2.0, 3.0], [1.0, 5.0, 7.0]])
        >>> (network(x) == network(other)).all(1)  # the first two are told of the first number only
        tensor([ True,  True, False])
    """

    def __init__(self, places: Sequence[int], context_dim: int, parameters: int,
                 hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        dim = len(places)
        if sorted(places) != list(range(dim)):
            raise ConfigError(f'places: {list(places)}; allowed: a permutation of 0 .. {dim - 1}')
        self.layers = _layers((dim + context_dim, *hidden, dim * parameters))
        self.shape = dim, parameters
        self.order = [list(places).index(place) for place in range(dim)]
        columns = torch.tensor([*range(dim, dim + context_dim), *self.order])  # as they become known
        self.register_buffer('columns', columns, persistent=False)
        first = 0 if context_dim or dim == 1 else 1  # units of degree 0 see the context alone
        degrees = [torch.tensor([place + 1 for place in places] + [0] * context_dim)]
        degrees += [first + torch.arange(width) * (dim - first) // width for width in hidden]
        degrees += [torch.tensor(places).repeat_interleave(parameters)]
        self.ends = [torch.searchsorted(units, torch.arange(dim), right=True).tolist() for units in degrees[1:-1]]
        for index, (before, after) in enumerate(pairwise(degrees)):
            self.register_buffer(f'mask{index}', before <= after[:, None], persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., D), (..., C) -> (..., D, P)."""
        h = x if context is None else torch.cat((x, context), -1)
        *hidden, last = zip(self._weights(), (layer.bias for layer in self.layers))
        for weight, bias in hidden:
            h = functional.relu_(functional.linear(h, weight, bias))
        return functional.linear(h, *last).unflatten(-1, self.shape)

    def fill(self, number: Callable[[int, Tensor], Tensor], known: Tensor) -> Tensor:
        """Compute the numbers one after another; each hidden unit is computed once, as soon as it can be.

        Args:
            number: called with the index of a number and its parameters (..., P); returns it (...).
            known: the context (..., C); (..., 0) if there is none.

        Returns:
            The numbers (..., D).
        """
        dim, parameters = self.shape
        (enter, *weights), (*biases, bias) = self._weights(), (layer.bias for layer in self.layers)
        *weights, leave = enter[:, self.columns], *weights
        units, numbers = [known] + [known[..., :0]] * len(weights), {}
        for place, index in enumerate(self.order):
            for depth, (weight, offset) in enumerate(zip(weights, biases)):
                new = slice(units[depth + 1].shape[-1], self.ends[depth][place])
                seen = units[depth].shape[-1]
                made = functional.relu_(functional.linear(units[depth], weight[new, :seen], offset[new]))
                units[depth + 1] = torch.cat((units[depth + 1], made), -1)
            rows = slice(index * parameters, (index + 1) * parameters)
            numbers[index] = number(index, functional.linear(units[-1], leave[rows, :units[-1].shape[-1]], bias[rows]))
            units[0] = torch.cat((units[0], numbers[index][..., None]), -1)
        return torch.stack([numbers[index] for index in range(dim)], -1)

    def _weights(self) -> list[Tensor]:
        return [layer.weight * self.get_buffer(f'mask{index}') for index, layer in enumerate(self.layers)]


def _layers(widths: Sequence[int]) -> nn.ModuleList:
    if min(widths[1:]) < 1:
        raise ConfigError(f'layers of the widths {list(widths[1:])}; allowed: 1 or more')
    layers = nn.ModuleList([nn.Linear(before, after) for before, after in pairwise(widths)])
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers
