"""The trainer over every objective: each family as head of the policy and alone, students, each density flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from core_samples import make_episodes, make_policy, small_contract
import pytest
import torch
from torch import Tensor, nn

from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import CheckpointError, ConfigError, DataError, InputError, TrainingError
from flow_vla_core.flows import FLOWS
from flow_vla_core.generators import FAMILIES, RegressionConfig, Student
from flow_vla_core.networks import NetworkConfig, Sizes
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training.checkpoint import load_checkpoint, load_weights, save_weights
from flow_vla_core.training.config import LoopConfig, TrainConfig
from flow_vla_core.training.objective import Objective, digest
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.tensor_objectives import ChunkObjective, DensityObjective
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.types import Condition

CONTRACT = small_contract(size=(12, 12))
EPISODES = make_episodes(CONTRACT)
SIZES, NETWORK = Sizes(4, 2, 3), NetworkConfig('mlp', 8, 1)
LOOP = LoopConfig(steps=3, batch_size=8, warm_up=1, log_every=1)
STUDENTS = [name for name in FAMILIES if isinstance(FAMILIES[name].dummy(SIZES).build(SIZES, NETWORK), Student)]


def head_config(family: str) -> PolicyConfig:
    """Return the settings of the smallest policy with a family as its head."""
    config = replace(PolicyConfig.dummy(), network=NETWORK)
    return replace(config, generator=FAMILIES[family].dummy(config.sizes(CONTRACT.action_dim)))


def head_trainer(family: str, out: Path | None = None, seed: int = 0, teacher: int = 5) -> FlowTrainer:
    """Return the training of such a policy."""
    config = TrainConfig(policy=head_config(family), steps=3, batch_size=3, warm_up=1, shift=1, holdout=0.0)
    policy = make_policy(CONTRACT, config.policy, seed)
    if policy.student is not None:
        policy.learn_from(make_policy(CONTRACT, head_config('flow_matching'), teacher))
    return FlowTrainer(PolicyObjective(policy, Windows(EPISODES, 4), None, config), config, out)


def finish(trainer: FlowTrainer) -> FlowTrainer:
    """Do the steps that are left."""
    while trainer.step < trainer.config.steps:
        trainer.train_step()
    return trainer


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    """Compare all parameters and buffers, bit for bit."""
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_is_trained_resumed_saved_and_loaded_as_head_of_the_policy(family: str, tmp_path: Path) -> None:
    straight = finish(head_trainer(family))
    broken = head_trainer(family, tmp_path)
    for _ in range(2):
        broken.train_step()
    broken.save()
    resumed = head_trainer(family, tmp_path, seed=3)
    resumed.resume()
    finish(resumed)
    assert_equal_weights(resumed.module, straight.module)
    assert_equal_weights(resumed.average.module, straight.average.module)
    loaded = load_checkpoint(tmp_path / 'checkpoint')
    assert loaded.config == head_config(family)
    assert_equal_weights(loaded, broken.average.module)
    batch, _ = loaded.fake_batch(2, torch.Generator().manual_seed(0))
    made = [policy.sample(batch, generator=torch.Generator().manual_seed(1))
            for policy in (loaded, broken.average.module)]
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)   # sums depend on where in memory the weights lie


@pytest.mark.parametrize('family', STUDENTS)
def test_a_student_begins_as_its_teacher_and_leaves_encoders_and_teacher_alone(family: str) -> None:
    trainer = head_trainer(family)
    policy, teacher = trainer.module, make_policy(CONTRACT, head_config('flow_matching'), 5)
    own = policy.student.teacher
    before = {name: tensor.clone() for name, tensor in policy.generator.named_parameters()}
    finish(trainer)
    assert_equal_weights(own, teacher.generator)
    for name, part in policy.named_children():
        if name != 'generator':
            assert_equal_weights(part, getattr(teacher, name))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in policy.generator.named_parameters())
    kept = set(policy.state_dict())
    assert not any('teacher' in name for name in kept)
    trained = {id(p) for group in trainer.optimiser.param_groups for p in group['params']}
    assert trained == {id(p) for p in policy.generator.parameters() if p.requires_grad}


def test_a_student_is_resumed_with_its_own_teacher_only(tmp_path: Path) -> None:
    family = STUDENTS[0]
    head_trainer(family, tmp_path).save()
    head_trainer(family, tmp_path).resume()
    with pytest.raises(CheckpointError, match='teacher: .* then, .* now'):
        head_trainer(family, tmp_path, teacher=6).resume()


def test_a_refined_student_learns_from_a_refined_teacher_without_its_refiner() -> None:
    policy = make_policy(CONTRACT, replace(head_config(STUDENTS[0]), refiner=True))
    teacher = make_policy(CONTRACT, replace(head_config('flow_matching'), refiner=True), 5)
    policy.learn_from(teacher)
    assert policy.student.teacher is teacher.generator.base
    batch, actions = policy.fake_batch(2)
    assert torch.isfinite(policy.loss(batch, actions))


@pytest.mark.parametrize('change, message', [
    ({'condition_width': 8}, 'policy.condition_width: 16; the teacher has 8'),
    ({'language_width': 4}, 'policy.language_width: 8; the teacher has 4'),
    ({'horizon': 5}, 'policy.horizon: 4; the teacher has 5')])
def test_a_teacher_that_does_not_fit_is_named(change: dict, message: str) -> None:
    policy = make_policy(CONTRACT, head_config(STUDENTS[0]))
    with pytest.raises(ConfigError, match=message):
        policy.learn_from(make_policy(CONTRACT, replace(head_config('flow_matching'), **change)))
    other = make_policy(CONTRACT, head_config('flow_matching'))
    other.statistics['state'] = other.statistics['actions']
    with pytest.raises(ConfigError, match='statistics and words'):
        policy.learn_from(other)


def test_a_family_without_a_teacher_refuses_one_and_a_student_without_one_cannot_learn() -> None:
    plain = make_policy(CONTRACT, head_config('regression'))
    with pytest.raises(ConfigError, match="'regression' learns from no teacher"):
        plain.learn_from(make_policy(CONTRACT, head_config('flow_matching')))
    generator = FAMILIES[STUDENTS[0]].dummy(SIZES).build(SIZES, NETWORK)
    with pytest.raises(TrainingError, match='learns from a trained generator'):
        FlowTrainer(ChunkObjective(generator, torch.zeros(9, 4, 2), Condition(torch.zeros(9, 3))), LOOP).run()


def regression(width: int = 8) -> nn.Module:
    """Return an untrained generator."""
    torch.manual_seed(0)
    return RegressionConfig('l2').build(SIZES, NetworkConfig('mlp', width, 1))


def linear_chunks(count: int = 64) -> tuple[Tensor, Condition]:
    """Return chunks that are a linear map of their condition."""
    random = torch.Generator().manual_seed(0)
    vector = torch.randn(count, 3, generator=random)
    return (vector @ torch.randn(3, 8, generator=random)).reshape(count, 4, 2), Condition(vector)


def test_chunks_are_learned_for_their_conditions_without_a_file_or_a_word(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    actions, conditions = linear_chunks()
    kept = actions.clone()
    config = LoopConfig(steps=150, batch_size=32, learning_rate=0.01, warm_up=10, average=0.9, log_every=50)
    trainer = FlowTrainer(ChunkObjective(regression(32), actions, conditions), config)
    state = torch.get_rng_state()
    trainer.run()
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(actions, kept)
    left = (trainer.average.module.sample(conditions) - actions).square().mean() / actions.square().mean()
    assert left < 0.05
    assert [point.step for point in trainer.points] == [50, 100, 150] and trainer.seconds > 0
    assert not list(tmp_path.iterdir()) and not ''.join(capsys.readouterr())


def test_what_is_masked_does_not_matter_to_the_weights() -> None:
    actions, conditions = linear_chunks()
    mask = torch.arange(4).expand(64, 4) < 1 + torch.arange(64)[:, None] % 4
    masked = []
    for garbage in (7.0, -3.0):
        far = torch.where(mask[..., None], actions, torch.full_like(actions, garbage))
        masked.append(finish(FlowTrainer(ChunkObjective(regression(), far, conditions, mask), LOOP)).module)
    assert_equal_weights(*masked)


@pytest.mark.parametrize('name', FLOWS)
def test_every_density_flow_trains_with_a_context_and_without(name: str) -> None:
    for width in (0, 3):
        torch.manual_seed(0)
        flow = FLOWS[name](2, width)
        before = [parameter.clone() for parameter in flow.parameters()]
        samples, context = torch.randn(20, 2), torch.randn(20, width) if width else None
        trainer = FlowTrainer(DensityObjective(flow, samples, context), replace(LOOP, steps=2))
        trainer.run()
        assert all(torch.isfinite(torch.tensor(point.values['loss'])) for point in trainer.points)
        assert any(not torch.equal(now, old) for now, old in zip(flow.parameters(), before))
        assert torch.isfinite(trainer.average.module(context).log_prob(samples)).all()


def test_a_density_reaches_the_entropy_of_its_data() -> None:
    torch.manual_seed(0)
    spread = torch.tensor([[0.5, 0.0], [0.8, 0.3]])
    samples = torch.randn(4096, 2) @ spread.T + torch.tensor([1.0, -2.0])
    entropy = 1 + torch.log(torch.tensor(2 * torch.pi)).item() + torch.logdet(spread).item()
    config = LoopConfig(steps=120, batch_size=256, learning_rate=0.03, warm_up=10, average=0.9, weight_decay=0.0)
    trainer = FlowTrainer(DensityObjective(FLOWS['maf'](2, 0), samples), config)
    trainer.run()
    fresh = torch.randn(20000, 2) @ spread.T + torch.tensor([1.0, -2.0])
    with torch.no_grad():
        found = -trainer.average.module().log_prob(fresh).mean().item()
    assert entropy - 0.03 < found < entropy + 0.05  # the error of 20,000 points is 0.007


class Recorder(Objective):
    """Writes down what happens to one weight, in which order."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1, bias=False))
        self.trainer: FlowTrainer | None = None
        self.heard: list[str] = []

    def __len__(self) -> int:
        return 4

    def loss(self, module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Note whether old gradients are gone."""
        assert module.weight.grad is None
        self.before = (module.weight.item(), self.trainer.average.module.weight.item())
        self.heard.append('loss')
        return 1000 * module.weight.sum()

    def after_step(self) -> None:
        """Note whether the weight has moved, and its average not yet."""
        assert abs(self.module.weight.grad.item()) == pytest.approx(1.0), 'clipped before the step'
        assert self.module.weight.item() != self.before[0]
        assert self.trainer.average.module.weight.item() == self.before[1]
        self.heard.append('after_step')

    def identity(self) -> Mapping[str, object]:
        """Return nothing."""
        return {}


def test_each_step_clears_descends_clips_moves_tells_and_averages_in_this_order() -> None:
    objective = Recorder()
    trainer = FlowTrainer(objective, replace(LOOP, weight_decay=0.0))
    objective.trainer = trainer
    rates = []
    while trainer.step < 3:
        expected, averaged = trainer.learning_rate, trainer.average.module.weight.item()
        before = trainer.module.weight.item()
        trainer.train_step()
        rates.append(trainer.optimiser.param_groups[0]['lr'])
        assert rates[-1] == expected
        assert before - trainer.module.weight.item() == pytest.approx(expected, rel=1e-3), 'AdamW moves by its rate'
        assert trainer.average.module.weight.item() != averaged
    assert objective.heard == ['loss', 'after_step'] * 3 and rates[0] == LOOP.learning_rate > rates[2]


def test_weight_decay_is_the_only_regularisation_and_acts_on_matrices() -> None:
    objective = ChunkObjective(regression(), *linear_chunks())
    groups = FlowTrainer(objective, replace(LOOP, weight_decay=0.25)).optimiser.param_groups
    assert [group['weight_decay'] for group in groups] == [0.25, 0.0]
    assert all(parameter.ndim > 1 for parameter in groups[0]['params'])
    assert all(parameter.ndim == 1 for parameter in groups[1]['params'])


def test_weights_of_any_module_survive_and_wrong_ones_are_named(tmp_path: Path) -> None:
    objective = ChunkObjective(regression(), *linear_chunks())
    trainer = FlowTrainer(objective, LOOP, tmp_path)
    trainer.run()
    other = RegressionConfig().build(SIZES, NETWORK)
    load_weights(tmp_path / 'checkpoint', other)
    assert_equal_weights(other, trainer.average.module)
    save_weights(tmp_path / 'flow', FLOWS['real_nvp'](2, 0))
    with pytest.raises(CheckpointError, match='not of this Regression'):
        load_weights(tmp_path / 'flow', other)
    with pytest.raises(CheckpointError, match='nowhere'):
        load_weights(tmp_path / 'nowhere', other)


def test_resume_refuses_other_chunks_and_needs_a_folder(tmp_path: Path) -> None:
    actions, conditions = linear_chunks()
    FlowTrainer(ChunkObjective(regression(), actions, conditions), LOOP, tmp_path).save()
    FlowTrainer(ChunkObjective(regression(), actions, conditions), LOOP, tmp_path).resume()
    with pytest.raises(CheckpointError, match='data: .* then'):
        FlowTrainer(ChunkObjective(regression(), actions + 1, conditions), LOOP, tmp_path).resume()
    with pytest.raises(CheckpointError, match='schedule: .cosine. then'):
        FlowTrainer(ChunkObjective(regression(), actions, conditions), replace(LOOP, schedule='constant'),
                    tmp_path).resume()
    with pytest.raises(CheckpointError, match='no folder'):
        FlowTrainer(ChunkObjective(regression(), actions, conditions), LOOP).resume()


def test_a_digest_tells_values_shapes_and_types_apart() -> None:
    values = torch.arange(6.0)
    texts = [digest(values), digest(values + 1), digest(values.reshape(2, 3)), digest(values.double()),
             digest(values, values), digest(values[:0]), digest(torch.tensor(0.0))]
    assert len(set(texts)) == len(texts)
    assert digest(values, None) == digest(values.clone()) == digest(torch.stack([values, values], 1)[:, 0])


CHUNKS, TOLD = linear_chunks(5)


@pytest.mark.parametrize('error, message, make', [
    (InputError, 'actions: shape', lambda: ChunkObjective(regression(), CHUNKS[:, :3], TOLD)),
    (InputError, 'actions: shape', lambda: ChunkObjective(regression(), CHUNKS[:4], TOLD)),
    (InputError, 'conditions: shape', lambda: ChunkObjective(regression(), CHUNKS, Condition(TOLD.vector[:, :2]))),
    (InputError, 'actions: hold NaN', lambda: ChunkObjective(regression(), CHUNKS / 0, TOLD)),
    (InputError, 'mask: shape', lambda: ChunkObjective(regression(), CHUNKS, TOLD, torch.ones(5, 3).bool())),
    (InputError, 'samples: shape', lambda: DensityObjective(FLOWS['maf'](2, 0), torch.zeros(5, 3))),
    (InputError, 'context: given', lambda: DensityObjective(FLOWS['maf'](2, 0), torch.zeros(5, 2), torch.ones(5, 1))),
    (InputError, 'context: none', lambda: DensityObjective(FLOWS['maf'](2, 1), torch.zeros(5, 2))),
    (InputError, 'context: shape', lambda: DensityObjective(FLOWS['maf'](2, 1), torch.zeros(5, 2), torch.ones(4, 1))),
    (DataError, 'no examples', lambda: FlowTrainer(DensityObjective(FLOWS['maf'](2, 0), torch.zeros(0, 2)), LOOP)),
    (ConfigError, "schedule: 'cosin'; did you mean 'cosine'", lambda: LoopConfig(schedule='cosin')),
    (ConfigError, 'warm_up: -1', lambda: LoopConfig(warm_up=-1))])
def test_bad_input_is_named(error: type[Exception], message: str, make: object) -> None:
    with pytest.raises(error, match=message):
        make()
