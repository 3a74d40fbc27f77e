"""What a device can do, asked before a training begins."""

from __future__ import annotations

import os
import shutil

import torch

from flow_vla_core.errors import ConfigError

__all__ = ['check_compiler', 'check_half']

COMPILERS = ('g++', 'clang++', 'c++')
AMPERE = (8, 0)  # compute capability of the first CUDA devices with bfloat16


def check_half(device: torch.device) -> None:
    """Raise `ConfigError` if a device has no bfloat16; every CPU has it, an old one slowly."""
    if device.type == 'cpu' or (device.type == 'cuda' and (torch.version.hip or _capability(device) >= AMPERE)):
        return
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device)
    raise ConfigError(f'half: {name} has no bfloat16; set half: false, or give --no-half')


def check_compiler(device: torch.device) -> None:
    """Raise `ConfigError` if networks cannot be compiled for a device, because the C++ compiler is missing."""
    wanted = [os.environ['CXX']] if os.environ.get('CXX') else list(COMPILERS)
    if device.type == 'cpu' and not any(map(shutil.which, wanted)):
        raise ConfigError(f'compile: no C++ compiler ({", ".join(wanted)}); install one, set compile: false, or give '
                          '--no-compile')


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
