"""The inference path: what comes out, how it goes on from a plan, how long it may take and how sure it is."""

from __future__ import annotations

from dataclasses import replace
import math

from core_samples import make_policy, small_contract
import numpy as np
import pytest
import torch

from flow_vla_core.engine import MODES, RUNNERS, Engine
from flow_vla_core.engine.budget import Budget
from flow_vla_core.engine.confidence import agreement, most_central
from flow_vla_core.errors import ActionNotFinite, ConfigError, InputError, InstructionMissing, InstructionUnknown
from flow_vla_core.generators import FAMILIES, FlowMatchingConfig, Guide, prefix_weights
from flow_vla_core.networks import NetworkConfig
from flow_vla_core.policy import FlowVLA, PolicyConfig
from flow_vla_core.types import Batch, Continuation, Observation

RANDOM = np.random.default_rng(5)
LEFT = RANDOM.normal(size=(3, 4)).astype(np.float32)


def observation(words: str = 'open the tap', history: int = 1, seed: int = 0) -> Observation:
    """Return random images and state."""
    random = np.random.default_rng(seed)
    contract = small_contract(history)
    images = {camera.name: random.integers(0, 256, (history, *camera.size, 3), dtype=np.uint8)
              for camera in contract.cameras}
    return Observation(0, images, random.normal(size=(history, 4)).astype(np.float32), words)


def batch_of(policy: FlowVLA, seen: Observation) -> Batch:
    """Return the same as tensors."""
    images = {name: torch.from_numpy(image.transpose(0, 3, 1, 2).copy())[None] for name, image in seen.images.items()}
    return Batch(images, torch.from_numpy(seen.state)[None], policy.vocabulary.batch([seen.instruction]))


def policy_of(family: str = 'flow_matching', network: str = 'unet', **settings: object) -> FlowVLA:
    """Return a small policy of this family."""
    config = FAMILIES[family](**settings)
    return make_policy(small_contract(), replace(PolicyConfig.dummy(), generator=config,
                                                 network=NetworkConfig(network, 8, 1, 2)))


@pytest.mark.parametrize('runner', ['auto', 'eager'])
@pytest.mark.parametrize('history', [1, 2])
def test_a_chunk_is_what_the_policy_samples(history: int, runner: str) -> None:
    policy = make_policy(small_contract(history))
    seen = observation(history=history)
    made = Engine(policy, device='cpu', seed=3, runner=runner).act(seen)
    assert made.actions.shape == (policy.config.horizon, 4)
    assert made.actions.dtype == np.float32 and math.isnan(made.confidence)
    noise = torch.randn(1, policy.config.horizon, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        np.testing.assert_allclose(made.actions, policy.sample(batch_of(policy, seen), noise=noise)[0].numpy(),
                                   atol=1e-5)


def test_a_seed_repeats_and_noise_differs_from_call_to_call() -> None:
    engine = Engine(make_policy(small_contract()), seed=1, runner='eager')
    first, second = engine.act(observation()).actions, engine.act(observation()).actions
    assert not np.array_equal(first, second)
    engine.seed(1)
    assert np.array_equal(engine.act(observation()).actions, first)


@pytest.mark.parametrize(('steps', 'chosen'), [(0, 'none'), (2, 'prefix')])
def test_a_policy_continues_plans_as_it_was_trained_to(steps: int, chosen: str) -> None:
    assert Engine(policy_of(prefix_steps=steps), realtime='auto', runner='eager').realtime == chosen
    assert Engine(policy_of(prefix_steps=steps), realtime='guided', runner='eager').realtime == 'guided'
    assert Engine(policy_of('vae'), realtime='auto', runner='eager').realtime == 'none'


@pytest.mark.parametrize('realtime', MODES)
def test_warming_up_changes_neither_noise_nor_the_global_source(realtime: str) -> None:
    cold, warm = (Engine(make_policy(small_contract()), seed=1, realtime=realtime, runner='eager') for _ in range(2))
    state = torch.get_rng_state()
    warm.warm_up()
    assert np.array_equal(warm.act(observation()).actions, cold.act(observation()).actions)
    assert torch.equal(torch.get_rng_state(), state)


def test_steps_are_those_asked_for() -> None:
    policy, calls = make_policy(small_contract()), []
    policy.generator.network.register_forward_hook(lambda *_: calls.append(1))
    Engine(policy, steps=7, runner='eager').act(observation())
    assert len(calls) == 7


def test_instructions_are_checked_and_read_once() -> None:
    policy, calls = make_policy(small_contract()), []
    policy.language.register_forward_hook(lambda *_: calls.append(1))
    engine = Engine(policy, runner='eager')
    for _ in range(3):
        engine.act(observation('close the tap'))
    assert len(calls) == 1
    with pytest.raises(InstructionMissing):
        engine.act(observation(''))
    with pytest.raises(InstructionUnknown, match="'tip'.*tap"):
        engine.act(observation('open the tip'))
    assert len(calls) == 1
    assert np.isfinite(Engine(policy, allow_empty=True, runner='eager').act(observation('')).actions).all()


def test_an_action_that_is_not_finite_is_never_handed_out() -> None:
    policy = make_policy(small_contract())
    with torch.no_grad():
        policy.generator.network.leave.bias.fill_(float('nan'))
    with pytest.raises(ActionNotFinite):
        Engine(policy, runner='eager').act(observation())


@pytest.mark.parametrize(('settings', 'message'), [
    ({'realtime': 'guidde'}, "realtime: 'guidde'.*guided"), ({'runner': 'eagre'}, "runner: 'eagre'.*eager"),
    ({'steps': 0}, 'steps: 0'), ({'samples': 0}, 'samples: 0'), ({'beta': -1.0}, 'beta: -1'),
    ({'device': 'cdua'}, "device: 'cdua'.*'cuda'"), ({'device': 'cuda:99'}, "device: 'cuda:99'; CUDA devices here"),
    ({'budget': 0.0}, 'budget: 0.0'), ({'runner': 'graph', 'device': 'cpu'}, "graph: .*'cpu'.*'cuda'")])
def test_settings_without_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(make_policy(small_contract()), **settings)


# Going on from a plan


def test_a_family_that_can_not_be_guided_is_refused_before_it_runs() -> None:
    with pytest.raises(ConfigError, match="realtime: 'guided'; MeanFlow.*'prefix'"):
        Engine(policy_of('meanflow'), realtime='guided')


@pytest.mark.parametrize('count', [2, 3, 4])
def test_guided_is_what_the_policy_samples_with_the_weights_of_what_is_left(count: int) -> None:
    policy, seen = policy_of(), observation()
    left = np.concatenate([LEFT, LEFT[:1]])[:count]
    made = Engine(policy, realtime='guided', beta=3.0, seed=3).act(seen, Continuation(left, 1, 2)).actions
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(3))
    guide = Guide(torch.from_numpy(left)[None], prefix_weights(4, 1, 2), 3.0)
    with torch.no_grad():
        wanted = policy.sample(batch_of(policy, seen), noise=noise, guide=guide)[0].numpy()
        free = policy.sample(batch_of(policy, seen), noise=noise)[0].numpy()
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    assert np.abs(made - free).max() > 1e-3


def test_with_few_steps_guidance_does_not_go_past_the_plan() -> None:
    policy, seen = policy_of(), observation()
    with torch.no_grad():
        for parameter in policy.generator.parameters():
            parameter.zero_()  # a field of zeros: the Jacobian is the identity
    policy.normalise_actions.offset.zero_()
    for steps in (1, 2, 5):
        engine = Engine(policy, realtime='guided', steps=steps, seed=1)
        made = engine.act(seen, Continuation(LEFT, 2, 2)).actions[:2]
        noise = Engine(policy, steps=steps, seed=1, runner='eager').act(seen).actions[:2]
        np.testing.assert_allclose(made, LEFT[:2], atol=1e-5, err_msg=f'{steps} steps')
        assert np.abs(noise - LEFT[:2]).max() > 0.1


@pytest.mark.parametrize('settings', [{}, {'prefix_steps': 2}])
@pytest.mark.parametrize('delay', [1, 2, 3])
def test_prefix_begins_with_what_will_have_been_executed(delay: int, settings: dict) -> None:
    policy, seen = policy_of(**settings), observation()
    engine = Engine(policy, realtime='prefix', seed=3, runner='eager')
    made = engine.act(seen, Continuation(LEFT, delay, 1)).actions
    np.testing.assert_allclose(made[:delay], LEFT[:delay], atol=1e-5)
    noise = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = policy.sample(batch_of(policy, seen), noise=noise, prefix=torch.from_numpy(LEFT[None, :delay]))
    np.testing.assert_allclose(made, wanted[0].numpy(), atol=1e-5)


@pytest.mark.parametrize('family', ['meanflow', 'hierarchical'])
def test_prefix_serves_other_families_too(family: str) -> None:
    engine = Engine(policy_of(family, 'mlp'), realtime='prefix', runner='eager')
    made = engine.act(observation(), Continuation(LEFT, 2, 1)).actions
    np.testing.assert_allclose(made[:2], LEFT[:2], atol=1e-5)


@pytest.mark.parametrize('realtime', MODES)
def test_nothing_to_go_on_from_is_plain_sampling(realtime: str) -> None:
    policy, seen = policy_of(), observation()
    plain = Engine(policy, seed=2, runner='eager').act(seen).actions
    left = Continuation(LEFT, 0, 4) if realtime == 'prefix' else None
    for continuation in (None, left):
        engine = Engine(policy, seed=2, realtime=realtime, runner='eager')
        assert np.array_equal(engine.act(seen, continuation).actions, plain)
    assert np.array_equal(Engine(policy, seed=2, runner='eager').act(seen, Continuation(LEFT, 1, 1)).actions, plain)


@pytest.mark.parametrize(('realtime', 'left', 'delay', 'execute', 'message'), [
    ('guided', LEFT, 3, 2, 'delay: 3, execute: 2'), ('prefix', LEFT, 4, 1, 'delay: 4'),
    ('prefix', LEFT[:1], 2, 1, 'delay: 2.*1 actions'), ('guided', LEFT[:, :3], 1, 1, 'shape'),
    ('prefix', np.tile(LEFT, (2, 1)), 1, 1, 'shape'), ('guided', LEFT * np.nan, 1, 1, 'NaN'),
    ('prefix', LEFT[:0], 0, 1, 'shape')])
def test_a_continuation_without_sense_is_refused(realtime: str, left: np.ndarray, delay: int, execute: int,
                                                 message: str) -> None:
    engine = Engine(policy_of(), realtime=realtime, runner='eager')
    with pytest.raises(InputError, match=message):
        engine.act(observation(), Continuation(left, delay, execute))


# Confidence


def test_of_several_samples_the_most_central_is_answered_with_their_agreement() -> None:
    policy, seen, calls = policy_of(), observation(), []
    policy.fusion.register_forward_hook(lambda *_: calls.append(1))
    made = Engine(policy, samples=5, seed=3, runner='eager').act(seen)
    assert len(calls) == 1, 'encoded once'
    noise = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        chunks = policy.generator.sample(policy.encode(batch_of(policy, seen)).expand(5), noise=noise)
    chunks = policy.normalise_actions.inverse(chunks)
    apart = (chunks[:, None] - chunks[None]).flatten(2).norm(dim=2).sum(1)
    np.testing.assert_allclose(made.actions, chunks[apart.argmin()], atol=1e-5)
    spread = np.array(policy.statistics['actions'].std)
    share = np.mean(np.var(chunks.numpy(), 0, ddof=1) / spread ** 2)
    assert made.confidence == pytest.approx(max(0, 1 - share), abs=1e-5)


def test_agreement_goes_from_all_the_same_to_as_far_apart_as_the_data() -> None:
    free, spread = torch.zeros(6), torch.tensor([2.0, 0.5])
    chunks = torch.randn(5000, 6, 2, generator=torch.Generator().manual_seed(0)) * spread
    assert agreement(chunks[:1].expand(4, -1, -1), spread, free) == 1
    assert agreement(0.5 * chunks, spread, free) == pytest.approx(0.75, abs=0.02)
    assert agreement(3 * chunks, spread, free) == 0
    assert math.isnan(agreement(chunks[:1], spread, free))


def test_what_is_fixed_or_constant_says_nothing_about_agreement() -> None:
    chunks, spread = torch.randn(5000, 4, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([2.0, 0.0])
    chunks[:, 0] = 0
    assert agreement(chunks, spread, torch.tensor([1.0, 0.5, 0, 0])) == pytest.approx(0.75, abs=0.02)
    assert math.isnan(agreement(chunks, spread, torch.ones(4)))


def test_the_most_central_of_few() -> None:
    chunks = torch.tensor([9.0, 1.0, 2.0, 3.0])[:, None, None]
    assert most_central(chunks).item() == 2 and most_central(chunks[:2]).item() == 9


# Budget


def test_as_many_steps_as_fit_into_the_time() -> None:
    budget = Budget(0.030, most=8)
    assert budget.steps() == 8, 'nothing is known yet'
    budget.calibrate({1: [0.008, 0.9, 0.008], 8: [0.036]})  # 4 ms, and 4 ms a step
    assert budget.steps() == 6
    assert Budget(None, most=8).steps() == 8


def test_a_busy_machine_takes_fewer_steps_until_it_is_quiet_again() -> None:
    budget = Budget(0.030, most=8, window=3)
    budget.calibrate({1: [0.008], 8: [0.036]})
    for _ in range(3):
        budget.note(6, 0.056)
    assert budget.steps() == 2
    for _ in range(2):
        budget.note(2, 0.012)
    assert budget.steps() == 6
    budget.note(6, 9.0)
    assert budget.steps() == 6, 'one slow call changes nothing'
    for _ in range(3):
        budget.note(6, 99.0)
    assert budget.steps() == 1, 'there is always one'


def test_the_engine_keeps_to_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, now, asked = make_policy(small_contract()), [0.0], []

    def evaluate(*_: object) -> None:
        now[0] += 0.004
        asked.append(1)

    def encode(*_: object) -> None:
        now[0] += 0.006

    monkeypatch.setattr('flow_vla_core.engine.engine.time.perf_counter', lambda: now[0])
    policy.generator.network.register_forward_hook(evaluate)
    policy.fusion.register_forward_hook(encode)
    engine = Engine(policy, steps=9, budget=0.020, runner='eager')
    engine.warm_up()
    asked.clear()
    engine.act(observation())
    assert len(asked) == 3


def test_every_runner_has_a_name() -> None:
    assert set(RUNNERS) == {'eager', 'traced', 'compiled', 'graph'}
    assert Engine(policy_of(), runner='eager', device='cpu').runner == 'eager on cpu'


def test_freezing_the_weights_is_all_that_happens_to_the_policy() -> None:
    policy = make_policy(small_contract(), replace(PolicyConfig.dummy(), generator=FlowMatchingConfig()))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    Engine(policy, half=True, device='cpu').warm_up(1)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert not any(parameter.requires_grad for parameter in policy.parameters())
