"""What surrounds the steps: shards, early fetching, the end by validation, what a device can do, the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import csv
from dataclasses import replace
import json
from pathlib import Path
import threading

from core_samples import make_episodes, make_policy, small_contract
import numpy as np
import pytest
import torch
from torch import Tensor, nn
import yaml

from flow_vla_core.config import from_values
from flow_vla_core.data.windows import Windows
from flow_vla_core.errors import ConfigError
from flow_vla_core.policy import PolicyConfig
from flow_vla_core.training import precision
from flow_vla_core.training.batches import Batches
from flow_vla_core.training.checkpoint import load_checkpoint, load_weights
from flow_vla_core.training.config import LoopConfig, TrainConfig
from flow_vla_core.training.early_stop import best_of, validations_since_best
from flow_vla_core.training.live_objective import LivePolicyObjective
from flow_vla_core.training.objective import Objective
from flow_vla_core.training.policy_objective import PolicyObjective
from flow_vla_core.training.report import Point
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.training.world import World

CONTRACT = small_contract(size=(12, 12))
EPISODES = make_episodes(CONTRACT)
CONFIG = TrainConfig(policy=PolicyConfig.dummy(), steps=8, batch_size=6, accumulate=3, warm_up=2, shift=1,
                     state_noise=0.1, validate_every=4, log_every=2, validation_batches=1)


def policy_trainer(out: Path | None, config: TrainConfig = CONFIG, seed: int = 0) -> FlowTrainer:
    """Return the training of a tiny policy."""
    objective = PolicyObjective(make_policy(CONTRACT, config.policy, seed), Windows(EPISODES[:2], 4),
                                Windows(EPISODES[2:], 4), config)
    return FlowTrainer(objective, config, out)


class Line(Objective):
    """Fits a line to points; validation says what it is told to say."""

    def __init__(self, figures: Mapping[int, float] | None = None) -> None:
        super().__init__(nn.Linear(1, 1, bias=False).double())
        nn.init.constant_(self.module.weight, 5.0)
        self.x = torch.linspace(-1, 1, 12).double()[:, None]
        self.figures, self.trainer = figures, None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def metrics(self) -> tuple[str, ...]:
        """One, if there are figures."""
        return () if self.figures is None else ('chunk_error',)

    def loss(self, module: nn.Module, examples: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared distance from twice x."""
        return (module(self.x[examples]) - 2 * self.x[examples]).square().mean()

    def validate(self, module: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Return the figure of the step."""
        return {} if self.figures is None else {'chunk_error': self.figures[self.trainer.step]}

    def identity(self) -> dict:
        """Return nothing."""
        return {}


def line_trainer(out: Path | None, figures: Mapping[int, float] | None, **settings: object) -> FlowTrainer:
    """Return the training of a line whose weight tells the step it is from."""
    config = LoopConfig(**{'steps': 20, 'batch_size': 12, 'validate_every': 2, 'warm_up': 1, 'average': 0.0,
                           'weight_decay': 0.0, **settings})
    objective = Line(figures)
    objective.trainer = FlowTrainer(objective, config, out)
    return objective.trainer


def test_shards_add_up_to_the_gradient_of_the_batch() -> None:
    gradients = []
    for parts in (1, 2, 6):
        trainer = line_trainer(None, None, accumulate=parts, clip=1e9)
        trainer.train_step()
        gradients.append(trainer.module.weight.grad.item())
    x = trainer.objective.x
    expected = (2 * (5.0 - 2.0) * x.square()).mean().item()  # of mean((w x - 2 x)^2) at w = 5, over all twelve points
    assert gradients == pytest.approx([expected] * 3, rel=1e-12)


def test_accumulated_steps_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    straight = policy_trainer(None)
    straight.run()
    first = policy_trainer(tmp_path)
    for _ in range(5):
        first.train_step()
    first.save()
    second = policy_trainer(tmp_path, seed=4)
    second.resume()
    second.run()
    for name, tensor in straight.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], tensor), name


def test_what_is_fetched_early_changes_nothing_and_is_fetched_by_another_thread() -> None:
    states, threads = [], set()
    for early in (0, 1, 3):
        trainer = policy_trainer(None, replace(CONFIG, prefetch=early))
        feeder = trainer.objective._train
        gather = feeder.windows.gather

        def spied(indices: Tensor, gather: Callable = gather, early: int = early) -> object:
            threads.add((early > 0, threading.current_thread() is threading.main_thread()))
            return gather(indices)

        feeder.windows.gather = spied
        trainer.run()
        states.append(trainer.module.state_dict())
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items())
    assert {(True, False), (False, True)} <= threads


def test_a_shard_depends_on_its_place_alone() -> None:
    config = replace(CONFIG, prefetch=2)
    objective = policy_trainer(None, config).objective
    straight = Batches(objective, config, World())
    rows = {(step, number): shard.examples[1] for step in range(4)
            for number, shard in enumerate(straight.shards(step))}
    jumping = Batches(objective, config, World())
    for step in (3, 0, 2, 2, 1):
        for number, shard in enumerate(jumping.shards(step)):
            assert torch.equal(shard.examples[1], rows[step, number])
    one = Batches(objective, config, World(1, 2))
    assert torch.equal(next(one.shards(2)).examples[1], rows[2, 1])


def test_an_error_of_the_fetching_thread_is_raised_in_the_step() -> None:
    trainer = policy_trainer(None)
    trainer.objective._train.windows.gather = lambda _: (_ for _ in ()).throw(OSError('the disk is gone'))
    with pytest.raises(OSError, match='the disk is gone'):
        trainer.train_step()


def test_a_batch_is_cut_into_equal_parts_only() -> None:
    with pytest.raises(ConfigError, match='accumulate: 5; batch_size 64 is no multiple'):
        LoopConfig(accumulate=5)


FIGURES = {2: 0.5, 4: 0.3, 6: float('nan'), 8: 0.4, 10: 0.3, 12: 0.1, 14: 0.2, 16: 0.2, 18: 0.2, 20: 0.2}


def weight_after(steps: int) -> float:
    """Return the line's weight after some steps."""
    trainer = line_trainer(None, FIGURES)
    for _ in range(steps):
        trainer.train_step()
    return trainer.module.weight.item()


@pytest.mark.parametrize('patience, last, best', [(2, 8, 4), (3, 10, 4), (4, 20, 12)])
def test_patience_ends_the_training_and_keeps_the_best_weights(tmp_path: Path, patience: int, last: int,
                                                               best: int) -> None:
    trainer = line_trainer(tmp_path, FIGURES, patience=patience)
    trainer.run()
    assert trainer.step == last
    kept = nn.Linear(1, 1, bias=False).double()
    load_weights(tmp_path / 'checkpoint', kept)
    assert kept.weight.item() == weight_after(best) != weight_after(last)
    assert json.loads((tmp_path / 'report.json').read_text())['best']['step'] == best
    resumed = line_trainer(tmp_path, FIGURES, patience=patience)
    resumed.resume()
    assert resumed.module.weight.item() == weight_after(last), 'the last weights are those that are gone on from'
    resumed.run()
    assert resumed.step == last


def test_without_patience_the_last_weights_are_kept(tmp_path: Path) -> None:
    line_trainer(tmp_path, FIGURES).run()
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['steps'] == 20 and report['best'] is None


def test_the_best_is_the_first_lowest_number() -> None:
    points = [Point(step, {'chunk_error': value}) for step, value in FIGURES.items()]
    assert best_of(points[:5], 'chunk_error').step == 4 and validations_since_best(points[:5], 'chunk_error') == 3
    nan = [Point(1, {'chunk_error': float('nan')}), Point(2, {'loss': 1.0})]
    assert best_of(nan, 'chunk_error') is None and validations_since_best(nan, 'chunk_error') == 1


@pytest.mark.parametrize('figures, metric', [(None, 'chunk_error'), (FIGURES, 'chunk_eror')])
def test_patience_needs_its_metric(figures: dict | None, metric: str) -> None:
    with pytest.raises(ConfigError, match=f"patience: 2, but no validation gives the metric '{metric}'"):
        line_trainer(None, figures, patience=2, metric=metric)


@pytest.mark.parametrize('device, able, name', [
    ('cuda', False, 'Tesla T4'), ('cuda', True, ''), ('cpu', False, 'this cpu'), ('cpu', True, ''),
    ('mps', True, 'this mps')])
def test_a_device_without_bfloat16_is_refused_by_name(device: str, able: bool, name: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, '_capability', lambda _: (8, 0) if able else (7, 5))
    monkeypatch.setattr(precision, '_cpu_is_able', lambda _: able)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda _: 'Tesla T4')
    if not name:
        precision.check_half(torch.device(device))
        return
    with pytest.raises(ConfigError, match=f'half: {name} does not compute in bfloat16.*--no-half'):
        precision.check_half(torch.device(device))


def test_a_missing_compiler_is_named_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with pytest.raises(ConfigError, match=r'compile: no C\+\+ compiler \(no-such-compiler\).*--no-compile'):
        line_trainer(None, None, compile=True)


def test_a_cpu_without_bfloat16_is_refused_for_recurrent_networks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, '_cpu_is_able', lambda _: False)
    line_trainer(None, None, half=True).train_step()
    with pytest.raises(ConfigError, match='half: this cpu'):
        policy_trainer(None, replace(CONFIG, half=True))


def test_half_precision_rounds_what_networks_compute_and_keeps_weights_in_full() -> None:
    kinds, gradients = set(), []
    for half in (False, True):
        objective = Line()
        objective.module, objective.x = objective.module.float(), objective.x.float()
        objective.module.register_forward_hook(lambda *found: kinds.add(found[2].dtype))
        trainer = FlowTrainer(objective, LoopConfig(batch_size=12, accumulate=2, half=half, clip=1e9))
        trainer.train_step()
        assert trainer.module.weight.dtype == torch.float32
        gradients.append(trainer.module.weight.grad.item())
    assert kinds == {torch.float32, torch.bfloat16}
    assert gradients[0] != gradients[1] == pytest.approx(gradients[0], rel=0.02)


def test_the_folder_says_what_was_done(tmp_path: Path) -> None:
    trainer = policy_trainer(tmp_path)
    trainer.run()
    assert from_values(TrainConfig, yaml.safe_load((tmp_path / 'config.yaml').read_text())) == CONFIG
    with (tmp_path / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row['step']) for row in rows] == [2, 4, 6, 8]
    assert [float(row['loss']) for row in rows] == [point.values['loss'] for point in trainer.points]
    assert [row['chunk_error'] != '' for row in rows] == [False, True, False, True]
    trainer.config = replace(CONFIG, steps=9)
    trainer.run()
    starts = json.loads((tmp_path / 'environment.json').read_text())
    assert len(starts) == 2 and starts[0]['torch'] == torch.__version__ and starts[0]['cores'] >= 1
    assert {'command', 'git_commit', 'git_modified', 'device', 'processes', 'started'} <= set(starts[0])
    listed = {line.split()[0].rstrip('/') for line in (tmp_path / 'README.txt').read_text().splitlines()[2:]}
    assert listed | {'README.txt'} == {path.name for path in tmp_path.iterdir()}
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [entry['windows'] for entry in report['mixture']['instructions']] == [9, 9]


def test_the_picture_shows_each_action_of_each_moment(tmp_path: Path) -> None:
    from PIL import Image
    trainer = policy_trainer(None)
    trainer.objective.picture(tmp_path / 'samples.png', trainer.average.module)
    pixels = np.asarray(Image.open(tmp_path / 'samples.png').convert('RGB')).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60).any(0)
    columns = np.flatnonzero(np.diff(blue.astype(int)) == 1)
    assert len(columns) >= CONTRACT.action_dim, 'made chunks in every column'


def test_windows_may_be_exchanged_between_two_steps(tmp_path: Path) -> None:
    config = replace(CONFIG, schedule='constant', prefetch=2)
    objective = LivePolicyObjective(make_policy(CONTRACT, config.policy), Windows(EPISODES[:1], 4), None, config)
    trainer = FlowTrainer(objective, config, tmp_path)
    trainer.train_step()
    seen: list[Tensor] = []
    load = objective.load
    objective.load = lambda indices, generator: (seen.append(indices), load(indices, generator))[1]
    objective.exchange(Windows(EPISODES, 4))
    for _ in range(4):
        trainer.train_step()
    assert len(objective) == 36 and torch.cat(seen).max() >= 9
    objective.exchange(Windows(EPISODES[1:2], 4))
    seen.clear()
    trainer.train_step()
    assert torch.cat(seen).max() < 9
    trainer.save()
    again = FlowTrainer(LivePolicyObjective(make_policy(CONTRACT, config.policy, 3), Windows(EPISODES[:3], 4), None,
                                            config), config, tmp_path)
    again.resume()
    assert again.step == trainer.step == 6
    assert load_checkpoint(tmp_path / 'checkpoint').config == config.policy
