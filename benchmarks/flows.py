"""Measures how fast density flows evaluate, draw and learn, ours beside zuko's of the same sizes, in turns."""

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
import typer
import zuko

from flow_vla_core.evaluation.report import Machine, git_state
from flow_vla_core.flows import MAF, AutoregressiveSplineFlow, NormalizingFlow, RealNVP, SplineFlow

HIDDEN, CONTEXT = (64, 64), 8
SHORTEST = 0.02  # seconds of one timing, so that the clock and a single interruption do not matter


def zuko_spline_coupling(dim: int, context: int, transforms: int, hidden_features: tuple[int, ...]) -> nn.Module:
    """Make spline coupling of zuko's parts."""
    return zuko.flows.NICE(dim, context, transforms, univariate=zuko.transforms.MonotonicRQSTransform,
                           shapes=[(8,), (8,), (7,)], hidden_features=hidden_features)


PAIRS: dict[str, tuple[Callable[..., NormalizingFlow], Callable[..., nn.Module], int]] = {
    'real_nvp': (RealNVP, zuko.flows.RealNVP, 6),
    'spline': (SplineFlow, zuko_spline_coupling, 6),
    'spline_autoregressive': (AutoregressiveSplineFlow, zuko.flows.NSF, 3),
    'maf': (MAF, zuko.flows.MAF, 5),
}


@dataclass(frozen=True)
class Speed:
    """Holds one comparison: points per second of ours and zuko's, and how many times faster ours is (median)."""

    flow: str
    work: str
    dim: int
    batch: int
    ours: float
    zuko: float
    ratio: float


def works(flow: nn.Module, x: Tensor, context: Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed: ours and zuko's flows are called alike."""
    def learn() -> None:
        flow.zero_grad()
        (-flow(context).log_prob(x).mean()).backward()

    def without_gradient(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(run)

    return {'log_prob': without_gradient(lambda: flow(context).log_prob(x)),
            'sample': without_gradient(lambda: flow(context).sample()), 'learn': learn}


def seconds_of(run: Callable[[], object], times: int) -> float:
    """Return the mean processor time of a call, which other processes disturb least."""
    start = time.thread_time()
    for _ in range(times):
        run()
    return (time.thread_time() - start) / times


def compare(name: str, dim: int, batch: int, repeats: int) -> list[Speed]:
    """Time ours and zuko's in turns."""
    make, make_zuko, layers = PAIRS[name]
    x, context = torch.randn(batch, dim), torch.randn(batch, CONTEXT)
    ours = works(make(dim, CONTEXT, layers, HIDDEN), x, context)
    theirs = works(make_zuko(dim, CONTEXT, transforms=layers, hidden_features=HIDDEN), x, context)
    speeds = []
    for work in ours:
        times = 1 + round(SHORTEST / max(seconds_of(ours[work], 3), seconds_of(theirs[work], 3)))
        turns = [(seconds_of(ours[work], times), seconds_of(theirs[work], times)) for _ in range(repeats)]
        speeds.append(Speed(name, work, dim, batch, batch / median(turn[0] for turn in turns),
                            batch / median(turn[1] for turn in turns), median(turn[1] / turn[0] for turn in turns)))
    return speeds


def run(
    dims: Annotated[str, typer.Option(help='dimensions, with commas between')] = '2,16',
    batches: Annotated[str, typer.Option(help='points per call, with commas between')] = '64,4096',
    flows: Annotated[str, typer.Option(help='names, with commas between')] = ','.join(PAIRS),
    repeats: Annotated[int, typer.Option(min=1, help='turns')] = 15,
    out: Annotated[Path, typer.Option('--json', help='file of the results')] = Path('out/benchmarks/flows.json'),
) -> None:
    """Compare the speeds on one thread; takes about two minutes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = [speed for name in flows.split(',') for dim in map(int, dims.split(','))
             for batch in map(int, batches.split(',')) for speed in compare(name, dim, batch, repeats)]
    made = Table('flow', 'work', 'dim', 'batch', 'points/s', "zuko's", 'ratio')
    for speed in found:
        made.add_row(speed.flow, speed.work, str(speed.dim), str(speed.batch), f'{speed.ours:,.0f}',
                     f'{speed.zuko:,.0f}', f'{speed.ratio:.2f}')
    Console().print(made)
    out.parent.mkdir(parents=True, exist_ok=True)
    values = {'git_commit': git_state()[0], 'machine': asdict(Machine.here()), 'hidden': HIDDEN, 'context': CONTEXT,
              'speeds': [asdict(speed) for speed in found]}
    out.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    typer.run(run)
