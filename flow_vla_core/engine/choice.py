"""Which way to run a policy."""

from __future__ import annotations

from collections.abc import Mapping
import logging
from typing import TYPE_CHECKING

import torch

from flow_vla_core.engine.graph import Graph
from flow_vla_core.engine.half import deviation, halved
from flow_vla_core.engine.modes import Mode
from flow_vla_core.engine.runners import Compiled, Eager, Runner, Willing
from flow_vla_core.engine.traced import Traced

if TYPE_CHECKING:
    from flow_vla_core.policy import FlowVLA

__all__ = ['RUNNERS', 'TOLERANCE', 'choose']

LOG = logging.getLogger(__name__)
TOLERANCE = 0.02  # of half the range between the 1 % and 99 % quantiles of an action

RUNNERS: Mapping[str, type[Runner]] = {'eager': Eager, 'traced': Traced, 'compiled': Compiled, 'graph': Graph}


def choose(name: str, policy: FlowVLA, mode: Mode, generator: torch.Generator, half: bool | None = None) -> Runner:
    """Make the runner of this name; ``auto`` is a CUDA graph or, on a CPU, traced where that can be had, else eager.

    Args:
        name: one of `RUNNERS`, or ``auto``.
        policy: in evaluation mode, on its device.
        mode: how chunks go on from the plan in force.
        generator: source of randomness.
        half: whether to try bfloat16; None does so on CUDA.

    Raises:
        ConfigError: for a graph without CUDA.
    """
    on_cuda = next(policy.parameters()).device.type == 'cuda'
    if on_cuda if half is None else half:
        policy = _in_half(policy)
    if name != 'auto':
        return RUNNERS[name](policy, mode, generator)
    eager = Eager(policy, mode, generator)
    if on_cuda:
        return Willing(Graph(policy, mode, generator), eager)
    fixed = mode.is_fixed(policy.generator)
    return Willing(Traced(policy, mode, generator), eager) if fixed else eager


def _in_half(policy: FlowVLA) -> FlowVLA:
    """Return a copy in half precision if its chunks stay within `TOLERANCE`, else the policy."""
    other = halved(policy)
    if other is None:
        LOG.warning('full precision: %s has no velocity network of its own', type(policy.generator).__name__)
        return policy
    moved = deviation(policy, other)
    if not moved <= TOLERANCE:
        LOG.warning('full precision: in bfloat16 an action moves by %.3g of its scale; allowed: %g', moved, TOLERANCE)
        return policy
    return other
