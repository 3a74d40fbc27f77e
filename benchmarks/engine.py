"""Measures how long a chunk takes by each way to run a policy; needs only torch and numpy beside the checkout."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
import importlib.util
import json
from pathlib import Path
import platform
import subprocess
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from flow_vla_core.engine.request import Request
    from flow_vla_core.types import Condition

ROOT = Path(__file__).resolve().parents[1]
BASELINE = 'step by step'
LARGE = {'30 M, random weights': (512, 6), '100 M, random weights': (1024, 5)}  # width and depth
OPTIONAL = {'roma': (), 'scipy': ('scipy.optimize',), 'torchdiffeq': ()}  # of families that are not measured here
CAMERAS, HORIZON, ACTIONS, STATE, WORDS, WIDTH = 3, 50, 14, 14, 64, 512


@dataclass(frozen=True)
class Row:
    """Holds what one way took: ms; ratio of the baseline's median to its own; largest difference of an action."""

    way: str
    p50: float
    p99: float
    ratio: float
    difference: float


@dataclass
class Table:
    """Holds the rows of one policy, and of its ways to go on from a plan; ``missing`` says why a way has no row."""

    policy: str
    parameters: int
    steps: int
    rows: list[Row] = field(default_factory=list)
    modes: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Absent(ModuleType):
    """Stands in for a package that some families need and this benchmark does not."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return None


class Large(nn.Module):
    """Is a policy of three 224 x 224 cameras with random weights, which needs no contract.

    Args:
        width: of the transformer.
        depth: of the transformer.
        steps: of a chunk.
    """

    def __init__(self, width: int, depth: int, steps: int) -> None:
        super().__init__()
        from flow_vla_core.encoders import Fusion, ImageEncoder, StateEncoder
        from flow_vla_core.generators import FlowMatchingConfig
        from flow_vla_core.networks import NetworkConfig, Sizes
        from flow_vla_core.transforms import Normaliser
        self.cameras = nn.ModuleDict({f'camera_{index}': ImageEncoder(3, WORDS, (64, 128, 256), 64, 256)
                                      for index in range(CAMERAS)})
        self.state = StateEncoder(STATE, 1, 64)
        self.fusion = Fusion({**dict.fromkeys(self.cameras, 256), 'state': 64, 'language': WORDS}, WIDTH, tokens=True)
        self.generator = FlowMatchingConfig(steps=steps).build(
            Sizes(HORIZON, ACTIONS, WIDTH, WIDTH), NetworkConfig('transformer', width, depth, width // 64))
        self.normalise_actions = Normaliser([0.0] * ACTIONS, [1.0] * ACTIONS)
        for parameter in self.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)

    def observe(self, images: Mapping[str, Tensor], state: Tensor, language: Tensor) -> Condition:
        """Encode all that was observed."""
        parts = {name: encoder(images[name].flatten(1, 2), language) for name, encoder in self.cameras.items()}
        return self.fusion({**parts, 'state': self.state(state), 'language': language})

    def decode(self, condition: Condition, **settings: Any) -> Tensor:
        """Make chunks."""
        return self.normalise_actions.inverse(self.generator.sample(condition, **settings))

    def sample(self, batch: tuple[Mapping[str, Tensor], Tensor, Tensor], **settings: Any) -> Tensor:
        """Encode and make chunks."""
        return self.decode(self.observe(*batch), **settings)


def large_request() -> Request:
    """Return random inputs of `Large`."""
    from flow_vla_core.engine.request import Request
    source = torch.Generator().manual_seed(0)
    images = {f'camera_{index}': torch.randint(0, 256, (1, 1, 3, 224, 224), generator=source, dtype=torch.uint8)
              for index in range(CAMERAS)}
    state, language, noise, left = (torch.randn(shape, generator=source) for shape in (
        (1, 1, STATE), (1, WORDS), (1, HORIZON, ACTIONS), (1, HORIZON, ACTIONS)))
    return Request(images, state, language, noise, left, torch.zeros(HORIZON))


def shipped(folder: Path) -> tuple[nn.Module, Request, Callable[[], Tensor]]:
    """Return a trained policy, random inputs, and what encodes them from the words on."""
    from flow_vla_core.engine.request import Request
    from flow_vla_core.training.checkpoint import load_checkpoint
    policy = load_checkpoint(folder)
    batch, noise = policy.fake_batch(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        request = Request(batch.images, batch.state, policy.language(batch.words), noise, torch.zeros_like(noise),
                          torch.zeros(noise.shape[1]))
    return policy, request, lambda: policy.encode(batch.to(next(policy.parameters()).device))


def step_by_step(policy: nn.Module, request: Request, steps: int, encode: Callable[[], Condition]) -> Tensor:
    """Do what any code does that calls modules: encode, then one call of the network after the other."""
    condition, x = encode(), request.noise.to(next(policy.parameters()).device)
    for index in range(steps):
        t = torch.full((len(x),), index / steps, device=x.device)
        x = x + policy.generator.network(x, t, condition) / steps
    return policy.normalise_actions.inverse(x).cpu()


def measure(work: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float, float]:
    """Return what comes out, and the 50th and 99th percentile of the time, ms."""
    for _ in range(3):
        made = work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begun))
    return made, *np.percentile(times, [50, 99]).tolist()


def ways(policy: nn.Module, device: str, quick: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield names of ways, and what makes their runners."""
    from flow_vla_core.engine import RUNNERS
    from flow_vla_core.engine.half import halved
    from flow_vla_core.engine.modes import Free
    source = torch.Generator()
    names = ['eager', *(['graph'] if device == 'cuda' else ['traced']), *([] if quick else ['compiled'])]
    for name in names:
        yield name, lambda name=name: RUNNERS[name](policy, Free(0.0), source)
    if device == 'cuda':
        yield 'graph, bfloat16', lambda: RUNNERS['graph'](halved(policy), Free(0.0), source)


def compare(name: str, policy: nn.Module, request: Request, encode: Callable[[], Condition],
            arguments: argparse.Namespace) -> Table:
    """Measure every way on the same inputs."""
    steps = arguments.steps or policy.generator.steps
    table = Table(name, sum(parameter.numel() for parameter in policy.parameters()), steps)
    wanted, p50, p99 = measure(lambda: step_by_step(policy, request, steps, encode), arguments.repeats)
    table.rows.append(Row(BASELINE, p50, p99, 1.0, 0.0))
    for way, make in ways(policy, arguments.device, arguments.quick):
        try:
            runner = make()
            runner.prepare(request, steps)
            made, own, own_99 = measure(lambda runner=runner: runner.run(request, steps), arguments.repeats)
        except Exception as error:  # a way that fails here is a finding, not the end of the others
            table.missing[way] = str(error).splitlines()[0]
            continue
        table.rows.append(Row(way, own, own_99, p50 / own, (made - wanted).abs().max().item()))
    table.modes.update(compare_modes(policy, request, steps, arguments.repeats))
    return table


def compare_modes(policy: nn.Module, request: Request, steps: int, repeats: int) -> dict[str, float]:
    """Measure what it costs to go on from a plan, by the way that an engine takes by itself: medians, ms."""
    from dataclasses import replace

    from flow_vla_core.engine.choice import choose
    from flow_vla_core.engine.modes import MODES
    firm = torch.linspace(1, 0, request.noise.shape[1])
    found = {}
    for name, mode in MODES.items():
        asked = request if name == 'none' else replace(request, firm=firm)
        runner = choose('auto', policy, mode(5.0), torch.Generator(), half=False)
        runner.prepare(asked, steps)
        found[f'{name}: {runner.describe()}'] = measure(lambda: runner.run(asked, steps), repeats)[1]  # noqa: B023
    return found


def tables(arguments: argparse.Namespace) -> Iterator[Table]:
    """Yield one table for each policy that can be had here."""
    for folder in arguments.checkpoints:
        try:
            policy, request, encode = shipped(folder)
        except ImportError as error:
            print(f'{folder}: left out, {error}')
            continue
        policy = policy.to(arguments.device).eval().requires_grad_(False)
        yield compare(f'{folder.name}, shipped', policy, request, encode, arguments)
    for name in arguments.large:
        torch.manual_seed(0)
        policy = Large(*LARGE[name], arguments.steps or 10).to(arguments.device).eval().requires_grad_(False)
        request = large_request()
        here = request.to(torch.device(arguments.device))

        def encode(policy: Large = policy, here: Request = here) -> Condition:
            return policy.observe(here.images, here.state, here.language)

        yield compare(name, policy, request, encode, arguments)


def show(table: Table) -> None:
    """Print a table."""
    print(f'\n{table.policy}: {table.parameters / 1e6:.1f} M parameters, {table.steps} steps')
    print(f'{"way":<18}{"p50 ms":>10}{"p99 ms":>10}{"ratio":>8}{"difference":>12}')
    for row in table.rows:
        print(f'{row.way:<18}{row.p50:>10.2f}{row.p99:>10.2f}{row.ratio:>8.2f}{row.difference:>12.2g}')
    for mode, p50 in table.modes.items():
        print(f'real time {mode:<40}{p50:>10.2f} ms')
    for way, reason in table.missing.items():
        print(f'{way}: not here, {reason}')


def machine(device: str) -> dict[str, Any]:
    """Describe what ran this."""
    commit = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False)
    return {'processor': platform.processor() or platform.machine(), 'threads': torch.get_num_threads(),
            'torch': torch.__version__, 'commit': commit.stdout.strip() or None,
            'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, default=1, help='of a CPU')
    parser.add_argument('--repeats', type=int, default=100, help='chunks that are timed for each way')
    parser.add_argument('--steps', type=int, help="solver steps; a policy's own, or 10, if left out")
    parser.add_argument('--quick', action='store_true', help='few repeats, and no torch.compile, which takes minutes')
    parser.add_argument('--checkpoints', nargs='*', type=Path, default=sorted((ROOT / 'checkpoints').glob('*')))
    parser.add_argument('--large', nargs='*', choices=list(LARGE), default=list(LARGE), help='with random weights')
    parser.add_argument('--output', type=Path, default=ROOT / 'out' / 'benchmarks' / 'engine.json')
    arguments = parser.parse_args()
    arguments.repeats = min(arguments.repeats, 5) if arguments.quick else arguments.repeats
    return arguments


@torch.no_grad()
def main() -> None:
    """Measure, print and write JSON."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    sys.path.insert(0, str(ROOT))
    for name, modules in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            sys.modules.update({module: Absent(module) for module in (name, *modules)})
    found = []
    for table in tables(arguments):
        show(table)
        found.append(asdict(table))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({'machine': machine(arguments.device), 'policies': found}, indent=1))
    print(f'\nwritten to {arguments.output}')


if __name__ == '__main__':
    main()
