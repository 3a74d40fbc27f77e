"""What a density flow does on data: is it a bijection, are its densities right, do its samples look like the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flow_vla_core.errors import InputError
from flow_vla_core.evaluation.distances import sliced_wasserstein
from flow_vla_core.flows import NormalizingFlow

__all__ = ['FlowReport', 'analyze_flow_properties']

CHECKED = 64  # points whose Jacobian is taken by automatic differentiation


@dataclass(frozen=True)
class FlowReport:
    """Holds what `analyze_flow_properties` found.

    Args:
        points: number of points N.
        dim: number of dimensions D.
        reconstruction_error: largest distance between a point and what comes back after data -> noise -> data.
        forward_log_det_error: largest difference, in nats, between the flow's log-determinant from data to noise and
            that of the Jacobian by automatic differentiation.
        inverse_log_det_error: the same from noise to data, where the flow is given Gaussian noise.
        nll: mean negative log-likelihood of the data, in nats.
        nll_standard_error: of that mean.
        mean_error: largest difference between the mean of samples and of data, over dimensions, in standard deviations
            of the data (in the data's units where that is 0).
        deviation_error: largest difference of standard deviations, in the same unit.
        correlation_error: largest difference of correlations.
        distance: sliced Wasserstein distance between samples and data, in the data's units.
        floor: the same between two halves of the data, for comparison.

    Example:
        >>> from flow_vla_core.flows import RadialFlow
        >>> report = analyze_flow_properties(RadialFlow(2), torch.randn(64, 2))
        >>> report.rows()[0]
        ('points', '64 of 2 dimensions')
    """

    points: int
    dim: int
    reconstruction_error: float
    forward_log_det_error: float
    inverse_log_det_error: float
    nll: float
    nll_standard_error: float
    mean_error: float
    deviation_error: float
    correlation_error: float
    distance: float
    floor: float

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each line of a table."""
        return [
            ('points', f'{self.points} of {self.dim} dimensions'),
            ('reconstruction error', f'{self.reconstruction_error:.1e}'),
            ('log-det error, data to noise', f'{self.forward_log_det_error:.1e} nats'),
            ('log-det error, noise to data', f'{self.inverse_log_det_error:.1e} nats'),
            ('negative log-likelihood', f'{self.nll:.3f} +- {self.nll_standard_error:.3f} nats'),
            ('mean of samples', f'off by {self.mean_error:.3f} deviations'),
            ('deviation of samples', f'off by {100 * self.deviation_error:.1f} %'),
            ('correlation of samples', f'off by {self.correlation_error:.3f}'),
            ('sliced Wasserstein distance', f'{self.distance:.3f} (two halves of the data: {self.floor:.3f})'),
        ]


@dataclass(frozen=True)
class _Measured:
    """Holds what the report and its picture are made from."""

    data: Tensor
    samples: Tensor
    nll: Tensor
    reconstruction: Tensor
    forward: tuple[Tensor, Tensor]
    inverse: tuple[Tensor, Tensor]


def analyze_flow_properties(flow: NormalizingFlow, data: Tensor, context: Tensor | None = None,
                            generator: torch.Generator | None = None, plot: Path | None = None) -> FlowReport:
    """Check a flow on data, in evaluation mode; the flow is left as it was.

    Args:
        flow: to be looked at.
        data: (N, D), at least 4 points, of the flow's type and on its device.
        context: (N, C), one row for each point; None for a flow without context. A sample is drawn for each row.
        generator: source of randomness.
        plot: picture to be written: data and samples, both log-determinants against automatic differentiation, and
            the negative log-likelihoods.

    Raises:
        InputError: for other shapes, fewer points, or NaN or infinity.

    Example:
        >>> from flow_vla_core.flows import PlanarFlow
        >>> analyze_flow_properties(PlanarFlow(2), torch.randn(64, 2)).forward_log_det_error < 1e-4
        True
    """
    if data.ndim != 2 or len(data) < 4 or (context is not None and context.shape[:-1] != data.shape[:1]):
        raise InputError(f'data {tuple(data.shape)}, context {None if context is None else tuple(context.shape)}; '
                         'allowed: (N, D) with N of 4 or more, and (N, C)')
    with _evaluating(flow):
        measured = _measure(flow, data, context, generator)
    if plot is not None:
        _draw(measured, plot)
    return _summarise(measured, generator)


def _measure(flow: NormalizingFlow, data: Tensor, context: Tensor | None,
             generator: torch.Generator | None) -> _Measured:
    distribution = flow(context)
    with torch.no_grad():
        nll = -distribution.log_prob(data)
        z = flow.transform(data, context)[0]
        back = flow.transform.inverse(z, context)[0]
        shape = (len(data),) if context is None else ()
        samples = distribution.sample(shape, generator)
    few = None if context is None else context[:CHECKED]
    noise = torch.randn(data[:CHECKED].shape, generator=generator).to(data)
    forward = _log_dets(partial(flow.transform, context=few), data[:CHECKED])
    inverse = _log_dets(partial(flow.transform.inverse, context=few), noise)
    return _Measured(data, samples, nll, (back - data).norm(dim=-1), forward, inverse)


def _log_dets(direction: Callable[[Tensor], tuple[Tensor, Tensor]], points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-determinants (K,) that a direction reports, and those by automatic differentiation."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        value, found = direction(points)
        rows = [torch.autograd.grad(column.sum(), points, retain_graph=True)[0] for column in value.unbind(-1)]
    return found.detach(), torch.linalg.slogdet(torch.stack(rows, -2)).logabsdet


def _summarise(measured: _Measured, generator: torch.Generator | None) -> FlowReport:
    data, samples = measured.data.double(), measured.samples.double()
    scale = torch.where(data.std(0) > 0, data.std(0), 1)
    halves = data[torch.randperm(len(data), generator=generator).to(data.device)].chunk(2)
    return FlowReport(
        points=len(data),
        dim=data.shape[1],
        reconstruction_error=measured.reconstruction.max().item(),
        forward_log_det_error=_largest(measured.forward[0] - measured.forward[1]),
        inverse_log_det_error=_largest(measured.inverse[0] - measured.inverse[1]),
        nll=measured.nll.double().mean().item(),
        nll_standard_error=(measured.nll.double().std() / len(data) ** 0.5).item(),
        mean_error=_largest((samples.mean(0) - data.mean(0)) / scale),
        deviation_error=_largest((samples.std(0) - data.std(0)) / scale),
        correlation_error=_largest(_correlation(samples) - _correlation(data)),
        distance=sliced_wasserstein(samples, data, generator=generator),
        floor=sliced_wasserstein(*halves, generator=generator),
    )


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def _correlation(points: Tensor) -> Tensor:
    """Return the correlations (D, D); those of a constant dimension are 0."""
    return torch.corrcoef(points.T).reshape(points.shape[1], -1).nan_to_num(0)


@contextmanager
def _evaluating(flow: NormalizingFlow) -> Iterator[None]:
    modes = [(module, module.training) for module in flow.modules()]
    flow.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _draw(measured: _Measured, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 3.9), layout='constrained')
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_points(left, measured)
    _draw_log_dets(middle, measured)
    _draw_nll(right, measured.nll)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_points(axes: object, measured: _Measured) -> None:
    for name, points, colour in (('data', measured.data, '0.6'), ('samples', measured.samples, 'tab:blue')):
        points = points.cpu()
        if points.shape[1] == 1:
            axes.hist(points[:, 0].numpy(), bins=60, density=True, histtype='step', color=colour, label=name)
        else:
            axes.scatter(points[:2000, 0], points[:2000, 1], s=3, color=colour, label=name, alpha=0.6, linewidths=0)
    axes.set_title('data and samples', loc='left', fontsize=10)
    axes.set_xlabel('dimension 0')
    axes.set_ylabel('density' if measured.data.shape[1] == 1 else 'dimension 1')
    axes.legend(markerscale=4, fontsize=8, frameon=False)


def _draw_log_dets(axes: object, measured: _Measured) -> None:
    for name, (found, wanted), marker in (('data to noise', measured.forward, 'o'),
                                          ('noise to data', measured.inverse, 'x')):
        axes.scatter(wanted.cpu(), found.cpu(), s=18, marker=marker, label=name)
    axes.axline((0, 0), slope=1, color='0.6', linewidth=0.8, zorder=0)
    axes.set_title('log-determinant, nats', loc='left', fontsize=10)
    axes.set_xlabel('by automatic differentiation')
    axes.set_ylabel('by the flow')
    axes.legend(fontsize=8, frameon=False)


def _draw_nll(axes: object, nll: Tensor) -> None:
    mean = nll.mean().item()
    axes.hist(nll.cpu().numpy(), bins=60, color='0.7')
    axes.axvline(mean, color='tab:blue', label=f'mean {mean:.3f}')
    axes.set_title('negative log-likelihood of the data', loc='left', fontsize=10)
    axes.set_xlabel('nats')
    axes.set_ylabel('points')
    axes.legend(fontsize=8, frameon=False)
