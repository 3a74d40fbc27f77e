"""Measures how straight flow matching's solutions are, and how near few steps come, for each coupling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import product
import json
import math
from pathlib import Path
from statistics import mean, stdev
import time
from typing import Annotated

import numpy as np
from rich.console import Console
from rich.table import Table
import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import (
    ConditionalFlowMatcher,
    ExactOptimalTransportConditionalFlowMatcher,
)
import typer

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.distances import wasserstein2
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.generators import FlowMatching
from flow_vla_core.generators.couplings import COUPLINGS, ConditionalOptimalTransport, Independent
from flow_vla_core.networks import Sizes
from flow_vla_core.solvers import solve, solve_adaptively
from flow_vla_core.types import Condition

SIZES = Sizes(horizon=1, action_dim=2, condition_dim=1)
SMOOTHING = 0.1  # standard deviation of the noise on every path
STEPS = (1, 2, 4, 8, 16, 32, 100)  # of Euler
GRID = 100  # RK4 steps that stand for the exact solution
TEST_SEED = 1_000_003


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Draw from eight Gaussians of variance sqrt(.1) on a circle of radius 5, as torchcfm does: (N, 2)."""
    angles = math.pi / 4 * torch.randint(8, (count,), generator=generator)
    centres = 5 * torch.stack([angles.cos(), angles.sin()], 1)
    return centres + 0.1 ** 0.25 * torch.randn(count, 2, generator=generator)


def gaussian(count: int, generator: torch.Generator) -> Tensor:
    """Draw standard Gaussian points (N, 2)."""
    return torch.randn(count, 2, generator=generator)


def moons(count: int, generator: torch.Generator) -> Tensor:
    """Draw from two moons, shifted along the diagonal by up to .2, times 3, minus 1, as torchcfm does: (N, 2)."""
    parts = []
    for lower, number in ((0, count // 2), (1, count - count // 2)):
        angle = torch.linspace(0, math.pi, number)
        x, y = angle.cos(), angle.sin()
        parts.append(torch.stack([1 - x, 0.5 - y] if lower else [x, y], 1))
    return 3 * (torch.cat(parts) + 0.2 * torch.rand(count, 1, generator=generator)) - 1


SOURCES: dict[str, Callable[[int, torch.Generator], Tensor]] = {'eight_gaussians': eight_gaussians,
                                                                'gaussian': gaussian}


class Plain(nn.Module):
    """Is the velocity network of the published figures: three hidden layers of 64 with SELU, on (x, y, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 64),
                                    nn.SELU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, 1, 2), (B,) -> (B, 1, 2)."""
        return self.layers(torch.cat([x[:, 0], t[:, None]], 1))[:, None]


@dataclass(frozen=True)
class Figures:
    """Holds what was measured for one map, coupling and seed.

    Args:
        errors: Euler's number of steps -> Wasserstein distance of its end points to fresh moons.
        evaluations: of dopri5 at a tolerance of 1e-5.
        path_energy: normalised, ``|E integral |v|^2 - W2^2| / W2^2`` with W2 between source and moons.
        straightness: mean over t of ``E |(x_1 - x_0) - v_t|^2`` along the exact solution.
        floor: Wasserstein distance between two sets of moons, below which no error can be seen.
        seconds: of one core, for training.
    """

    errors: dict[int, float]
    evaluations: int
    path_energy: float
    straightness: float
    floor: float
    seconds: float


def our_loss(generator: FlowMatching, noise: Tensor, data: Tensor, random: torch.Generator) -> Tensor:
    """Couple noise and data (B, 1, 2) and return the loss."""
    nothing = Condition(torch.zeros(len(data), 1))
    noise = generator.coupling.pair(noise, data, nothing)
    blur = SMOOTHING * torch.randn(data.shape, generator=random)  # the same at both ends: around all of the path
    return generator.pair_loss(noise + blur, data + blur, nothing, generator=random)


def their_loss(generator: FlowMatching, noise: Tensor, data: Tensor, random: torch.Generator) -> Tensor:
    """Return the loss of torchcfm, with the same network and kind of coupling."""
    if isinstance(generator.coupling, ConditionalOptimalTransport):
        raise ConfigError('torchcfm has no coupling that knows the condition')
    plain = isinstance(generator.coupling, Independent)
    matcher = (ConditionalFlowMatcher if plain else ExactOptimalTransportConditionalFlowMatcher)(SMOOTHING)
    t, place, velocity = matcher.sample_location_and_conditional_flow(noise, data)
    return (generator.network(place, t, Condition(torch.zeros(len(data), 1))) - velocity).square().mean()


LOSSES = {'flow_vla': our_loss, 'torchcfm': their_loss}


def train(source: str, coupling: str, library: str, steps: int, batch: int, seed: int) -> tuple[FlowMatching, float]:
    """Fit flow matching without a condition; return it and the seconds that took."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # torchcfm draws from it
    random = torch.Generator().manual_seed(seed)
    generator = FlowMatching(Plain(), SIZES, time='uniform', coupling=COUPLINGS[coupling]())
    optimiser = torch.optim.Adam(generator.parameters())
    start = time.process_time()
    for _ in range(steps):
        optimiser.zero_grad()
        noise, data = SOURCES[source](batch, random)[:, None], moons(batch, random)[:, None]
        LOSSES[library](generator, noise, data, random).backward()
        optimiser.step()
    return generator, time.process_time() - start


@torch.no_grad()
def evaluate(source: str, points: int, generator: FlowMatching, seconds: float) -> Figures:
    """Measure a trained generator on fresh points."""
    random = torch.Generator().manual_seed(TEST_SEED)
    noise, data, others = SOURCES[source](points, random), moons(points, random), moons(points, random)
    field = generator.field(Condition(torch.zeros(points, 1)))
    errors = {steps: wasserstein2(solve(field, noise[:, None], steps)[:, 0], data) for steps in STEPS}
    velocities, displacement = follow(field, noise[:, None])
    energy, transport = velocities.square().sum((-1, -2)).mean().item(), wasserstein2(noise, data) ** 2
    bend = (displacement - velocities).square().sum((-1, -2)).mean().item()
    return Figures(errors, solve_adaptively(field, noise[:, None]).evaluations, abs(energy - transport) / transport,
                   bend, wasserstein2(others, data), seconds)


def follow(field: Callable[[Tensor, float], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocities (T, N, 1, 2) in the middle of T steps along the exact solution, and where it leads to."""
    start, velocities = x, []
    for index in range(GRID):
        first, last = index / GRID, (index + 1) / GRID
        middle = solve(field, x, 1, 'rk4', t0=first, t1=(first + last) / 2)
        velocities.append(field(middle, (first + last) / 2))
        x = solve(field, x, 1, 'rk4', t0=first, t1=last)
    return torch.stack(velocities), x - start


def average(runs: list[Figures]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation of every figure over the seeds."""
    flat = [{**{f'euler_{steps}': error for steps, error in run.errors.items()},
             **{field.name: getattr(run, field.name) for field in fields(run) if field.name != 'errors'}}
            for run in runs]
    return {name: {'mean': mean(values), 'std': stdev(values) if len(values) > 1 else 0.0}
            for name in flat[0] for values in [[row[name] for row in flat]]}


def show(rows: list[dict]) -> None:
    """Print the table."""
    columns = ('euler_1', 'euler_4', 'euler_100', 'evaluations', 'path_energy', 'straightness', 'floor', 'seconds')
    table = Table('to moons from', 'coupling', 'library', *(name.replace('_', ' ') for name in columns))
    for row in rows:
        table.add_row(row['source'], row['coupling'], row['library'],
                      *(f'{row[name]["mean"]:.3f} ± {row[name]["std"]:.3f}' for name in columns))
    Console(width=200).print(table)


def measure(
    sources: Annotated[str, typer.Option(help=f'comma-separated: {", ".join(SOURCES)}')] = ','.join(SOURCES),
    couplings: Annotated[str, typer.Option(help=f'comma-separated: {", ".join(COUPLINGS)}')]
    = 'independent,optimal_transport',
    libraries: Annotated[str, typer.Option(help=f'comma-separated: {", ".join(LOSSES)}')] = 'flow_vla',
    steps: Annotated[int, typer.Option(min=1, help='of the optimiser')] = 5000,
    batch: Annotated[int, typer.Option(min=2)] = 256,
    points: Annotated[int, typer.Option(min=2, help='fresh points')] = 2048,
    seeds: Annotated[int, typer.Option(min=1, help='trainings of each')] = 3,
    json_file: Annotated[Path, typer.Option('--json', help='file of the results')]
    = Path('out/benchmarks/straightness.json'),
) -> None:
    """Train every coupling on every map, and report distances, evaluations, path energy and straightness."""
    torch.set_num_threads(1)
    chosen = [choose(text, allowed) for text, allowed in ((sources, SOURCES), (couplings, COUPLINGS),
                                                          (libraries, LOSSES))]
    rows: list[dict] = []
    json_file.parent.mkdir(parents=True, exist_ok=True)
    for source, coupling, library in product(*chosen):
        runs = [evaluate(source, points, *train(source, coupling, library, steps, batch, seed))
                for seed in range(seeds)]
        rows.append({'source': source, 'coupling': coupling, 'library': library, **average(runs),
                     'seeds': [asdict(run) for run in runs]})
        show(rows)
        values = {'steps': steps, 'batch': batch, 'points': points, 'rows': rows, 'git_commit': git_state()[0],
                  'machine': asdict(Machine.here())}
        json_file.write_text(json.dumps(values, indent=2) + '\n')


def choose(text: str, allowed: dict[str, object]) -> list[str]:
    """Split a list of names. Raise `ConfigError` for one that there is not."""
    names = text.split(',')
    for name in names:
        if name not in allowed:
            raise ConfigError(f'{name!r}; {closest(name, allowed)}')
    return names


if __name__ == '__main__':
    typer.run(measure)
