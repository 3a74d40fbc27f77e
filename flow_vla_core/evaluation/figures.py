"""Pictures on disk, without a window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['EXPERT', 'MADE', 'new_figure', 'quiet', 'save_figure', 'style']

EXPERT, MADE = '0.65', 'tab:blue'  # colours of what was done and of what is made
MARKERS, LINES = 'osD^vPX', ('-', '--', ':')


def new_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Write a figure, and make the folder if it lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)


def quiet(axes: Axes) -> None:
    """Take the ticks and the upper and right border away."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[['top', 'right']].set_visible(False)


def style(index: int) -> dict[str, object]:
    """Return colour and marker of one of many lines."""
    from matplotlib import colormaps
    return {'color': colormaps['tab10'](index % 10), 'marker': MARKERS[index % len(MARKERS)],
            'linestyle': LINES[index // 10 % len(LINES)]}
