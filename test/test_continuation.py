"""What a new chunk continues: the rest of a plan by its stamps, the delay to expect, and when a chunk is due."""

from __future__ import annotations

from dataclasses import replace
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.execution import ChunkFollower
from flow_vla_core.execution.continuation import DelayWindow, Succession, committed, continuation, leftover
from flow_vla_core.execution.interpolation import Interpolator
from flow_vla_core.types import ActionChunk, Continuation

CONTRACT = RobotContract.load(find_contract('metaworld'))
DT = CONTRACT.rates.policy_dt_ns
START = 1_000 * DT
HORIZON = 12
MEASURED = {'ee_position': np.array([0.0, 0.6, 0.2])}


def contract_with(kind: str, names: tuple[str, ...] = ('x', 'y', 'z')) -> RobotContract:
    """Return Meta-World's contract with another kind of motion and no bounds that matter."""
    values = CONTRACT.model_dump(mode='json', exclude_none=True)
    part = values['actions'][0]
    far = [100.0] * len(names)
    limits = {'velocity': far} if kind == 'ee_twist' else {'min': [-value for value in far], 'max': far}
    part.update(kind=kind, names=list(names), unit='m', limits=limits, message='geometry_msgs/PoseStamped')
    return RobotContract.parse(values)


def make_plan(contract: RobotContract = CONTRACT, horizon: int = HORIZON, words: str = '') -> ActionChunk:
    """Make a plan of small random actions."""
    actions = np.random.default_rng(1).uniform(-0.01, 0.01, (horizon, contract.action_dim))
    return ActionChunk(START, DT, actions.astype(np.float32), id=1, instruction=words)


@given(delays=st.lists(st.integers(0, 20 * DT), min_size=1, max_size=30), size=st.integers(1, 12))
def test_the_expected_delay_is_the_longest_of_the_last(delays: list[int], size: int) -> None:
    window = DelayWindow(DT, size, initial=3)
    assert window.steps == 3
    for delay in delays:
        assert window.add(delay) == math.ceil(delay / DT)
    assert window.steps == max(math.ceil(delay / DT) for delay in delays[-size:])


def test_one_slow_chunk_is_forgotten() -> None:
    window = DelayWindow(DT, 10)
    expected = [window.add(delay) and window.steps for delay in [40 * DT, *[2 * DT] * 10]]
    assert expected == [40] * 10 + [2]


@pytest.mark.parametrize(('values', 'said'), [((0, 10, 1), 'dt is 0'), ((DT, 0, 1), 'size is 0'),
                                              ((DT, 10, -1), 'initial is -1')])
def test_a_window_without_room_is_refused(values: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DelayWindow(*values)


@pytest.mark.parametrize('steps', [0, 5, 11])
@pytest.mark.parametrize('jitter', [-20_000, 0, 20_000])
def test_on_the_grid_the_rest_is_the_end_of_the_plan(steps: int, jitter: int) -> None:
    plan = make_plan()
    if steps or jitter >= 0:
        np.testing.assert_array_equal(leftover(plan, START + steps * DT + jitter, CONTRACT), plan.actions[steps:])


@pytest.mark.parametrize('stamp', [START - DT, START + HORIZON * DT, START + 40 * DT])
def test_outside_of_the_plan_nothing_is_left(stamp: int) -> None:
    assert leftover(make_plan(), stamp, CONTRACT).shape == (0, 4)
    assert continuation(make_plan(), stamp, 2, 5, CONTRACT) is None


def test_between_two_actions_velocities_are_interpolated_and_grippers_are_not() -> None:
    ramp = np.arange(HORIZON, dtype=np.float32)[:, None] * np.array([0.1, 0.2, 0.3, 1], np.float32)
    rest = leftover(ActionChunk(START, DT, ramp), START + 3 * DT + DT // 4, CONTRACT)
    steps = np.minimum(3.25 + np.arange(9), 11)
    np.testing.assert_allclose(rest[:, :3], steps[:, None] * [0.1, 0.2, 0.3], rtol=1e-5)
    np.testing.assert_array_equal(rest[:, 3], np.arange(3, 12))


@settings(max_examples=25, deadline=None)
@given(offset=st.integers(0, 40 * HORIZON - 1).map(lambda part: part * DT // 40),
       kind=st.sampled_from(['ee_twist', 'ee_pose', 'ee_delta']))
def test_the_rest_is_what_the_executor_would_command(offset: int, kind: str) -> None:
    contract = contract_with(kind)
    plan = make_plan(contract)
    rest = leftover(plan, START + offset, contract)
    follower = ChunkFollower(contract)
    follower.accept(plan, START + offset)
    for index, row in enumerate(rest):
        command = follower.command(START + offset + index * DT, MEASURED)
        np.testing.assert_allclose(command.values, row, atol=1e-6)


def test_a_rotation_turns_on_the_shortest_way_past_pi() -> None:
    contract = contract_with('ee_pose', ('rx', 'ry', 'rz'))
    actions = np.zeros((2, 4), np.float32)
    actions[:, 2] = np.pi - 0.1, -np.pi + 0.1  # 0.2 rad apart
    middle = leftover(ActionChunk(START, DT, actions), START + DT // 2, contract)[0]
    np.testing.assert_allclose(np.abs(middle[:3]), [0, 0, np.pi], atol=1e-5)


def test_displacements_lead_from_wherever_the_robot_is_to_where_the_plan_led() -> None:
    contract = contract_with('ee_delta')
    plan = make_plan(contract)
    place = np.cumsum(plan.actions[:, :3], 0)
    for steps in (1, 5, 8):
        rest = leftover(plan, START + steps * DT, contract)
        anchored = place[steps - 1] + np.cumsum(rest[:, :3], 0)
        np.testing.assert_allclose(anchored, place[steps:], atol=1e-6)


@given(horizon=st.integers(2, 50), passed=st.floats(0, 60), delay=st.integers(0, 60), execute=st.integers(1, 60))
def test_a_continuation_keeps_the_constraints_and_is_never_padded(horizon: int, passed: float, delay: int,
                                                                 execute: int) -> None:
    assume(abs(abs(passed - round(passed)) - 1e-3) > 1e-6)  # just as near as counts as the same time
    plan = make_plan(horizon=horizon)
    rest = continuation(plan, START + round(passed * DT), delay, execute, CONTRACT)
    if rest is None:
        assert passed > horizon - 0.01
        return
    count = len(rest.actions)
    assert 1 <= count <= horizon
    assert 0 <= rest.delay <= min(delay, count)
    assert rest.delay <= rest.execute <= horizon - rest.delay
    assert count == horizon - int(passed + 1e-3)
    np.testing.assert_allclose(rest.actions[-1, 3], plan.actions[-1, 3])


def test_a_delay_that_the_plan_can_bridge_is_kept() -> None:
    rest = continuation(make_plan(), START + 5 * DT, 4, 5, CONTRACT)
    assert (len(rest.actions), rest.delay, rest.execute) == (7, 4, 5)
    late = continuation(make_plan(), START + 8 * DT, 6, 5, CONTRACT)
    assert (len(late.actions), late.delay, late.execute) == (4, 4, 8)


def test_for_other_words_only_what_is_executed_anyway_is_kept() -> None:
    rest = Continuation(np.ones((7, 4), np.float32), 2, 5)
    assert committed(rest).actions.shape == (2, 4)
    assert committed(replace(rest, delay=0)) is None


def test_chunks_are_due_by_their_stamps_and_never_twice_from_one_observation() -> None:
    chunks = Succession(CONTRACT, replan_steps=5)
    assert chunks.is_due(START, 'go')
    chunks.begin(START, 'go')
    assert not chunks.is_due(START, 'go') and chunks.is_due(START, 'stop')
    chunks.publish(make_plan(words='go'), START + 2 * DT)
    assert [steps for steps in range(1, 9) if chunks.is_due(START + steps * DT, 'go')] == [5, 6, 7, 8]
    assert chunks.is_due(START + DT, 'stop')
    chunks.forget()
    assert chunks.is_due(START + DT, 'go')


def test_a_succession_continues_the_chunk_that_was_published_last() -> None:
    chunks = Succession(CONTRACT, replan_steps=5, realtime='guided', window=3)
    assert chunks.continuation(START, 'go') is None
    plan = make_plan(words='go')
    assert chunks.publish(plan, START + 2 * DT + 1) == 3
    rest = chunks.continuation(START + 5 * DT, 'go')
    np.testing.assert_array_equal(rest.actions, plan.actions[5:])
    assert (rest.delay, rest.execute, chunks.delay) == (3, 5, 3)
    assert len(chunks.continuation(START + 5 * DT, 'stop').actions) == 3
    chunks.forget()
    assert chunks.continuation(START + 5 * DT, 'go') is None and chunks.delay == 3


def test_two_plans_with_what_a_succession_keeps_are_one_curve_where_the_executor_goes_over() -> None:
    # Cubics are smooth only as far as both plans have the same actions: value and slope at d ask for those up to d + 1.
    contract = RobotContract.load(find_contract('so101'))
    random, delay = np.random.default_rng(0), 3
    plan = ActionChunk(START, DT, random.uniform(-1, 1, (16, 6)).astype(np.float32), instruction='go')
    chunks = Succession(contract, replan_steps=5, realtime='prefix')
    chunks.publish(plan, START + delay * DT)
    rest = chunks.continuation(START + 5 * DT, 'go')
    other = random.uniform(-1, 1, (16, 6)).astype(np.float32)
    other[:rest.delay] = rest.actions[:rest.delay]
    before, after = (Interpolator(contract, 'cubic')(actions) for actions in (plan.actions, other))
    for steps in (delay - 0.5, delay - 1e-9, delay):
        old, new = before.at(5 + steps), after.at(steps)
        np.testing.assert_allclose(new.values, old.values, atol=1e-6)
        np.testing.assert_allclose(new.rates, old.rates, atol=1e-4)
    assert np.abs(before.at(5 + delay + 1.5).values - after.at(delay + 1.5).values).max() > 0.01


def test_without_real_time_nothing_is_continued_and_an_unknown_mode_is_named() -> None:
    chunks = Succession(CONTRACT, replan_steps=5)
    chunks.publish(make_plan(words='go'), START)
    assert chunks.continuation(START + 5 * DT, 'go') is None
    with pytest.raises(ConfigError, match="'guide'.*'guided'"):
        Succession(CONTRACT, 5, 'guide')
