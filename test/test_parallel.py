"""Several processes train as one does: the same weights, the same end, the same errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from bag_tools import record, steps
import parallel_worker
from parallel_worker import LOOP, POLICY, glow_trainer, policy_trainer
import psutil
import pytest
from safetensors.torch import load_file
import torch
from torch import Tensor
import yaml

from flow_vla_core.errors import ConfigError
from flow_vla_core.training.batches import Batches
from flow_vla_core.training.trainer import FlowTrainer
from flow_vla_core.training.world import World

SMALL = {'steps': 1000000, 'batch_size': 4, 'accumulate': 2, 'validate_every': 1000000, 'log_every': 1, 'policy': {
    'horizon': 3, 'condition_width': 8, 'image': {'widths': [8, 8, 8], 'points': 2, 'features': 8},
    'network': {'kind': 'mlp', 'width': 8, 'depth': 1}, 'generator': {'draws': 1}}}


def torchrun(words: Sequence[str]) -> subprocess.Popen:
    """Start two processes that train together."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in one process, then in two."""
    folder = tmp_path_factory.mktemp('parallel')
    first = policy_trainer(folder / 'one_then_two')
    for _ in range(3):
        first.train_step()
    first.save()
    with torchrun([parallel_worker.__file__, str(folder)]) as process:
        try:
            text = process.communicate(timeout=200)[0]
        finally:
            process.kill()
    assert process.returncode == 0, text
    return folder


def trained(trainer: FlowTrainer) -> FlowTrainer:
    """Train in this process alone."""
    trainer.run()
    return trainer


def found(folder: Path) -> list[dict]:
    """Return what the two processes left."""
    return [json.loads((folder / f'found_{rank}.json').read_text()) for rank in range(2)]


def state(folder: Path) -> dict[str, Tensor]:
    """Return the weights that a run left."""
    held = load_file(folder / 'resume' / 'state.safetensors')
    return {name.removeprefix('module/'): tensor for name, tensor in held.items() if name.startswith('module/')}


def test_two_processes_with_a_shard_each_do_what_one_does_bit_for_bit(folder: Path) -> None:
    alone = trained(policy_trainer(None))
    for name, tensor in alone.module.state_dict().items():
        assert torch.equal(state(folder / 'two')[name], tensor), name
    report = json.loads((folder / 'two' / 'report.json').read_text())
    assert report['processes'] == 2
    assert [[point['step'], point['values']] for point in report['points']] == [
        [point.step, point.values] for point in alone.points]


def test_with_more_shards_only_the_order_of_sums_differs(folder: Path) -> None:
    alone = trained(policy_trainer(None, config=replace(POLICY, accumulate=4)))
    there = state(folder / 'four')
    for name, tensor in alone.module.state_dict().items():
        exact = 2e-6 if tensor.ndim > 1 else 1e-4  # Adam makes steps out of the rounding of a bias without effect
        torch.testing.assert_close(there[name], tensor, rtol=0, atol=exact, msg=name)
    begun = policy_trainer(None).module.state_dict()
    assert max((tensor - begun[name]).abs().max() for name, tensor in there.items()) > 1e-3, 'it has moved'


def test_a_training_goes_on_in_more_processes_and_in_fewer(folder: Path) -> None:
    alone = trained(policy_trainer(None))
    for name, tensor in alone.module.state_dict().items():
        assert torch.equal(state(folder / 'one_then_two')[name], tensor), name
    longer = replace(POLICY, steps=8)
    fewer = policy_trainer(folder / 'two', config=longer, seed=5)
    fewer.resume()
    assert fewer.step == 6
    straight = trained(policy_trainer(None, config=longer))
    for name, tensor in trained(fewer).module.state_dict().items():
        assert torch.equal(straight.module.state_dict()[name], tensor), name


def test_weights_taken_from_the_first_examples_are_those_of_one_process(folder: Path) -> None:
    alone = trained(glow_trainer(None))
    there = state(folder / 'glow')
    assert any(name.endswith('ready') and bool(tensor) for name, tensor in there.items())
    for name, tensor in alone.module.state_dict().items():
        torch.testing.assert_close(there[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_a_gradient_that_one_process_lacks_counts_as_none_of_it(folder: Path) -> None:
    first, second = (each['weights'] for each in found(folder))
    assert first == second
    assert first['none'] == [1.0, 1.0] and first['one'][0] < 1.0 and first['all'][0] < 1.0


def test_all_processes_end_together(folder: Path) -> None:
    first, second = found(folder)
    assert first['stopped'] == second['stopped'] == 3
    assert first['patient'] == second['patient'] == 9, 'the first validation, at 3, and two that are no better'
    assert first['points'] == second['points']


def test_a_loss_that_is_not_finite_in_one_process_stops_all(folder: Path) -> None:
    for each in found(folder):
        assert each['nan'].startswith('step 0: loss nan')
    first, second = (each['refused'] for each in found(folder))
    assert first.startswith('step 0: the loss failed in another process')
    assert second.startswith('step 0: no such time')


def test_processes_that_see_other_data_are_told(folder: Path) -> None:
    first, second = found(folder)
    assert first['alike'] == second['alike'] == first['other'] == ''
    assert second['other'].startswith('process 1 differs from the first one in windows')


def test_fewer_shards_than_processes_are_refused() -> None:
    objective = glow_trainer(None).objective
    with pytest.raises(ConfigError, match='accumulate: 4; 5 processes.*--accumulate 5'):
        Batches(objective, LOOP, World(0, 5))
    batches = [Batches(objective, LOOP, World(rank, 3)) for rank in range(3)]
    shared = [[len(shard.examples) for shard in each.shards(0)] for each in batches]
    assert shared == [[3, 3], [3], [3]]


def test_a_signal_to_one_process_of_the_command_ends_all_with_everything_saved(tmp_path: Path) -> None:
    for index in range(2):
        record(tmp_path / 'bags' / str(index), steps(6))
    (tmp_path / 'small.yaml').write_text(yaml.safe_dump(SMALL))
    out = tmp_path / 'run'
    with torchrun(['-m', 'flow_vla_ros.cli', 'train', '--contract', 'metaworld', '--bags', str(tmp_path / 'bags'),
                   '--out', str(out), '--config', str(tmp_path / 'small.yaml'), '--workers', '1']) as process:
        try:
            assert any(line.startswith('step 5/') for line in process.stdout), 'it trains'
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            workers[1].send_signal(signal.SIGTERM)
            text = process.stdout.read()
            assert process.wait(100) == 0, text
        finally:
            process.kill()
    report = json.loads((out / 'report.json').read_text())
    assert 5 <= report['steps'] < 1000000
    assert json.loads((out / 'resume' / 'state.json').read_text())['step'] == report['steps']
    assert text.count('checkpoint') == 1, 'one process speaks'
