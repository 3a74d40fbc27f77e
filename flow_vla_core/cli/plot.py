"""The command `flow-vla plot`: pictures of flows, actions and trainings."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
import torch
import typer

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError, DataError
from flow_vla_core.evaluation.comparison_plots import plot_losses, plot_straightness
from flow_vla_core.evaluation.cost import make_chunks
from flow_vla_core.evaluation.flow_plots import plot_actions, plot_evolution, record_evolution
from flow_vla_core.evaluation.gallery import Gallery
from flow_vla_core.evaluation.gallery_plot import plot_gallery
from flow_vla_core.evaluation.show import Show, show_bimodal, show_policy
from flow_vla_core.evaluation.toys import TOYS
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.report import Point, plot_curves

__all__ = ['app']

EULER = 'euler_'  # in front of a number of steps

app = typer.Typer(no_args_is_help=True, help='Draw flows, actions, trainings, a gallery of toys, or straightness.')

Source = Annotated[Path, typer.Argument(
    help='Checkpoint of a policy; or the folder of one family in the results of compare --data bimodal.')]
Bags = Annotated[Path | None, typer.Option(help='For a policy: folder of bags, whose moments it is asked about.')]
Out = Annotated[Path, typer.Option(help='File of the picture.')]
Steps = Annotated[int | None, typer.Option(min=1, help="Effort of a sample; by default the generator's own.")]
Samples = Annotated[int, typer.Option(min=2, help='Chunks that are made.')]
Seed = Annotated[int, typer.Option(min=0, help='Of the noise.')]


@app.command()
def flow(source: Source, out: Out = Path('out/plots/flow.png'), bags: Bags = None, steps: Steps = None,
         samples: Samples = 200, seed: Seed = 0,
         moment: Annotated[int, typer.Option(min=0, help='For a policy: which moment of the first bag.')] = 0) -> None:
    """Draw chunks on their way from noise for one condition: all numbers over flow time, and pairs at the end."""
    show = _show(source, bags, samples, moment)
    generator = torch.Generator().manual_seed(seed)
    evolution = record_evolution(show.generator, show.condition, steps, generator)
    plot_evolution(out, evolution, show.names, show.expert.numpy(), show.title)
    _say(out)


@app.command()
def actions(source: Source, out: Out = Path('out/plots/actions.png'), bags: Bags = None, steps: Steps = None,
            samples: Samples = 1000, seed: Seed = 0) -> None:
    """Draw how the actions that are made are distributed beside the expert's, one panel for each dimension."""
    show = _show(source, bags, samples, None)
    made = make_chunks(show.generator, show.condition, steps, torch.Generator().manual_seed(seed))
    plot_actions(out, show.expert.numpy(), made.numpy(), show.names, show.title)
    _say(out)


@app.command()
def training(source: Annotated[Path, typer.Argument(help='Folder of a run of train, or of the results of compare.')],
             out: Out = Path('out/plots/training.png')) -> None:
    """Draw the curves of a training, or the losses of all families of a comparison."""
    if (source / 'comparison.json').is_file():
        results = _read(source / 'comparison.json')['results']
        plot_losses(out, {result['name']: result['losses'] for result in results})
    else:
        plot_curves(out, [Point(**point) for point in _read(source / 'report.json')['points']])
    _say(out)


@app.command()
def gallery(
    out: Annotated[Path, typer.Option(help="Folder of the models' pictures and of gallery.png; what is there "
                                      'already is not trained again.')] = Path('out/gallery'),
    models: Annotated[str, typer.Option(help='all, or names of density flows and families with commas between.')]
    = 'all',
    toys: Annotated[str, typer.Option(help='Names with commas between them.')] = ','.join(TOYS),
    steps: Annotated[int, typer.Option(min=1, help='Optimiser steps of each model.')] = 3000,
    batch_size: Annotated[int, typer.Option(min=1, help='Points in each step.')] = 256,
    learning_rate: Annotated[float, typer.Option(help='Highest; it falls along a cosine.')] = 3e-3,
    seed: Seed = 0,
) -> None:
    """Train every density flow and every family on distributions in the plane, and draw what they make of them."""
    torch.set_num_threads(1)
    loop = LoopConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed,
                      warm_up=min(100, steps), average=0.99)
    chosen = Gallery.names() if models == 'all' else _words(models)
    pictures = Gallery(out, chosen, _words(toys), loop).run(Console())
    plot_gallery(out / 'gallery.png', pictures)
    _say(out / 'gallery.png')


@app.command()
def straightness(source: Annotated[Path, typer.Argument(help='Results of benchmarks/straightness.py.')],
                 out: Out = Path('out/plots/straightness.png')) -> None:
    """Draw the distance to the data against Euler steps, and how straight the paths are."""
    try:
        rows = {f'{row["source"]}, {row["coupling"]}'.replace('_', ' '): row for row in _read(source)['rows']}
        distances = {name: [(int(key.removeprefix(EULER)), value['mean']) for key, value in row.items()
                            if key.startswith(EULER)] for name, row in rows.items()}
        straight = {name: row['straightness']['mean'] for name, row in rows.items()}
        floor = next(iter(rows.values()))['floor']['mean']
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise DataError(f'{source}: not of benchmarks/straightness.py: {error!r}') from error
    plot_straightness(out, distances, straight, floor)
    _say(out)


def _show(source: Path, bags: Path | None, samples: int, moment: int | None) -> Show:
    """Find out what kind of folder the source is."""
    torch.set_num_threads(1)
    if (source / 'result.json').is_file():
        return show_bimodal(source, samples)
    if not (source / 'contract.yaml').is_file():
        raise DataError(f'{source}: neither a checkpoint nor a family in the results of compare')
    if bags is None:
        raise ConfigError('bags: none; a policy has to be asked about moments of recorded episodes')
    return show_policy(source, bags, RobotContract.load(source / 'contract.yaml'), samples, moment)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: {error}') from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]


def _say(path: Path) -> None:
    Console().print(f'written: {path}', soft_wrap=True)
