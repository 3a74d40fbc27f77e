"""The training loop: order, averaging, schedule, exact resume, report."""

from __future__ import annotations

from dataclasses import replace
import io
import json
from pathlib import Path

from core_samples import make_episodes, make_policy, small_contract
import pytest
from rich.console import Console
import torch

from flow_vla_core.config import from_values, load_yaml
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import CheckpointError, ConfigError, DataError, TrainingError
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training.average import Average
from flow_vla_core.training.checkpoint import load_checkpoint
from flow_vla_core.training.config import TrainConfig
from flow_vla_core.training.episodes import hold_out
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.report import Point, plot_curves
from flow_vla_core.training.sampler import Sampler, balanced
from flow_vla_core.training.schedule import constant, cosine, one_cycle
from flow_vla_core.training.trainer import FlowTrainer

CONFIG = TrainConfig(policy=PolicyConfig.dummy(), steps=200, batch_size=3, warm_up=20, shift=1, state_noise=0.1,
                     validate_every=50, checkpoint_every=75, log_every=10)


def make_trainer(out: Path, config: TrainConfig = CONFIG, seed: int = 0) -> FlowTrainer:
    """Return a trainer of a tiny policy on tiny episodes."""
    contract = small_contract(size=(12, 12))
    learn, held = hold_out(make_episodes(contract), 0.5, 0)
    horizon = config.policy.horizon
    objective = PolicyObjective(make_policy(contract, config.policy, seed), Windows(learn, horizon),
                                Windows(held, horizon), config)
    return FlowTrainer(objective, config, out, console=Console(file=io.StringIO()))


def equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Compare all parameters and buffers, bit for bit."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def test_200_steps_equal_100_and_a_resume_and_100(tmp_path: Path) -> None:
    straight = make_trainer(tmp_path / 'straight')
    straight.run()
    first = make_trainer(tmp_path / 'broken')
    while first.step < 100:
        first.train_step()
    first.save()
    second = make_trainer(tmp_path / 'broken', seed=7)
    torch.randn(5)
    second.resume()
    assert second.step == 100
    second.run()
    assert second.step == straight.step == 200
    assert equal_weights(second.module, straight.module)
    assert equal_weights(second.average.module, straight.average.module)
    ours, theirs = second.optimiser.state_dict()['state'], straight.optimiser.state_dict()['state']
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in theirs for key in theirs[i])
    assert torch.equal(second.train_step(), straight.train_step())


def test_the_curves_of_a_resumed_training_are_those_of_one_without_a_break(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=20, validate_every=10)
    straight, first = make_trainer(tmp_path / 'straight', config), make_trainer(tmp_path / 'broken', config)
    straight.run()
    while first.step < 7:
        first.train_step()
    first.kept['frames'] = 9
    first.save()
    second = make_trainer(tmp_path / 'broken', config)
    second.resume()
    second.run()
    assert second.points == straight.points
    assert second.kept == {'frames': 9}


def test_a_run_leaves_all_that_it_promises(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(CONFIG, steps=20, validate_every=10))
    trainer.run()
    assert {'checkpoint', 'resume', 'report.json', 'curves.png', 'events', 'config.yaml', 'environment.json',
            'metrics.csv', 'samples.png', 'README.txt'} == {path.name for path in tmp_path.iterdir()}
    written = load_checkpoint(tmp_path / 'checkpoint', small_contract(size=(12, 12)))
    assert equal_weights(written, trainer.average.module)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['steps'] == 20
    assert report['train']['episodes'] == report['validation']['episodes'] == 2
    assert report['train']['frames'] == 18
    assert [point['step'] for point in report['points']] == [10, 20]
    assert {'loss', 'learning_rate', 'validation_loss', 'chunk_error'} == set(report['newest'])
    assert 'step 20/20' in trainer.console.file.getvalue()
    assert not list(tmp_path.rglob('*.pt')) and not list(tmp_path.rglob('*.pkl'))


def test_training_learns(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(CONFIG, state_noise=0.0, shift=0, batch_size=8, learning_rate=3e-3))
    losses = [trainer.train_step().item() for _ in range(120)]
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])


def test_validation_repeats_and_leaves_training_alone(tmp_path: Path) -> None:
    trainer, other = make_trainer(tmp_path), make_trainer(tmp_path)
    assert trainer.validate() == trainer.validate()
    state = torch.get_rng_state()
    assert torch.equal(trainer.train_step(), other.train_step())
    trainer.validate()
    assert torch.equal(trainer.train_step(), other.train_step())
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.module.training and not trainer.average.module.training


def test_the_first_step_has_the_first_rate_and_gradients_are_clipped(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, replace(CONFIG, clip=1e-3))
    before = [parameter.detach().clone() for parameter in trainer.module.parameters()]
    trainer.train_step()
    assert trainer.optimiser.param_groups[0]['lr'] == pytest.approx(CONFIG.learning_rate / CONFIG.warm_up)
    norm = torch.stack([p.grad.norm() for p in trainer.module.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    moved = max((now - old).abs().max().item() for now, old in zip(trainer.module.parameters(), before))
    assert 0 < moved < 2 * CONFIG.learning_rate / CONFIG.warm_up


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.module.fusion.join[2].bias[0] = float('inf')
    before = {name: tensor.clone() for name, tensor in trainer.average.module.state_dict().items()}
    with pytest.raises(TrainingError, match='step 0'):
        trainer.train_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.average.module.state_dict().items())


def test_stop_ends_after_the_step_and_saves(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.stop()
    trainer.run()
    assert trainer.step == 0
    resumed = make_trainer(tmp_path, seed=3)
    resumed.resume()
    assert equal_weights(resumed.module, trainer.module)


@pytest.mark.parametrize('change, message', [
    ({'batch_size': 4}, 'batch_size: 3 then, 4 now'), ({'seed': 1}, 'seed: 0 then, 1 now')])
def test_resume_refuses_other_settings(tmp_path: Path, change: dict, message: str) -> None:
    make_trainer(tmp_path).save()
    with pytest.raises(CheckpointError, match=message):
        make_trainer(tmp_path, replace(CONFIG, **change)).resume()


def test_more_steps_may_be_asked_for_on_resume(tmp_path: Path) -> None:
    make_trainer(tmp_path).save()
    make_trainer(tmp_path, replace(CONFIG, steps=300)).resume()


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    make_trainer(tmp_path).save()
    other = make_trainer(tmp_path)
    other.module.statistics['state'] = other.module.statistics['actions']
    with pytest.raises(CheckpointError, match='statistics'):
        other.resume()


@pytest.mark.parametrize('name', ['state.json', 'state.safetensors'])
def test_a_damaged_resume_folder_is_named(tmp_path: Path, name: str) -> None:
    make_trainer(tmp_path).save()
    path = tmp_path / 'resume' / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match='resume'):
        make_trainer(tmp_path).resume()
    path.unlink()
    with pytest.raises(CheckpointError, match=name):
        make_trainer(tmp_path).resume()


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine() -> None:
    rates = [cosine(step, 110, 10, 0.1) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(1)
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert cosine(500, 110, 10, 0.1) == pytest.approx(0.1)
    assert cosine(0, 10, 0, 0) == 1


def torch_rates(schedule: type, steps: int, **settings: object) -> list[float]:
    """Return the factors that a schedule of torch gives from step 0 to the last."""
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = schedule(optimiser, **settings), []
    for _ in range(steps + 1):
        rates.append(optimiser.param_groups[0]['lr'])
        optimiser.step()
        if len(rates) <= steps:
            scheduler.step()
    return rates


def test_schedules_are_those_of_torch() -> None:
    theirs = torch_rates(torch.optim.lr_scheduler.OneCycleLR, 100, max_lr=1.0, total_steps=101, pct_start=31 / 101,
                         div_factor=25, final_div_factor=4, cycle_momentum=False)
    assert [one_cycle(step, 100, 30, 0.01) for step in range(101)] == pytest.approx(theirs)
    theirs = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, 100, T_max=100, eta_min=0.1)
    assert [cosine(step, 100, 0, 0.1) for step in range(101)] == pytest.approx(theirs)
    theirs = torch_rates(torch.optim.lr_scheduler.LinearLR, 100, start_factor=0.1, total_iters=9)
    assert [constant(step, 100, 10, 0.3) for step in range(101)] == pytest.approx(theirs)


def test_the_average_follows_its_formula_and_copies_buffers() -> None:
    module = torch.nn.Linear(1, 1, bias=False).double()
    module.register_buffer('kept', torch.zeros(()))
    average, expected = Average(module, 0.5), module.weight.item()
    for number, value in enumerate([1.0, 2.0, -3.0, 4.0, 7.0, 1.0, 0.0, 2.0, 9.0, 1.0]):
        module.weight.data.fill_(value)
        module.kept.fill_(value)
        average.update(module)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.kept == 1
    assert not average.module.weight.requires_grad


def test_curves_that_fall_below_0_can_be_drawn(tmp_path: Path) -> None:
    plot_curves(tmp_path / 'curves.png', [Point(1, {'loss': 0.5, 'learning_rate': 1.0}), Point(2, {'loss': -0.5})])
    assert (tmp_path / 'curves.png').stat().st_size > 1000


def test_every_example_is_drawn_once_an_epoch_and_a_step_names_its_batch() -> None:
    sampler = Sampler(7, 2, seed=0)
    drawn = torch.cat([sampler.batch(step) for step in range(7)])
    assert sorted(drawn[:7].tolist()) == sorted(drawn[7:].tolist()) == list(range(7))
    assert drawn[:7].tolist() != drawn[7:].tolist()
    again = Sampler(7, 2, seed=0)
    assert torch.equal(again.batch(5), sampler.batch(5)) and torch.equal(again.batch(3), sampler.batch(3))
    assert len(Sampler(2, 9, seed=0).batch(0)) == 9
    with pytest.raises(DataError):
        Sampler(0, 2, seed=0)


def test_balance_draws_each_group_equally_often() -> None:
    groups = torch.tensor([0] * 90 + [1] * 10)
    sampler = Sampler(100, 100, seed=0, weights=balanced(groups))
    drawn = groups[torch.cat([sampler.batch(step) for step in range(50)])]
    assert drawn.double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_each_instruction_gives_its_share_for_validation() -> None:
    episodes = make_episodes(small_contract(size=(12, 12)), count=21)
    learn, held = hold_out(episodes, 0.3, 1)
    assert len(learn) + len(held) == 21
    assert not {e.source for e in learn} & {e.source for e in held}
    assert sorted(sum(e.instruction == text for e in held) for text in {e.instruction for e in episodes}) == [3, 3]
    assert {e.source for e in hold_out(episodes, 0.3, 1)[1]} == {e.source for e in held}
    assert hold_out(episodes, 0.0, 1)[1] == []
    assert hold_out(episodes[:1], 0.3, 1)[0] == episodes[:1]


@pytest.mark.parametrize('values, message', [
    ({'stepz': 3}, 'stepz: unknown key.*steps'), ({'steps': 0}, 'steps: 0; allowed: above 0'),
    ({'holdout': 1.0}, 'holdout: 1.0'), ({'shift': -1}, 'shift: -1'),
    ({'schedule': 'one_cicle'}, "schedule: 'one_cicle'.*one_cycle"), ({'spectral': 0.0}, 'spectral: 0.0'),
    ({'policy': {'generator': {'family': 'flow_maching'}}}, "policy.generator.family: 'flow_maching'.*flow_matching"),
    ({'policy': {'generator': {'family': 'regression', 'draws': 3}}}, 'policy.generator.draws: unknown key.*distance'),
    ({'policy': {'network': {'kindd': 'x'}}}, 'policy.network.kindd: unknown key.*kind')])
def test_wrong_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_values(TrainConfig, values)


def test_the_shipped_settings_can_be_read(root: Path) -> None:
    for path in (root / 'config' / 'train').glob('*.yaml'):
        assert from_values(TrainConfig, load_yaml(path), path.name).steps > 0
