"""One picture of all that a gallery holds: density flows with their densities, families with what they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flow_vla_core.evaluation.figures import new_figure, quiet, save_figure
from flow_vla_core.evaluation.gallery import EDGE, EXACT, Picture
from flow_vla_core.flows import FLOWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ['plot_gallery']

Pictures = Mapping[str, Mapping[str, Picture]]

WIDTH = 8  # models side by side, beside the toys themselves
SIDE = 1.3  # of a panel, inches
NOTE = 'numbers: mean of -log p over new points, nats; of the target its entropy, which none is below'
FLOW_TITLE = f'Density flows: the density, and under it samples\n{NOTE}'
FAMILY_TITLE = 'Generator families: samples, over the density where a family has one'


def plot_gallery(path: Path, pictures: Pictures) -> None:
    """Draw rows of toys: density and samples of every density flow, then samples of every family.

    Args:
        path: of the picture.
        pictures: toy -> model -> picture; the same models for each toy, the toy itself among them as `EXACT`.
    """
    models = [name for name in next(iter(pictures.values())) if name != EXACT]
    flows, families = ([name for name in models if (name in FLOWS) is wanted] for wanted in (True, False))
    blocks = [(flows, True)] if flows else []
    rows = -(-len(families) // WIDTH)  # of blocks, which are to be equally long
    blocks += [([*found], False) for found in np.array_split(families, rows)] if families else []
    heights = [len(pictures) * (2 if dense else 1) for _, dense in blocks]
    width = 1 + max(len(names) for names, _ in blocks)
    figure = new_figure((SIDE * width + 0.3, 1.17 * SIDE * sum(heights) + 0.8 * len(blocks)))
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (names, dense) in zip(parts, blocks):
        _draw_block(part, pictures, (EXACT, *names), dense, width)
    save_figure(figure, path, dpi=90)


def _draw_block(part: SubFigure, pictures: Pictures, names: Sequence[str], dense: bool, width: int) -> None:
    part.suptitle(FLOW_TITLE if dense else FAMILY_TITLE, fontsize=11, fontweight='bold')
    layers = ('density', 'samples') if dense else ('both',)
    lines = [(toy, layer) for toy in pictures for layer in layers]
    grid = part.subplots(len(lines), width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (toy, layer) in enumerate(lines):
        for axes, name in zip(grid[row], names):
            _draw_picture(axes, pictures[toy][name], layer)
            if row == 0:
                axes.set_title('target' if name == EXACT else name.replace('_', '\n', 1).replace('_', ' '), fontsize=10)
        if layer != 'samples':
            grid[row, 0].set_ylabel(toy.replace('_', '\n'), fontsize=10)


def _draw_picture(axes: Axes, picture: Picture, layer: str) -> None:
    axes.set_axis_on()
    quiet(axes)
    axes.spines[:].set_visible(False)
    if picture.density is not None and layer != 'samples':
        top = max(np.quantile(picture.density, 0.99), 1e-6)
        axes.imshow(picture.density, origin='lower', extent=(-EDGE, EDGE, -EDGE, EDGE), vmin=0, vmax=top,
                    cmap='magma' if layer == 'density' else 'Blues', interpolation='bilinear')
    if layer != 'density':
        axes.plot(*picture.samples.T, '.', color='#12315e', markersize=1.5, alpha=0.5, markeredgewidth=0)
    if picture.nll is not None and layer != 'samples':
        axes.set_xlabel(f'{picture.nll:.2f}', fontsize=9, labelpad=1)
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect='equal')
