"""The analysis of density flows finds nothing wrong with right flows, and what is wrong with wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flow_vla_core.errors import InputError
from flow_vla_core.evaluation.flow_analysis import analyze_flow_properties
from flow_vla_core.flows import NormalizingFlow, PlanarFlow, RadialFlow, Transform

COUNT = 2000


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


class Stretch(Transform):
    """Divides by a factor; it may lie about log-determinants or about its inverse."""

    def __init__(self, dim: int, factor: float, lie: float = 0, inverse_lie: float = 0, offset: float = 0) -> None:
        super().__init__(dim)
        self.factor, self.lie, self.inverse_lie, self.offset = factor, lie, inverse_lie, offset
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From data to noise."""
        true = -self.dim * torch.log(torch.tensor(self.factor, dtype=x.dtype))
        return x / self.factor, (true + self.lie).expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From noise to data."""
        true = self.dim * torch.log(torch.tensor(self.factor, dtype=z.dtype))
        return z * self.factor + self.offset, (true + self.inverse_lie).expand(z.shape[:-1])


def gaussian(dim: int = 2, factor: float = 3) -> Tensor:
    """Draw data with standard deviation ``factor``."""
    return factor * torch.randn(COUNT, dim, generator=seeded(), dtype=torch.float64)


@pytest.mark.parametrize('dim', [1, 2, 3])
def test_a_right_flow_passes_and_its_likelihood_is_that_of_the_data(dim: int) -> None:
    data = gaussian(dim)
    report = analyze_flow_properties(NormalizingFlow([Stretch(dim, 3)]), data, generator=seeded(1))
    assert (report.points, report.dim) == (COUNT, dim)
    for error in (report.reconstruction_error, report.forward_log_det_error, report.inverse_log_det_error):
        assert error < 1e-9
    wanted = -torch.distributions.Normal(0.0, 3.0).log_prob(data).sum(-1)
    assert report.nll == pytest.approx(wanted.mean().item())
    assert report.nll_standard_error == pytest.approx(wanted.std().item() / COUNT ** 0.5)
    for error in (report.mean_error, report.deviation_error, report.correlation_error):
        assert error < 0.12
    assert report.distance < 3 * report.floor
    assert [len(row) for row in report.rows()] == [2] * 9


@pytest.mark.parametrize(('wrong', 'field', 'value'), [
    ({'lie': 0.25}, 'forward_log_det_error', 0.25), ({'inverse_lie': -0.5}, 'inverse_log_det_error', 0.5),
    ({'offset': 1.0}, 'reconstruction_error', 2 ** 0.5),
])
def test_each_lie_is_found_where_it_is(wrong: dict[str, float], field: str, value: float) -> None:
    report = analyze_flow_properties(NormalizingFlow([Stretch(2, 3, **wrong)]), gaussian(), generator=seeded(1))
    found = {name: getattr(report, name) for name in ('forward_log_det_error', 'inverse_log_det_error',
                                                      'reconstruction_error')}
    assert found.pop(field) == pytest.approx(value)
    assert max(found.values()) < 1e-9


def test_samples_of_another_width_or_place_are_found() -> None:
    wide = analyze_flow_properties(NormalizingFlow([Stretch(2, 6)]), gaussian(), generator=seeded(1))
    assert wide.deviation_error == pytest.approx(1, abs=0.1) and wide.mean_error < 0.15
    assert wide.distance == pytest.approx(3, rel=0.1)  # of two Gaussians along any line: the difference of deviations
    moved = analyze_flow_properties(NormalizingFlow([Stretch(2, 3, offset=3)]), gaussian(), generator=seeded(1))
    assert moved.mean_error == pytest.approx(1, abs=0.1) and moved.deviation_error < 0.1
    data = torch.randn(COUNT, 1, generator=seeded(), dtype=torch.float64).expand(-1, 2)
    joined = analyze_flow_properties(NormalizingFlow([Stretch(2, 1)]), data, generator=seeded(1))
    assert joined.correlation_error == pytest.approx(1, abs=0.1)
    constant = torch.cat([data[:, :1], torch.ones(COUNT, 1, dtype=torch.float64)], 1)
    assert analyze_flow_properties(NormalizingFlow([Stretch(2, 1)]), constant,
                                   generator=seeded(1)).mean_error == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('context_dim', [0, 3])
def test_it_takes_a_context_and_leaves_flow_and_data_as_they_were(context_dim: int, tmp_path: Path) -> None:
    flow = PlanarFlow(2, context_dim, layers=3).train()
    flow.transform.transforms[1].eval()
    modes = [module.training for module in flow.modules()]
    data = torch.randn(50, 2, generator=seeded())
    context = torch.randn(50, context_dim, generator=seeded(1)) if context_dim else None
    kept, state = data.clone(), torch.get_rng_state()
    reports = [analyze_flow_properties(flow, data, context, seeded(2)) for _ in range(2)]
    assert reports[0] == reports[1] and reports[0].forward_log_det_error < 1e-4
    assert torch.equal(data, kept) and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in flow.modules()] == modes
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize('dim', [1, 2, 4])
def test_a_picture_is_written(dim: int, tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'picture.png'
    analyze_flow_properties(RadialFlow(dim, layers=2), torch.randn(50, dim, generator=seeded()), generator=seeded(),
                            plot=path)
    assert path.read_bytes().startswith(b'\x89PNG')


def test_bad_data_are_named() -> None:
    flow = RadialFlow(2, 3, layers=1)
    for data, context in ((torch.zeros(3, 2), torch.zeros(3, 3)), (torch.zeros(2), torch.zeros(3)),
                          (torch.zeros(5, 2), torch.zeros(4, 3)), (torch.zeros(5, 2), torch.zeros(3))):
        with pytest.raises(InputError, match='allowed'):
            analyze_flow_properties(flow, data, context)
    with pytest.raises(InputError, match='x: holds NaN'):
        analyze_flow_properties(flow, torch.full((5, 2), float('nan')), torch.zeros(5, 3))
