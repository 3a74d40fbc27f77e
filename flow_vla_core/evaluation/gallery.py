"""All density flows and all families, trained on toy distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console
from safetensors.numpy import load_file, save_file
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError, closest
from flow_vla_core.evaluation.compare import default_entries
from flow_vla_core.evaluation.cost import make_chunks
from flow_vla_core.evaluation.toys import DENSITIES, FLOORS, TOYS
from flow_vla_core.flows import FLOWS, NormalizingFlow
from flow_vla_core.generators import Generator, LikelihoodGenerator, Student
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.objective import Objective
from flow_vla_core.training.tensor_objectives import ChunkObjective, DensityObjective
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.types import Condition

__all__ = ['EDGE', 'EXACT', 'Gallery', 'Picture']

SCALE = 2.5  # toys are divided by it, so that they are as wide as normalised chunks
SHRINKAGE = 2 * math.log(SCALE)  # log-determinant of that
EDGE = 5.0  # of the pictures, in the toys' units
TEACHER = 'flow_matching'
POINT = Sizes(1, 2, 1)  # a chunk of one action that is a point of the plane; the condition is always 0
EXACT = 'exact'
TESTED = 4000  # points of a likelihood, whose standard error is then about .02 nats
COUNTED = 1_000_000  # points of a histogram where a toy has no density in closed form


@dataclass(frozen=True)
class Picture:
    """Holds what one model makes of one toy.

    Args:
        samples: (N, 2).
        density: (G, G) on a grid from -`EDGE` to `EDGE`, rows being y; None for a model that has none.
        nll: mean of -log p over new points of the toy, nats; of the toy itself its entropy; None if it is not known.

    Example:
        >>> Picture(np.zeros((5, 2))).density is None
        True
    """

    samples: np.ndarray
    density: np.ndarray | None = None
    nll: float | None = None

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {'samples': self.samples, 'density': self.density, 'nll': self.nll}
        save_file({name: np.array(array, np.float32) for name, array in arrays.items() if array is not None}, path)

    @classmethod
    def load(cls, path: Path) -> Picture:
        """Read what `save` wrote."""
        arrays = load_file(path)
        nll = arrays.get('nll')
        return cls(arrays['samples'], arrays.get('density'), None if nll is None else float(nll))


@dataclass(frozen=True)
class Gallery:
    """Trains models on toys, and keeps what each makes; what is in the folder already is not trained again.

    Density flows learn the points themselves, families of generators chunks of one action of two numbers.

    Args:
        out: folder of the results.
        models: names of density flows and families.
        toys: names of toys.
        loop: how each model is trained.
        network: of each family.
        grid: cells of a density along each side.

    Raises:
        ConfigError: for an unknown model or toy, or results of another training in the folder.

    Example:
        >>> Gallery.names()[:2]
        ['planar', 'radial']
    """

    out: Path
    models: Sequence[str]
    toys: Sequence[str]
    loop: LoopConfig
    network: NetworkConfig = NetworkConfig('mlp', 64, 3)
    grid: int = 60

    def __post_init__(self) -> None:
        for kind, names, allowed in (('models', self.models, self.names()), ('toys', self.toys, TOYS)):
            for name in names:
                if name not in allowed:
                    raise ConfigError(f'{kind}: {name!r}; {closest(name, allowed)}')

    @staticmethod
    def names() -> list[str]:
        """List all density flows and families."""
        return [*FLOWS, *default_entries()]

    def run(self, console: Console | None = None) -> dict[str, dict[str, Picture]]:
        """Return toy -> model -> picture; the first model is the toy itself."""
        console = console or Console(quiet=True)
        self._claim()
        return {toy: {EXACT: self._exact(toy), **dict(self._pictures(toy, console))} for toy in self.toys}

    def _claim(self) -> None:
        """Note the settings in the folder, or compare them with those that are there."""
        path, mine = self.out / 'gallery.json', {'loop': asdict(self.loop), 'network': asdict(self.network)}
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(mine, indent=1))
        elif json.loads(path.read_text()) != json.loads(json.dumps(mine)):
            raise ConfigError(f'{path}: trained with other settings; choose another folder')

    def _pictures(self, toy: str, console: Console) -> Iterator[tuple[str, Picture]]:
        teacher: Generator | None = None
        for name in self.models:
            path = self.out / toy / f'{name}.safetensors'
            if path.is_file():
                yield name, Picture.load(path)
                continue
            model = self._build(name)
            if isinstance(model, Student):
                teacher = teacher or self._train(toy, self._build(TEACHER))
                model.learn_from(teacher)
            trained = self._train(toy, model)
            teacher = trained if name == TEACHER else teacher
            picture = self._draw(toy, trained)
            picture.save(path)
            console.print(f'{toy}: {name} trained')
            yield name, picture

    def _exact(self, toy: str) -> Picture:
        random = torch.Generator().manual_seed(1)
        samples = TOYS[toy](2000, random).numpy()
        density = self._on_grid(DENSITIES[toy]) if toy in DENSITIES else self._count(TOYS[toy](COUNTED, random))
        return Picture(samples, density, FLOORS.get(toy))

    def _build(self, name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.loop.seed)
            if name in FLOWS:
                return FLOWS[name](2, 0)
            return default_entries()[name].build(POINT, self.network)

    def _train(self, toy: str, model: nn.Module) -> nn.Module:
        points = TOYS[toy](50_000, torch.Generator().manual_seed(self.loop.seed)) / SCALE
        objective: Objective = DensityObjective(model, points) if isinstance(model, NormalizingFlow) \
            else ChunkObjective(model, points[:, None], Condition(torch.zeros(len(points), 1)))
        trainer = FlowTrainer(objective, self.loop)
        trainer.run()
        return trainer.average.module.eval()

    def _draw(self, toy: str, model: nn.Module) -> Picture:
        random, condition = torch.Generator().manual_seed(2), Condition(torch.zeros(2000, 1))
        samples = model().sample((2000,), random) if isinstance(model, NormalizingFlow) \
            else make_chunks(model, condition, None, random)[:, 0]
        samples = (SCALE * samples).numpy()
        log_density = _log_density(model)
        if log_density is None:
            return Picture(samples)
        tested = TOYS[toy](TESTED, torch.Generator().manual_seed(3))
        return Picture(samples, self._on_grid(log_density), -_in_pieces(log_density, tested).mean().item())

    def _on_grid(self, log_density: Callable[[Tensor], Tensor]) -> np.ndarray:
        side = (torch.arange(self.grid) + 0.5) * 2 * EDGE / self.grid - EDGE
        points = torch.stack(torch.meshgrid(side, side, indexing='xy'), -1).reshape(-1, 2)
        return _in_pieces(log_density, points).exp().reshape(self.grid, self.grid).numpy()

    def _count(self, points: Tensor) -> np.ndarray:
        """Return a histogram as a density on the grid."""
        bounds = np.linspace(-EDGE, EDGE, self.grid + 1)
        counts, _, _ = np.histogram2d(points[:, 1].numpy(), points[:, 0].numpy(), (bounds, bounds))
        return counts / len(points) / (bounds[1] - bounds[0]) ** 2


def _log_density(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the log-density of points (N, 2) in the toys' units; None if the model knows none."""
    if isinstance(model, NormalizingFlow):
        return lambda points: model().log_prob(points / SCALE) - SHRINKAGE
    if not isinstance(model, LikelihoodGenerator):
        return None
    return lambda points: model.log_prob(points[:, None] / SCALE, Condition(torch.zeros(len(points), 1))) - SHRINKAGE


@torch.no_grad()
def _in_pieces(log_density: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    return torch.cat([log_density(piece) for piece in points.split(1200)])
