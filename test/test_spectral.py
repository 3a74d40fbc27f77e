"""The bound on spectral norms against singular values, in training and in what is saved."""

from __future__ import annotations

import copy
from pathlib import Path

from core_samples import make_policy, small_contract
import pytest
import torch
from torch import nn
from torch.nn import functional

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import FAMILIES, FlowMatchingConfig, Student
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.training.checkpoint import load_checkpoint, save_checkpoint
from flow_vla_core.training.config import LoopConfig
from flow_vla_core.training.spectral import SpectralBound, bound_spectral_norms, folded, follow_weights
from flow_vla_core.training.tensor_objectives import ChunkObjective
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.types import Condition

SIZES, NETWORK = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)


def norm_of(weight: torch.Tensor) -> float:
    """Return the largest singular value."""
    return torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item()


def random_weight(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return a weight with singular values well above 1."""
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize('shape', [(5, 7), (7, 5), (1, 1), (6, 4, 3), (6, 4, 3, 3)])
@pytest.mark.parametrize('dtype, close', [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_the_norm_becomes_the_bound_and_the_direction_stays(shape: tuple, dtype: torch.dtype, close: float) -> None:
    weight = random_weight(*shape, dtype=dtype)
    bound = SpectralBound(weight, 0.7, iterations=500)(weight)
    assert bound.dtype == dtype
    assert norm_of(bound) == pytest.approx(0.7, rel=close)
    torch.testing.assert_close(bound * norm_of(weight) / 0.7, weight, rtol=10 * close, atol=0)


def test_a_matrix_below_the_bound_stays_bit_for_bit() -> None:
    weight = random_weight(5, 7)
    assert torch.equal(SpectralBound(weight, 100.0)(weight), weight)


def test_a_layer_that_begins_at_zero_is_bounded_once_it_has_grown() -> None:
    bound = SpectralBound(torch.zeros(5, 7, dtype=torch.float64), 1.0)
    assert torch.equal(bound(torch.zeros(5, 7).double()), torch.zeros(5, 7).double())
    weight = random_weight(5, 7)
    bound.follow(weight, 200)
    assert norm_of(bound(weight)) == pytest.approx(1.0, rel=1e-6)


def test_power_iterations_follow_a_weight_and_use_alone_changes_nothing() -> None:
    weight = random_weight(9, 8)
    bound = SpectralBound(weight, 1.0, iterations=0)
    first = abs(norm_of(bound(weight)) - 1)
    assert torch.equal(bound(weight), bound(weight))
    for _ in range(100):
        bound.follow(weight)
    assert abs(norm_of(bound(weight)) - 1) < 1e-4 < first


def test_gradients_are_those_of_the_formula() -> None:
    weight = random_weight(3, 4).requires_grad_()
    bound = SpectralBound(weight, 1.0, iterations=500).eval()
    assert torch.autograd.gradcheck(bound, weight)
    used_twice = SpectralBound(weight, 1.0)
    (used_twice(weight) + used_twice(weight)).sum().backward()
    assert torch.isfinite(weight.grad).all()


class Convolutions(nn.Module):
    """Has a layer of every kind that is bounded, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(2, 5, 3), nn.ConvTranspose1d(5, 3, 3)
        self.three, self.four = nn.Conv2d(1, 2, 3), nn.Linear(6, 4)
        self.words = nn.Embedding(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.three(self.two(functional.silu(self.one(x)))[:, None])
        return self.four(hidden[:, :, 0, :6]) + self.words.weight.sum()


def test_every_kind_of_layer_is_bounded_and_folding_changes_no_answer() -> None:
    torch.manual_seed(0)
    module = Convolutions().double()
    names, x = set(module.state_dict()), torch.randn(3, 2, 11).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(9)
    embedding = module.words.weight.clone()
    bound_spectral_norms(module, 0.5)
    for _ in range(100):
        follow_weights(module)
    for layer in (module.one, module.two, module.three, module.four):
        assert norm_of(layer.weight) == pytest.approx(0.5, rel=1e-3)
    assert torch.equal(module.words.weight, embedding)
    plain = folded(module.eval())
    assert set(plain.state_dict()) == names and type(plain.one) is nn.Conv1d
    torch.testing.assert_close(plain(x), module(x))
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))
    assert folded(plain) is plain


def test_a_policy_with_bounds_becomes_an_ordinary_checkpoint(tmp_path: Path) -> None:
    policy = make_policy(small_contract())
    bound_spectral_norms(policy, 0.3)
    save_checkpoint(tmp_path / 'checkpoint', folded(policy.eval()))
    loaded = load_checkpoint(tmp_path / 'checkpoint')
    batch, actions = policy.fake_batch(2)
    torch.testing.assert_close(loaded.sample(batch, noise=actions), policy.sample(batch, noise=actions))
    assert norm_of(loaded.fusion.join[0].weight) < 0.31


def make_trainer(family: str = 'flow_matching', steps: int = 4, half: bool = False,
                 out: Path | None = None) -> FlowTrainer:
    """Return the training of a family on noise, with bounded layers."""
    torch.manual_seed(0)
    generator = FAMILIES[family].dummy(SIZES).build(SIZES, NETWORK)
    if isinstance(generator, Student):
        generator.learn_from(FlowMatchingConfig().build(SIZES, NETWORK))
    actions = FAMILIES[family].fake_actions(SIZES, 20, torch.Generator().manual_seed(0))
    config = LoopConfig(steps=steps, batch_size=8, learning_rate=0.05, warm_up=0, spectral=0.5, log_every=1,
                        half=half)
    return FlowTrainer(ChunkObjective(generator, actions, Condition(torch.ones(20, 3))), config, out)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_trains_with_bounds(family: str) -> None:
    trainer = make_trainer(family)
    trainer.run()
    assert all(point.values['loss'] == point.values['loss'] for point in trainer.points)
    made = folded(trainer.average.module).sample(Condition(torch.ones(3, 3)))
    assert torch.isfinite(made).all()


def test_bounds_are_kept_in_full_precision_where_the_networks_run_in_half() -> None:
    trainer = make_trainer(half=True)
    trainer.run()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.average.module.state_dict().values())


def test_bounds_hold_during_training_and_resume_is_exact(tmp_path: Path) -> None:
    straight, broken = make_trainer(steps=60), make_trainer(steps=60, out=tmp_path)
    for _ in range(30):
        broken.train_step()
    broken.save()
    resumed = make_trainer(steps=60, out=tmp_path)
    resumed.resume()
    while straight.step < 60:
        straight.train_step()
    while resumed.step < 60:
        resumed.train_step()
    theirs = straight.module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in resumed.module.state_dict().items())
    layers = [layer for layer in straight.module.modules() if isinstance(layer, nn.Linear)]
    assert all(norm_of(layer.weight) < 0.55 for layer in layers)
    assert max(norm_of(layer.parametrizations.weight.original) for layer in layers) > 0.7


@pytest.mark.parametrize('value', [0.0, -1.0, float('nan')])
def test_a_bound_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match='spectral: .*allowed: above 0'):
        LoopConfig(spectral=value)
