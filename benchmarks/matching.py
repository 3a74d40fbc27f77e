"""Measures flow matching's throughput beside torchcfm's with torchdiffeq: same network, sizes, draws and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
import json
from pathlib import Path
from statistics import median
import time
from typing import Annotated

from rich.console import Console
from rich.table import Table
import torch
from torch import Tensor, nn
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher
from torchcfm.models.models import MLP
from torchcfm.optimal_transport import OTPlanSampler
from torchdiffeq import odeint
import typer

from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.generators import FlowMatching
from flow_vla_core.generators.couplings import COUPLINGS, OptimalTransport
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

CHUNK, POINT = Sizes(horizon=16, action_dim=2, condition_dim=8), Sizes(horizon=1, action_dim=2, condition_dim=1)
MATCHERS = {'independent': ConditionalFlowMatcher, 'optimal_transport': ExactOptimalTransportConditionalFlowMatcher}
SAMPLERS = (('euler', 10), ('midpoint', 5))
Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Holds the same work, done by each of the two; ``batch`` chunks are made or learned from."""

    name: str
    batch: int
    ours: Work
    theirs: Work


@dataclass(frozen=True)
class Result:
    """Holds chunks per second of one core, and the median ratio of the times of a repeat: above 1, ours is faster."""

    name: str
    batch: int
    ours: float
    theirs: float
    ratio: float


class Plain(nn.Module):
    """Is torchcfm's network for points in the plane: three hidden layers of 64 with SELU."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = MLP(2, time_varying=True)

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, 1, 2), (B,) -> (B, 1, 2)."""
        return self.layers(torch.cat([x[:, 0], t[:, None]], 1))[:, None]


def inputs(sizes: Sizes, batch: int) -> tuple[Tensor, Condition, nn.Module]:
    """Return chunks, conditions and an untrained network: a large one for chunks of actions, a small one for points."""
    torch.manual_seed(0)
    chunks = torch.randn(batch, sizes.horizon, sizes.action_dim)
    network = NetworkConfig('mlp', 256, 3).build(sizes) if sizes == CHUNK else Plain()
    return chunks, Condition(torch.randn(batch, sizes.condition_dim)), network


def sampling(sizes: Sizes, solver: str, batch: int, steps: int) -> Case:
    """Make chunks out of noise that is drawn anew."""
    chunks, condition, network = inputs(sizes, batch)
    generator = FlowMatching(network, sizes, steps=steps, solver=solver).eval()
    grid = torch.linspace(0, 1, steps + 1)

    @torch.no_grad()
    def theirs() -> Tensor:
        return odeint(lambda t, x: network(x, t.expand(len(x)), condition), torch.randn_like(chunks), grid,
                      method=solver)[-1]

    return Case(f'sample {named(sizes)}, {solver} {steps}', batch,
                torch.no_grad()(lambda: generator.sample(condition)), theirs)


def coupling(batch: int) -> Case:
    """Pair noise and chunks by optimal transport."""
    chunks, condition, _ = inputs(CHUNK, batch)
    noise = torch.randn_like(chunks)
    return Case('optimal transport', batch, lambda: OptimalTransport().pair(noise, chunks, condition),
                lambda: OTPlanSampler('exact').sample_plan(noise, chunks))


def training(sizes: Sizes, coupling: str, batch: int) -> Case:
    """Draw noise and time, couple, and go forward and back through the network."""
    chunks, condition, network = inputs(sizes, batch)
    generator = FlowMatching(network, sizes, time='uniform', draws=1, coupling=COUPLINGS[coupling]())
    matcher = MATCHERS[coupling](0.0)

    def theirs() -> None:
        t, place, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(chunks), chunks)
        (network(place, t, condition) - velocity).square().mean().backward()

    return Case(f'loss {named(sizes)}, {coupling}', batch, lambda: generator.loss(chunks, condition).backward(), theirs)


def named(sizes: Sizes) -> str:
    """Say what is made."""
    return f'{sizes.horizon} x {sizes.action_dim}'


def seconds(work: Work, least: float) -> float:
    """Return the processor's time for one call, from as many as take the given time."""
    start, calls = time.process_time(), 0
    while (passed := time.process_time() - start) < least or not calls:
        work()
        calls += 1
    return passed / calls


def compare(case: Case, repeats: int, least: float) -> Result:
    """Time the two in turns, so that whatever else the machine does hits both."""
    for work in (case.ours, case.theirs):
        seconds(work, least / 2)
    times = [(seconds(case.ours, least), seconds(case.theirs, least)) for _ in range(repeats)]
    ours, theirs = (case.batch / median(side) for side in zip(*times))
    return Result(case.name, case.batch, ours, theirs, median(their / our for our, their in times))


def measure(
    repeats: Annotated[int, typer.Option(min=1, help='of each pair')] = 15,
    least: Annotated[float, typer.Option(min=0.0, help='seconds of one core that each is timed in each repeat')] = 0.2,
    json_file: Annotated[Path, typer.Option('--json', help='file of the results')]
    = Path('out/benchmarks/matching.json'),
) -> None:
    """Time sampling and training steps of both, and report the ratios."""
    torch.set_num_threads(1)
    cases = [*(sampling(sizes, solver, batch, steps) for sizes in (POINT, CHUNK) for solver, steps in SAMPLERS
               for batch in (1, 64)),
             *(training(sizes, coupling, 256) for sizes in (POINT, CHUNK) for coupling in MATCHERS),
             coupling(64), coupling(256)]
    results = [compare(case, repeats, least) for case in cases]
    table = Table('work', 'batch', 'ours /s', 'torchcfm /s', 'ratio')
    for result in results:
        table.add_row(result.name, f'{result.batch}', f'{result.ours:.0f}', f'{result.theirs:.0f}',
                      f'{result.ratio:.2f}')
    Console().print(table)
    values = {'results': [asdict(result) for result in results], 'repeats': repeats, 'git_commit': git_state()[0],
              'machine': asdict(Machine.here())}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    typer.run(measure)
