"""The inference path."""

from __future__ import annotations

from core_samples import make_policy, small_contract
import numpy as np
import pytest
import torch

from flow_vla_core.engine import Engine
from flow_vla_core.errors import ActionNotFinite, InstructionMissing, InstructionUnknown
from flow_vla_core.types import Batch, Observation


def observation(words: str = 'open the tap', history: int = 1, seed: int = 0) -> Observation:
    """Return random images and state."""
    random = np.random.default_rng(seed)
    contract = small_contract(history)
    images = {camera.name: random.integers(0, 256, (history, *camera.size, 3), dtype=np.uint8)
              for camera in contract.cameras}
    return Observation(0, images, random.normal(size=(history, 4)).astype(np.float32), words)


@pytest.mark.parametrize('history', [1, 2])
def test_a_chunk_is_what_the_policy_samples(history: int) -> None:
    policy = make_policy(small_contract(history))
    seen = observation(history=history)
    made = Engine(policy, device='cpu', seed=3).act(seen)
    assert made.shape == (policy.config.horizon, 4)
    assert made.dtype == np.float32
    images = {name: torch.from_numpy(image.transpose(0, 3, 1, 2).copy())[None] for name, image in seen.images.items()}
    batch = Batch(images, torch.from_numpy(seen.state)[None], policy.vocabulary.batch([seen.instruction]))
    noise = torch.randn(1, policy.config.horizon, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        np.testing.assert_allclose(made, policy.sample(batch, noise=noise)[0].numpy(), atol=1e-6)


def test_a_seed_repeats_and_noise_differs_from_call_to_call() -> None:
    engine = Engine(make_policy(small_contract()), seed=1)
    first, second = engine.act(observation()), engine.act(observation())
    assert not np.array_equal(first, second)
    engine.seed(1)
    assert np.array_equal(engine.act(observation()), first)


def test_warming_up_changes_neither_noise_nor_the_global_source() -> None:
    cold, warm = (Engine(make_policy(small_contract()), seed=1) for _ in range(2))
    state = torch.get_rng_state()
    warm.warm_up()
    assert np.array_equal(warm.act(observation()), cold.act(observation()))
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_are_those_asked_for() -> None:
    policy, calls = make_policy(small_contract()), []
    policy.generator.network.register_forward_hook(lambda *_: calls.append(1))
    Engine(policy, steps=7).act(observation())
    assert len(calls) == 7


def test_instructions_are_checked() -> None:
    policy = make_policy(small_contract())
    with pytest.raises(InstructionMissing):
        Engine(policy).act(observation(''))
    with pytest.raises(InstructionUnknown, match="'tip'.*tap"):
        Engine(policy).act(observation('open the tip'))
    assert np.isfinite(Engine(policy, allow_empty=True).act(observation(''))).all()


def test_an_action_that_is_not_finite_is_never_handed_out() -> None:
    policy = make_policy(small_contract())
    with torch.no_grad():
        policy.generator.network.leave.bias.fill_(float('nan'))
    with pytest.raises(ActionNotFinite):
        Engine(policy).act(observation())
