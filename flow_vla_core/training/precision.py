"""What a device can do, asked before a training begins."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.training.config import LoopConfig

__all__ = ['DEVICES', 'check_compiler', 'check_device', 'check_half', 'choose_device']

COMPILERS = ('g++', 'clang++', 'c++')
DEVICES = ('auto', 'cpu', 'cuda')
AMPERE = (8, 0)  # compute capability of the first CUDA devices with bfloat16


def choose_device(name: str) -> str:
    """Return ``cpu`` or ``cuda`` for one of `DEVICES`. Raise `ConfigError` for another, or without a CUDA device."""
    if name not in DEVICES:
        raise ConfigError(f'no device {name!r}; {closest(name, DEVICES)}')
    there = torch.cuda.is_available()
    if name == 'cuda' and not there:
        raise ConfigError('device: cuda, but torch finds no CUDA device; choose cpu or auto')
    return name if name != 'auto' else 'cuda' if there else 'cpu'


def check_device(config: LoopConfig, device: torch.device | str, module: nn.Module | None = None) -> None:
    """Raise `ConfigError` if a device can't do what is asked for; without a module for a policy, which has an LSTM."""
    if config.half:
        check_half(torch.device(device), module is None or any(isinstance(e, nn.RNNBase) for e in module.modules()))
    if config.compile:
        check_compiler(torch.device(device))


def check_half(device: torch.device, recurrent: bool = True) -> None:
    """Raise `ConfigError` if a device has no bfloat16; old CPUs have it, slowly, but not for ``recurrent`` layers."""
    able = {'cpu': _cpu_is_able, 'cuda': _cuda_is_able}.get(device.type)
    if device.type == 'cpu' and not recurrent:
        return
    if able is None or not able(device):
        name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'this {device.type}'
        raise ConfigError(f'half: {name} does not compute in bfloat16; set half: false, or give --no-half')


def check_compiler(device: torch.device) -> None:
    """Raise `ConfigError` if networks cannot be compiled for a device, because the C++ compiler is missing."""
    wanted = [os.environ['CXX']] if os.environ.get('CXX') else list(COMPILERS)
    if device.type == 'cpu' and not any(map(shutil.which, wanted)):
        raise ConfigError(f'compile: no C++ compiler ({", ".join(wanted)}); install one, set compile: false, or give '
                          '--no-compile')


def _cuda_is_able(device: torch.device) -> bool:
    return bool(torch.version.hip) or _capability(device) >= AMPERE


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _cpu_is_able(_: torch.device) -> bool:
    """Ask oneDNN, without which LSTMs in bfloat16 raise an error that says nothing; it needs AVX-512 or the like."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return True  # built without oneDNN: torch's own kernels take every type
