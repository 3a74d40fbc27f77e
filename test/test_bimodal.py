"""The task with two right answers: what the expert does, and that the scores tell good from bad."""

from __future__ import annotations

import pytest
import torch

from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.bimodal import Bimodal
from flow_vla_core.types import Condition

TASK = Bimodal()


def seeded(seed: int = 0) -> torch.Generator:
    """Return a source of randomness."""
    return torch.Generator().manual_seed(seed)


def test_the_expert_passes_at_the_clearance_as_often_left_as_the_observation_says() -> None:
    condition = Condition(torch.tensor([[0.5, -1.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.3, 0.5]])).expand(4000)
    passed = TASK.distance(TASK.expert(condition, seeded()), condition)
    assert passed.abs().mean().item() == pytest.approx(TASK.clearance, abs=0.005)
    left = (passed > 0).float().reshape(3, 4000).mean(1)
    torch.testing.assert_close(left, torch.tensor([0.1, 0.5, 0.7]), atol=0.035, rtol=0)
    assert TASK.share_between(TASK.expert(condition, seeded()), condition) == 0


def test_a_path_ends_at_the_goal_and_passes_where_it_is_told() -> None:
    condition = TASK.observe(7, seeded())
    side = torch.linspace(-1, 1, 7)
    path = TASK.path(condition, side)
    torch.testing.assert_close(TASK.distance(path, condition), side)
    torch.testing.assert_close(path[:, :, 0], torch.linspace(-15 / 16, 15 / 16, 16).expand(7, 16))
    slack = (0.2 * condition.vector[:, 1] + side).abs() * 0.1 + 0.02
    assert ((path[:, -1, 1] - 0.5 * condition.vector[:, 0]).abs() <= slack).all()


def test_samples_are_repeatable_and_have_the_task_s_sizes() -> None:
    task = Bimodal(horizon=5)
    actions, condition = task.sample(11, seeded())
    assert actions.shape == (11, task.sizes.horizon, task.sizes.action_dim)
    assert condition.vector.shape == (11, task.sizes.condition_dim)
    assert torch.equal(actions, task.sample(11, seeded())[0])


def test_the_score_of_the_expert_beats_that_of_the_mean_and_that_of_one_way() -> None:
    expert = TASK.score(TASK.expert, 4, 128)
    mean = TASK.score(lambda c, g: TASK.path(c, TASK.clearance * (2 * TASK.left_probability(c) - 1)), 8, 128)
    right = TASK.score(lambda c, g: TASK.path(c, -TASK.clearance * torch.ones(len(c))), 4, 128)
    assert expert.w2 < 0.7 * mean.w2 and expert.w2 < 0.7 * right.w2
    assert expert.between == 0 and mean.between > 0.3 and right.between == 0
    assert expert.mode_error < 0.06 and right.mode_error > 0.3
    assert expert.error == pytest.approx(TASK.noise, rel=0.03) and right.error == pytest.approx(0, abs=1e-6)


def test_the_mean_chunk_is_what_regression_learns_and_it_hits_the_obstacle() -> None:
    condition = Condition(torch.zeros(1, 3)).expand(2000)
    mean = TASK.expert(condition, seeded()).mean(0, keepdim=True)
    assert TASK.share_between(mean, condition[:1]) == 1


def test_sizes_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match='clearance: 0'):
        Bimodal(clearance=0)
