"""What a chunk costs: evaluations of networks, and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import statistics
import time

import torch
from torch import Tensor

from flow_vla_core.generators import Generator
from flow_vla_core.networks import ActionTransformer, ResidualMLP, UNet1d
from flow_vla_core.types import Condition

__all__ = ['chunks_per_second', 'count_evaluations', 'make_chunks', 'one_thread', 'watch']

NETWORKS = (ActionTransformer, ResidualMLP, UNet1d)


def make_chunks(generator: Generator, condition: Condition, steps: int | None = None,
                random: torch.Generator | None = None, size: int = 2048) -> Tensor:
    """Make one chunk for each condition, some at a time, without gradient: (B, H, A).

    Args:
        generator: makes them; is put into evaluation mode.
        condition: of B elements.
        steps: effort; None takes the generator's own.
        random: source of randomness.
        size: how many at a time.
    """
    generator.eval()
    with torch.no_grad():
        parts = [generator.sample(condition[place:place + size], steps=steps, generator=random)
                 for place in range(0, len(condition), size)]
    return torch.cat(parts)


@contextmanager
def watch(generator: Generator, hear: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``hear(x, t)`` before each evaluation of one of the generator's networks."""
    networks = [module for module in generator.modules() if isinstance(module, NETWORKS)]
    handles = [network.register_forward_pre_hook(lambda _, arguments: hear(*arguments[:2])) for network in networks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def count_evaluations(generator: Generator, steps: int | None = None) -> int:
    """Count the evaluations of networks for one chunk; a generator without such a network counts as one.

    Example:
        >>> from flow_vla_core.generators import FlowMatchingConfig
        >>> from flow_vla_core.networks import NetworkConfig, Sizes
        >>> made = FlowMatchingConfig(solver='midpoint').build(Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1))
        >>> count_evaluations(made, steps=3)
        6
    """
    calls: list[Tensor] = []
    with watch(generator, lambda _, t: calls.append(t)):
        make_chunks(generator, _blank(generator), steps, torch.Generator().manual_seed(0))
    return max(1, len(calls))


def chunks_per_second(generator: Generator, steps: int | None = None, seconds: float = 1.0) -> float:
    """Measure how many chunks are made in a second, one at a time on one thread; the median over some of them.

    Args:
        generator: makes them.
        steps: effort; None takes the generator's own.
        seconds: how long to measure, at most twice that.
    """
    condition, random, times = _blank(generator), torch.Generator().manual_seed(0), []
    with one_thread():
        for _ in range(3):
            make_chunks(generator, condition, steps, random)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not times:
            start = time.perf_counter()
            make_chunks(generator, condition, steps, random)
            times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _blank(generator: Generator) -> Condition:
    sizes, like = generator.sizes, next(generator.parameters())
    tokens = torch.zeros(1, 2, sizes.token_dim).to(like) if sizes.token_dim else None
    return Condition(torch.zeros(1, sizes.condition_dim).to(like), tokens)
