"""A policy whose weights lie as a CPU reads them fastest for one short chunk."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['WindowConv1d', 'WindowConvTranspose1d', 'arranged']


class WindowConv1d(nn.Module):
    """Does what a `torch.nn.Conv1d` does, as one product of matrices: each row is a window of the input.

    With the length before the channels, windows are rows of the padded input that overlap in memory, so that nothing
    is copied but the padding. For short inputs and many channels the library's own way, which copies every window, and
    lets the weights' rows lie across, takes several times as long.

    Args:
        layer: without dilation or groups, padded with zeros.

    Example:
        >>> layer, x = nn.Conv1d(3, 4, 5, 2, 1), torch.randn(2, 3, 9)
        >>> torch.allclose(WindowConv1d(layer)(x), layer(x), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.kernel, = layer.kernel_size
        self.stride, = layer.stride
        self.padding, = layer.padding
        rows = layer.weight.detach().permute(2, 1, 0).reshape(-1, layer.out_channels)
        self.register_buffer('rows', rows.contiguous())
        self.register_buffer('bias', None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, channels, its length)."""
        batch, channels, length = x.shape
        wide = functional.pad(x.transpose(1, 2), (0, 0, self.padding, self.padding)).contiguous()
        count = (length + 2 * self.padding - self.kernel) // self.stride + 1
        windows = wide.as_strided((batch, count, self.kernel * channels),
                                  (wide.stride(0), self.stride * channels, 1))
        made = functional.linear(windows[0], self.rows.t(), self.bias)[None] if batch == 1 else \
            functional.linear(windows, self.rows.t(), self.bias)
        return made.transpose(1, 2)

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Tell whether it can stand for a layer."""
        return isinstance(layer, nn.Conv1d) and layer.groups == 1 and layer.dilation == (1,) \
            and layer.padding_mode == 'zeros' and not isinstance(layer.padding, str)


class WindowConvTranspose1d(nn.Module):
    """Does what a `torch.nn.ConvTranspose1d` does whose kernel is twice its stride: each place adds to two strides.

    Args:
        layer: without dilation, groups or padding of the output.

    Example:
        >>> layer, x = nn.ConvTranspose1d(3, 4, 4, 2, 1), torch.randn(2, 3, 5)
        >>> torch.allclose(WindowConvTranspose1d(layer)(x), layer(x), atol=1e-6)
        True
    """

    def __init__(self, layer: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.stride, = layer.stride
        self.padding, = layer.padding
        self.channels = layer.out_channels
        self.register_buffer('rows', layer.weight.detach().permute(0, 2, 1).flatten(1).contiguous())
        self.register_buffer('bias', None if layer.bias is None else layer.bias.detach()[:, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, channels, its length)."""
        batch, _, length = x.shape
        parts = (x.transpose(1, 2) @ self.rows).reshape(batch, length, 2, self.stride * self.channels)
        first, second = functional.pad(parts[:, :, 0], (0, 0, 0, 1)), functional.pad(parts[:, :, 1], (0, 0, 1, 0))
        whole = (first + second).reshape(batch, (length + 1) * self.stride, self.channels).transpose(1, 2)
        made = whole[..., self.padding:whole.shape[2] - self.padding]
        return made if self.bias is None else made + self.bias

    @classmethod
    def fits(cls, layer: nn.Module) -> bool:
        """Tell whether it can stand for a layer."""
        return isinstance(layer, nn.ConvTranspose1d) and layer.groups == 1 and layer.dilation == (1,) \
            and layer.output_padding == (0,) and layer.kernel_size[0] == 2 * layer.stride[0]


def arranged(policy: FlowVLA) -> FlowVLA:
    """Return a copy of a policy that computes the same with `WindowConv1d` and `WindowConvTranspose1d`."""
    other = copy.deepcopy(policy)
    for module in list(other.modules()):
        for name, layer in list(module.named_children()):
            for kind in (WindowConv1d, WindowConvTranspose1d):
                if kind.fits(layer):
                    setattr(module, name, kind(layer))
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return other.eval().requires_grad_(False)
