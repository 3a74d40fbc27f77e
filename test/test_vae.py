"""The auto-encoder of chunks against closed forms and a toy with two modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.errors import ConfigError
from flow_vla_core.generators.vae import ActionVAE, ActionVAEConfig, gaussian_divergence
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.types import Condition

SIZES = Sizes(5, 2, 3)


class Echo(nn.Module):
    """Is a network that answers with the first number of the condition, or with what it is shown, and keeps that."""

    def __init__(self, gain: float = 0.0) -> None:
        super().__init__()
        self.gain, self.seen = gain, []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.seen.append(x)
        return self.gain * x + (1 - self.gain) * condition.vector[:, :1, None].expand_as(x)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def condition(count: int) -> Condition:
    """Return a condition of width 3."""
    return Condition(torch.randn(count, 3, generator=seeded(5)))


def build(sizes: Sizes = SIZES, **settings: object) -> ActionVAE:
    """Make a small one with weights that are not zero."""
    torch.manual_seed(0)
    generator = ActionVAEConfig(**settings).build(sizes, NetworkConfig('mlp', 8, 1))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return generator


def test_the_divergence_is_that_of_two_gaussians() -> None:
    mean, log_variance = (torch.randn(7, 4, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    ours = torch.distributions.Normal(mean, (log_variance / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(gaussian_divergence(mean, log_variance),
                               torch.distributions.kl_divergence(ours, prior).sum(-1))
    assert (gaussian_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0).all()


def test_the_loss_is_the_distance_plus_the_weighted_divergence() -> None:
    actions, told = torch.randn(6, 5, 2, generator=seeded(1)), condition(6)
    plain, weighted = (build(latent=4, weight=weight) for weight in (0.0, 0.7))
    divergence = gaussian_divergence(*plain.posterior(actions, told)).mean()
    difference = weighted.loss(actions, told, generator=seeded(2)) - plain.loss(actions, told, generator=seeded(2))
    torch.testing.assert_close(difference, 0.7 * divergence)


@pytest.mark.parametrize('distance', ['l1', 'l2'])
def test_the_distance_is_that_of_the_decoded_chunk(distance: str) -> None:
    generator = ActionVAE(Echo(), Echo(), SIZES, latent=4, weight=0.0, distance=distance)
    with torch.no_grad():
        generator.tell.weight.zero_()
        generator.tell.bias.fill_(0.25)
    actions, told = torch.randn(6, 5, 2, generator=seeded(1)), condition(6)
    error = told.vector[:, :1, None] + 0.25 - actions
    wanted = error.abs().mean() if distance == 'l1' else error.square().mean()
    torch.testing.assert_close(generator.loss(actions, told, generator=seeded(2)), wanted)


def test_the_latent_is_drawn_around_the_mean_with_the_spread_of_the_posterior() -> None:
    generator = ActionVAE(Echo(), Echo(), Sizes(1, 2, 1), latent=1, weight=0.0, distance='l2')
    with torch.no_grad():
        generator.describe.weight.zero_()
        generator.describe.bias.copy_(torch.tensor([2.0, 2 * torch.tensor(0.5).log()]))
        generator.tell.weight.fill_(1.0)
        generator.tell.bias.zero_()
    nothing = torch.zeros(20_000, 1)
    # the decoded chunk is z itself, from N(2, 0.5^2): its mean square is 4 + 0.25
    loss = generator.loss(nothing[..., None].expand(-1, 1, 2), Condition(nothing), generator=seeded(2))
    assert loss.item() == pytest.approx(4.25, rel=0.02)


def test_what_the_mask_hides_is_not_read() -> None:
    generator, told = build(latent=4), condition(4)
    actions, mask = torch.randn(4, 5, 2, generator=seeded(1)), torch.arange(5) < torch.tensor([[5], [3], [1], [2]])
    broken = torch.where(mask[..., None], actions, torch.full_like(actions, 1e3))
    torch.testing.assert_close(generator.loss(broken, told, mask, seeded(2)), generator.loss(actions, told, mask,
                                                                                             seeded(2)))
    for mine, theirs in zip(generator.posterior(actions, told, mask), generator.posterior(broken, told, mask)):
        torch.testing.assert_close(mine, theirs)
    assert not torch.allclose(generator.posterior(actions, told)[0], generator.posterior(actions, told, mask)[0])


def test_the_latent_of_a_sample_is_the_first_part_of_the_noise() -> None:
    generator, told = build(latent=4), condition(3)
    noise = torch.randn(3, 5, 2, generator=seeded(1))
    later = torch.cat([noise[:, :2], noise[:, 2:] + 1], 1)
    assert torch.equal(generator.sample(told, noise=noise), generator.sample(told, noise=later))
    assert not torch.allclose(generator.sample(told, noise=noise), generator.sample(told, noise=later.flip(1)))


def test_the_mean_of_the_prior_makes_one_chunk_of_each_condition() -> None:
    drawing, steady, told = build(latent=4), build(latent=4, prior='mean'), condition(3)
    noise = torch.randn(3, 5, 2, generator=seeded(1))
    assert torch.equal(steady.sample(told, noise=noise), steady.sample(told, noise=noise + 1))
    assert torch.equal(steady.sample(told), drawing.sample(told, noise=torch.zeros(3, 5, 2)))


def test_a_latent_is_never_larger_than_the_chunk() -> None:
    generator = build(Sizes(2, 1, 3), latent=32)
    assert generator.latent == 2
    assert generator.sample(condition(4)).shape == (4, 2, 1)


@pytest.mark.parametrize('settings, message', [
    ({'distance': 'l3'}, "distance: 'l3'.*l1"), ({'prior': 'means'}, "prior: 'means'.*mean"),
    ({'latent': 0}, 'latent: 0'), ({'weight': -1.0}, 'weight: -1.0')])
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ActionVAEConfig(**settings).build(SIZES, NetworkConfig('mlp', 8, 1))


def test_two_modes_are_learned_and_little_between_them() -> None:
    torch.manual_seed(0)
    shape = torch.sin(torch.linspace(0.3, 2.8, 4))[:, None]
    signs = (torch.arange(1000) % 10 < 3).float() * 2 - 1
    targets, random = signs[:, None, None] * shape, seeded()
    generator = ActionVAEConfig(latent=2, weight=0.03).build(Sizes(4, 1, 1), NetworkConfig('mlp', 32, 1))
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(400):
        chosen = targets[torch.randint(1000, (128,), generator=random)]
        optimiser.zero_grad()
        generator.loss(chosen, Condition(torch.zeros(128, 1)), generator=random).backward()
        optimiser.step()
    with torch.no_grad():
        made = generator.sample(Condition(torch.zeros(2000, 1)), generator=random)
    middle = made[:, 1:3].mean((1, 2)) / shape[1:3].mean()
    assert (middle.abs() < 0.5).double().mean() < 0.25  # a smooth function of z has to go from one to the other
    assert (middle > 0).double().mean().item() == pytest.approx(0.3, abs=0.1)
