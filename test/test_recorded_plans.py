"""Plans of a policy over recorded moments: made from what was seen then, and laid over what was done."""

from __future__ import annotations

from pathlib import Path

from bag_tools import DT, MARKS, SMALL, START, moving, record
from core_samples import INSTRUCTIONS, make_policy
import numpy as np
import pytest

from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.reading import read_episode
from flow_vla_core.engine import Engine
from flow_vla_core.errors import CheckpointError
from flow_vla_core.evaluation.recorded_plans import plan_bag
from flow_vla_core.training.checkpoint import load_checkpoint, save_checkpoint
from flow_vla_core.types import Observation
from flow_vla_ros import cli

COUNT = 11
CONTRACT = SMALL.model_copy(update={
    'cameras': tuple(camera.model_copy(update={'size': (20, 20)}) for camera in SMALL.cameras), 'history': 2})


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """Write a bag and a checkpoint of an untrained policy."""
    save_checkpoint(tmp_path / 'policy', make_policy(CONTRACT))
    return record(tmp_path / 'bag', moving(COUNT), {**MARKS, 'instruction': INSTRUCTIONS[0], 'contract': ''}), \
        tmp_path / 'policy'


def test_each_plan_is_what_the_engine_answers_at_that_moment(recorded: tuple[Path, Path]) -> None:
    bag, policy = recorded
    plans = plan_bag(policy, open_bag(bag), CONTRACT, execute=3, seed=5)
    episode = read_episode(bag, CONTRACT)
    np.testing.assert_array_equal(plans.stamps, START + np.arange(1, COUNT) * DT)  # the first has no history
    np.testing.assert_array_equal(plans.done, episode.actions[1:])
    engine = Engine(load_checkpoint(policy, CONTRACT), seed=5)
    for start in range(1, COUNT, 3):
        seen = slice(start - 1, start + 1)
        chunk = engine.act(Observation(int(episode.stamps[start]), {name: images[seen] for name, images in
                                                                    episode.images.items()},
                                       episode.state[seen], INSTRUCTIONS[0])).actions
        np.testing.assert_allclose(plans.planned[start - 1:start + 2], chunk[:3][:COUNT - start], rtol=1e-6)


def test_a_policy_of_another_robot_is_refused(recorded: tuple[Path, Path]) -> None:
    bag, policy = recorded
    with pytest.raises(CheckpointError):
        plan_bag(policy, open_bag(bag), SMALL)


def test_plans_reach_rerun(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    chunk = pytest.importorskip('rerun.chunk', reason='rerun-sdk is not installed, or too old to read files')
    bag, policy = recorded
    CONTRACT.dump(tmp_path / 'robot.yaml')
    with pytest.raises(SystemExit) as end:
        cli.main(['data', 'view', str(bag), '--save', str(tmp_path / 'x.rrd'), '--policy', str(policy),
                  '--contract', str(tmp_path / 'robot.yaml')])
    assert not end.value.code
    reader = chunk.RrdReader(str(tmp_path / 'x.rrd'))
    parts = {part.entity_path: part.to_record_batch() for part in reader.stream(store=reader.recordings()[0])
             if part.entity_path.startswith('/policy')}
    assert set(parts) == {'/policy/error', *(f'/policy/{part.name}/{name}' for part in CONTRACT.actions
                                             for name in part.names)}
    error = np.concatenate(parts['/policy/error'].column('Scalars:scalars').to_pylist())
    plans = plan_bag(policy, open_bag(bag), CONTRACT)
    np.testing.assert_allclose(error, np.abs(plans.planned - plans.done).mean(1), rtol=1e-6)
