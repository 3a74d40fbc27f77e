"""Properties of the whole policy, for every network and history."""

from __future__ import annotations

from dataclasses import dataclass, replace

from core_samples import make_policy, small_contract
import pytest
import torch

from flow_vla_core.config import from_values, to_values
from flow_vla_core.errors import ConfigError
from flow_vla_core.generators import FlowMatchingConfig
from flow_vla_core.generators.layout import PartConfig
from flow_vla_core.generators.multimodal import MultimodalFlowConfig
from flow_vla_core.networks import NetworkConfig
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.types import Batch

NETWORKS = {'transformer': NetworkConfig('transformer', 8, 1, 2), 'unet': NetworkConfig('unet', 8, 2),
            'mlp': NetworkConfig('mlp', 8, 1)}


@pytest.fixture(params=[(name, history, refiner) for name in NETWORKS for history, refiner in ((1, False), (3, True))],
                ids=lambda p: f'{p[0]}-{p[1]}-{"refined" if p[2] else "plain"}')
def policy(request: pytest.FixtureRequest) -> FlowVLA:
    """Build a small policy."""
    name, history, refiner = request.param
    config = replace(PolicyConfig.dummy(), network=NETWORKS[name], refiner=refiner)
    return make_policy(small_contract(history), config)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def test_shapes_of_loss_and_sample(policy: FlowVLA) -> None:
    for count in (1, 5):
        batch, actions = policy.fake_batch(count, seeded())
        assert policy.loss(batch, actions).shape == ()
        assert policy.sample(batch).shape == actions.shape == (count, policy.config.horizon, 4)


def test_a_gradient_reaches_every_parameter(policy: FlowVLA) -> None:
    policy.train()
    policy.config = replace(policy.config, instruction_dropout=0.0)
    batch, actions = policy.fake_batch(4, seeded())
    words = torch.arange(4 * 4).reshape(4, 4) % (len(policy.vocabulary) - 1) + 1
    policy.loss(Batch(batch.images, batch.state, words), actions, generator=seeded()).backward()
    unreached = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unreached


def test_samples_depend_on_nothing_but_noise_and_observation(policy: FlowVLA) -> None:
    policy.eval()
    batch, actions = policy.fake_batch(3, seeded())
    noise = torch.randn(actions.shape, generator=seeded(1))
    with torch.no_grad():
        first = policy.sample(batch, noise=noise)
        assert torch.equal(first, policy.sample(batch, noise=noise))
        assert torch.equal(policy.sample(batch, generator=seeded(2)), policy.sample(batch, generator=seeded(2)))
        alone = policy.sample(Batch({name: image[1:2] for name, image in batch.images.items()}, batch.state[1:2],
                                    batch.words[1:2]), noise=noise[1:2])
    torch.testing.assert_close(alone, first[1:2], atol=1e-4, rtol=1e-4)


def test_each_camera_the_state_and_the_words_matter(policy: FlowVLA) -> None:
    policy.eval()
    batch, actions = policy.fake_batch(1, seeded())
    noise = torch.randn(actions.shape, generator=seeded(1))
    changed = [Batch({**batch.images, name: 255 - image}, batch.state, batch.words)
               for name, image in batch.images.items()]
    changed += [Batch(batch.images, batch.state + 1, batch.words),
                Batch(batch.images, batch.state, batch.words.flip(1))]
    with torch.no_grad():
        usual = policy.sample(batch, noise=noise)
        for other in changed:
            assert (policy.sample(other, noise=noise) - usual).abs().max() > 1e-6


def test_history_is_not_mixed_up_and_the_newest_matters() -> None:
    policy = make_policy(small_contract(3)).eval()
    batch, actions = policy.fake_batch(1, seeded())
    noise = torch.randn(actions.shape, generator=seeded(1))
    turned = Batch({name: image.flip(1) for name, image in batch.images.items()}, batch.state, batch.words)
    with torch.no_grad():
        assert not torch.equal(policy.sample(batch, noise=noise), policy.sample(turned, noise=noise))


def test_what_is_masked_does_not_pull_at_the_loss() -> None:
    policy = make_policy(small_contract()).eval()
    batch, actions = policy.fake_batch(3, seeded())
    mask = torch.arange(actions.shape[1]) < torch.tensor([[1], [2], [4]])
    far = torch.where(mask[..., None], actions, actions + 50)
    whole = policy.loss(batch, far, torch.ones_like(mask), seeded(1))
    assert whole > 10 * policy.loss(batch, far, mask, seeded(1))
    torch.testing.assert_close(policy.loss(batch, far, torch.ones_like(mask), seeded(1)),
                               policy.loss(batch, far, None, seeded(1)))


def test_actions_and_prefix_are_in_the_contracts_units() -> None:
    policy = make_policy(small_contract()).eval()
    batch, actions = policy.fake_batch(2, seeded())
    with torch.no_grad():
        made = policy.sample(batch, prefix=actions[:, :2], generator=seeded())
        normal = policy.generator.sample(policy.encode(batch), generator=seeded())
        plain = policy.sample(batch, generator=seeded())
    torch.testing.assert_close(made[:, :2], actions[:, :2])
    torch.testing.assert_close(plain, policy.normalise_actions.inverse(normal))
    assert not torch.allclose(plain, normal)


def test_words_are_dropped_in_training_only() -> None:
    config = replace(PolicyConfig.dummy(), instruction_dropout=0.9999)
    policy = make_policy(small_contract(), config)
    batch, actions = policy.fake_batch(4, seeded())
    empty = Batch(batch.images, batch.state, policy.vocabulary.batch([''] * 4, allow_empty=True))
    random = seeded(3)
    torch.rand(4, generator=random)  # what the draw of the dropped words takes
    as_empty = policy.eval().loss(empty, actions, generator=random)
    torch.testing.assert_close(policy.train().loss(batch, actions, generator=seeded(3)), as_empty)
    assert not torch.allclose(policy.eval().loss(batch, actions, generator=random), as_empty)


def test_nothing_draws_from_the_global_source_and_inputs_stay() -> None:
    policy = make_policy(small_contract()).train()
    batch, actions = policy.fake_batch(2, seeded())
    kept, state = (actions.clone(), batch.state.clone()), torch.get_rng_state()
    policy.loss(batch, actions, generator=seeded())
    policy.sample(batch, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(actions, kept[0]) and torch.equal(batch.state, kept[1])


def test_the_default_policy_is_small_enough_to_ship() -> None:
    policy = make_policy(small_contract(size=(84, 84)), PolicyConfig())
    assert sum(parameter.numel() for parameter in policy.parameters()) <= 3_500_000


def test_a_config_survives_as_values() -> None:
    config = replace(PolicyConfig(), horizon=7, network=NETWORKS['unet'])
    assert from_values(PolicyConfig, to_values(config)) == config


@pytest.mark.parametrize('values, message', [
    ({'horizont': 3}, 'horizont: unknown key.*horizon'), ({'image': {'width': 3}}, 'image.width: unknown key.*widths'),
    ({'network': {'depth': 'deep'}}, "network.depth: 'deep' is no int"), ({'image': 3}, 'image: 3 is no group'),
    ({'image': {'widths': 8}}, 'image.widths: 8 is no list'), ({'refiner': 1}, 'refiner: 1 is no bool'),
    ({'horizon': True}, 'horizon: True is no int')])
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_values(PolicyConfig, values)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ConfigError, match="network.kind: 'unte'.*unet"):
        make_policy(small_contract(), replace(PolicyConfig.dummy(), network=NetworkConfig('unte')))


@dataclass(frozen=True)
class Keeping(FlowMatchingConfig):
    """Takes two numbers of an action as they are."""

    def kept(self, action_dim: int) -> tuple[int, ...]:
        """Return the first and the last."""
        return 0, action_dim - 1


def test_numbers_that_the_family_keeps_are_not_normalised() -> None:
    contract = small_contract()
    usual = make_policy(contract)
    policy = make_policy(contract, replace(PolicyConfig.dummy(), generator=Keeping(steps=2)))
    actions = torch.randn(5, 4, 4, generator=seeded())
    normal = policy.normalise_actions(actions)
    assert torch.equal(normal[..., [0, 3]], actions[..., [0, 3]])
    assert torch.equal(normal[..., 1:3], usual.normalise_actions(actions)[..., 1:3])
    assert not torch.equal(normal[..., 1:3], actions[..., 1:3])
    torch.testing.assert_close(policy.normalise_actions.inverse(normal), actions)


def test_rotations_are_kept() -> None:
    parts = (PartConfig('continuous', 2), PartConfig('rotation', 1), PartConfig('discrete', 3), PartConfig('rotation'))
    assert MultimodalFlowConfig(parts).kept(15) == (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14)
    assert FlowMatchingConfig().kept(15) == ()
