"""Measures how well density flows learn distributions in the plane, ours beside zuko's, against the exact floors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path
from statistics import mean
import time
from typing import Annotated, Protocol

from rich.console import Console
from rich.table import Table
import torch
from torch import Tensor, nn
import typer
import zuko

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.evaluation.toys import DENSITIES, FLOORS, TOYS
from flow_vla_core.flows import FLOWS, ContinuousNormalizingFlow, NormalizingFlow

HIDDEN = (64, 64)
TEST_SEED = 1_000_003


class Model(Protocol):
    """Is a density model under test."""

    module: nn.Module

    def nll(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """What training minimises: (N, 2) -> (N)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density, in nats: (N, 2) -> (N)."""


class Ours:
    """Wraps one of our flows."""

    def __init__(self, flow: NormalizingFlow) -> None:
        self.module = flow

    def nll(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.module.nll(x, None, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.module().log_prob(x)


class Zuko:
    """Wraps a flow of zuko."""

    def __init__(self, build: Callable[..., nn.Module], transforms: int) -> None:
        self.module = build(2, transforms=transforms, hidden_features=HIDDEN)

    def nll(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return -self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.module().log_prob(x)


MODELS: dict[str, Callable[[], Model]] = {
    **{name: lambda name=name: Ours(FLOWS[name](2, 0)) for name in FLOWS},
    # With the exact trace, as two dimensions allow; its training has fewer and longer steps.
    'continuous': lambda: Ours(ContinuousNormalizingFlow(2, estimator='exact')),
    'zuko_real_nvp': lambda: Zuko(zuko.flows.RealNVP, 6),
    'zuko_maf': lambda: Zuko(zuko.flows.MAF, 5),
    'zuko_spline_autoregressive': lambda: Zuko(zuko.flows.NSF, 3),
}


@dataclass(frozen=True)
class Budget:
    """Says how long a flow is trained, with Adam whose rate falls from ``rate`` as a cosine."""

    steps: int
    rate: float = 1e-3


BUDGETS = {'continuous': Budget(1500, 3e-3)}  # every step solves two differential equations


@dataclass(frozen=True)
class Result:
    """Holds trainings with several seeds: mean negative log-likelihood of fresh points in nats, seconds of each.

    ``nll`` is the mean of ``nlls``, ``error`` the standard error of one of them by the choice of the points. ``truth``
    is what the exact density has on the same points, ``floor`` its expectation; None where it is not known.
    """

    target: str
    flow: str
    nll: float
    nlls: list[float]
    error: float
    truth: float | None
    floor: float | None
    parameters: int
    seconds: float


def train(model: Model, target: str, budget: Budget, batch: int, seed: int) -> float:
    """Fit the model; return the seconds it took."""
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.module.parameters(), budget.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, budget.steps)
    model.module.train()
    start = time.perf_counter()
    for _ in range(budget.steps):
        optimiser.zero_grad()
        model.nll(TOYS[target](batch, random), random).mean().backward()
        optimiser.step()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(model: Model, target: str, count: int) -> Tensor:
    """Return -log p of fresh points, the same ones for every model: (count)."""
    model.module.eval()
    return -torch.cat([model.log_prob(part) for part in fresh(target, count).split(5000)])


def fresh(target: str, count: int) -> Tensor:
    """Draw the points that every model is evaluated on: (count, 2)."""
    return TOYS[target](count, torch.Generator().manual_seed(TEST_SEED))


def measure(name: str, target: str, steps: int, batch: int, points: int, seeds: int) -> Result:
    """Train one model on one target, once for each seed."""
    nlls, seconds = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = MODELS[name]()
        seconds.append(train(model, target, BUDGETS.get(name, Budget(steps)), batch, seed))
        nlls.append(evaluate(model, target, points).double())
    truth = -DENSITIES[target](fresh(target, points)).double().mean().item() if target in DENSITIES else None
    means = [nll.mean().item() for nll in nlls]
    return Result(target, name, mean(means), means, nlls[0].std().item() / math.sqrt(points), truth,
                  FLOORS.get(target), sum(p.numel() for p in model.module.parameters()), mean(seconds))


def table(results: list[Result]) -> Table:
    """Lay the results out: a row for each flow, a column for each target."""
    targets = list(dict.fromkeys(result.target for result in results))
    found = {(result.flow, result.target): result for result in results}
    made = Table('flow', *targets, 'parameters', 'seconds')
    floors = (f'{FLOORS[target]:.3f}' if target in FLOORS else '' for target in targets)
    truths = {result.target: f'{result.truth:.3f}' if result.truth else '' for result in results}
    made.add_row('floor', *floors, '', '')
    made.add_row('floor on these points', *(truths[target] for target in targets), '', '', end_section=True)
    for flow in dict.fromkeys(result.flow for result in results):
        own = [result for result in results if result.flow == flow]
        cells = (f'{found[flow, target].nll:.3f}' if (flow, target) in found else '' for target in targets)
        made.add_row(flow, *cells, str(own[0].parameters), f'{sum(result.seconds for result in own) / len(own):.0f}')
    return made


def chosen(given: str, allowed: list[str], what: str) -> list[str]:
    """Split names, and refuse unknown ones."""
    names = allowed if given == 'all' else given.split(',')
    for name in names:
        if name not in allowed:
            raise ConfigError(f'{what}: {name!r}; {closest(name, allowed)}')
    return names


def run(
    targets: Annotated[str, typer.Option(help='names with commas between, or all')] = 'all',
    flows: Annotated[str, typer.Option(help='names with commas between, or all')] = 'all',
    steps: Annotated[int, typer.Option(min=1, help='of the optimiser')] = 2500,
    batch: Annotated[int, typer.Option(min=1, help='points per step')] = 512,
    points: Annotated[int, typer.Option(min=2, help='fresh points that are evaluated')] = 20_000,
    seeds: Annotated[int, typer.Option(min=1, help='trainings of each, with different weights and data')] = 1,
    out: Annotated[Path, typer.Option('--json', help='file of the results; written after each training')] =
        Path('out/benchmarks/densities.json'),
) -> None:
    """Train every flow on every target on one thread; the whole table takes about an hour."""
    torch.set_num_threads(1)
    out.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for target in chosen(targets, list(TOYS), 'targets'):
        for name in chosen(flows, list(MODELS), 'flows'):
            results.append(measure(name, target, steps, batch, points, seeds))
            print(f'{target} {name}: {results[-1].nll:.3f} in {results[-1].seconds:.0f} s', flush=True)
            values = {'steps': steps, 'batch': batch, 'points': points, 'seeds': seeds, 'git_commit': git_state()[0],
                      'machine': asdict(Machine.here()), 'results': [asdict(result) for result in results]}
            out.write_text(json.dumps(values, indent=2) + '\n')
    Console().print(table(results))


if __name__ == '__main__':
    typer.run(run)
