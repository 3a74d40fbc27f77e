"""No stream of chunks gets a published command past a bound; and the audit would notice."""

from __future__ import annotations

from itertools import cycle
import os

import numpy as np
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import Code
from flow_vla_core.evaluation.adversary import BoundsTrial
from flow_vla_core.evaluation.audit import Audit
from flow_vla_core.execution import ChunkFollower, Command, ExecutionState
from flow_vla_core.types import ActionChunk

COMMANDS = 1_000
MODES = [{}, {'schedule': 'ensembling', 'interpolation': 'cubic', 'careful_below': 0.5},
         {'schedule': 'synchronous', 'interpolation': 'hold', 'trust': 200_000_000}]
BOX = {'workspace_min': [-0.3] * 3, 'workspace_max': [0.4] * 3}
TURN = ['x', 'y', 'z', 'rx', 'ry', 'rz']
PARTS = {
    'arm with jerk': ('joint_position', list('abcdefg'), {
        'min': [-2.7, -1.7, -2.9, -3.0, -2.8, 0.5, -3.0], 'max': [2.7, 1.7, 2.9, -0.2, 2.8, 4.5, 3.0],
        'velocity': [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26], 'acceleration': [10.0] * 7, 'jerk': [5000.0] * 7}),
    'arm': ('joint_position', list('ab'), {
        'min': [-1.0, -2.0], 'max': [1.0, 2.0], 'velocity': [1.0, 2.0], 'acceleration': [4.0, 20.0]}),
    'slow arm with jerk': ('joint_position', ['a'], {
        'min': [-0.05], 'max': [0.05], 'velocity': [1.0], 'acceleration': [3.0], 'jerk': [10.0]}),
    'twist with jerk': ('ee_twist', TURN, {
        'velocity': [0.3] * 3 + [1.0] * 3, 'acceleration': [2.0] * 6, 'jerk': [40.0] * 6, **BOX}),
    'pose': ('ee_pose', TURN, {
        'min': [-1.0] * 3 + [-4.0] * 3, 'max': [1.0] * 3 + [4.0] * 3, 'velocity': [0.5] * 3 + [1.5] * 3,
        'acceleration': [3.0] * 3 + [9.0] * 3, **BOX}),
    'pose with jerk': ('ee_pose', TURN, {
        'min': [-1.0] * 3 + [-4.0] * 3, 'max': [1.0] * 3 + [4.0] * 3, 'velocity': [0.5] * 3 + [1.5] * 3,
        'acceleration': [3.0] * 3 + [9.0] * 3, 'jerk': [90.0] * 3 + [300.0] * 3, **BOX}),
    'displacement': ('ee_delta', ['x', 'y'], {
        'min': [-0.02] * 2, 'max': [0.02] * 2, 'velocity': [0.3] * 2, 'acceleration': [2.0] * 2, **BOX}),
    'joint velocity with jerk': ('joint_velocity', ['a', 'b'], {
        'velocity': [1.0, 2.0], 'acceleration': [5.0, 9.0], 'jerk': [100.0, 300.0]}),
}


def make_contract(name: str) -> RobotContract:
    values = RobotContract.load(find_contract('metaworld')).model_dump(mode='json', exclude_none=True)
    kind, names, limits = PARTS[name]
    values['rates']['control_hz'] = 100.0
    part = {'name': 'part', 'kind': kind, 'names': names, 'unit': 'm', 'limits': limits, 'topic': 'part',
            'message': 'geometry_msgs/PoseStamped' if kind == 'ee_pose' else 'std_msgs/Float64MultiArray'}
    if kind.startswith('ee_'):
        part['position_from'] = 'ee_position'
    values['actions'] = [part, values['actions'][1]]
    return RobotContract.parse(values)


@pytest.mark.parametrize(('name', 'mode'), zip(['metaworld', 'so101', *PARTS], cycle(MODES)))
def test_no_stream_of_chunks_gets_a_command_past_a_bound(name: str, mode: dict) -> None:
    contract = make_contract(name) if name in PARTS else RobotContract.load(find_contract(name))
    # FLOW_VLA_COMMANDS=100000 makes it thorough; benchmarks/bounds.py counts to a million.
    commands = int(os.environ.get('FLOW_VLA_COMMANDS', COMMANDS))
    found = BoundsTrial(contract, seed=0, **mode).run(commands)
    assert (found.commands, found.violations) == (commands, {})
    assert found.followed > 0.2 * commands
    assert found.accepted > 0.01 * commands
    assert found.refused > 0


def violations(values: np.ndarray, name: str = 'arm with jerk', period: float = 0.01) -> set[str]:
    contract = make_contract(name)
    audit = Audit(contract, period)
    for row in values:
        command = np.zeros(contract.action_dim, np.float32)
        command[:len(row)] = row
        audit.check(Command(command, ('part',), ExecutionState.FOLLOWING, velocities=command), period)
    return set(audit.violations)


@pytest.mark.parametrize(('power', 'scale', 'ticks', 'names'), [
    (1, 2.7, 2, {'velocity'}), (1, 2.6, 2, set()), (2, 5.1, 3, {'acceleration'}), (2, 4.9, 3, set()),
    (3, 840.0, 4, {'jerk', 'acceleration'}), (3, 830.0, 4, {'acceleration'})])
def test_the_audit_sees_each_bound(power: int, scale: float, ticks: int, names: set) -> None:
    rows = np.outer(scale * (0.01 * np.arange(ticks)) ** power, np.eye(7)[0]) + [0, 0, 0, -1, 0, 1, 0]
    assert violations(rows) == {f'part: {name}' for name in names}


def test_the_audit_allows_for_the_rounding_of_all_values_that_it_differentiates() -> None:
    # Exactly at the bound, 10 / s^3: -10.0005 after rounding to float32, for the sake of the first.
    values = [-0.004045332928743855, -0.0025657281539852948, -0.001049632824012504, 0.0004929530611745142]
    assert violations(np.array(values)[:, None], 'slow arm with jerk') == set()
    assert violations(np.multiply(values, 1.001)[:, None], 'slow arm with jerk') == {'part: jerk'}


def test_the_audit_sees_position_and_workspace() -> None:
    assert violations(np.array([[2.8, 0, 0, -1, 0, 1, 0]])) == {'part: position'}
    assert violations(np.array([[0.39] * 3 + [0] * 3, [0.41] * 3 + [0] * 3]), 'pose') >= {'part: workspace'}
    assert violations(np.array([[0, 0, 0, 0.0, 0, 0], [0, 0, 0, 0.02, 0, 0]]), 'pose') == {'part: velocity'}
    assert violations(np.array([[1.01, 0], [1.02, 0]]), 'joint velocity with jerk') == {'part: velocity'}


def test_when_chunks_stop_coming_it_slows_down_within_a_horizon_and_two_periods() -> None:
    contract, now, horizon = make_contract('arm with jerk'), 10 ** 12, 8
    follower, dt, period = ChunkFollower(contract), contract.rates.policy_dt_ns, 10 ** 7
    actions = np.zeros((horizon, 8), np.float32)
    actions[:, 3], actions[:, 5] = -1, 1
    actions[:, 0] = 1.0 * contract.rates.policy_dt * np.arange(horizon)
    follower.accept(ActionChunk(now, dt, actions), now)
    states = {}
    for tick in range(200):
        command = follower.command(now + tick * period)
        states.setdefault(command.state, tick * period)
    assert states[ExecutionState.SLOWING] <= horizon * dt + 2 * period
    assert states[ExecutionState.HOLDING] <= states[ExecutionState.SLOWING] + 400_000_000
    assert command.code == Code.NO_CHUNK


def test_an_emergency_stop_slows_down_with_the_next_command() -> None:
    contract, now = make_contract('arm with jerk'), 10 ** 12
    follower, period = ChunkFollower(contract), 10 ** 7
    actions = np.tile(np.array([0, 0, 0, -1, 0, 1, 0, 0], np.float32), (20, 1))
    actions[:, 0] = 2.0 * contract.rates.policy_dt * np.arange(20)
    follower.accept(ActionChunk(now, contract.rates.policy_dt_ns, actions), now)
    speeds = [float(follower.command(now + tick * period).velocities[0]) for tick in range(50)]
    assert speeds[-1] > 1.9
    follower.estop()
    stopping = [float(follower.command(now + (50 + tick) * period).velocities[0]) for tick in range(40)]
    assert stopping[0] < speeds[-1]
    assert stopping[-1] == 0
    assert np.all(np.diff(stopping) <= 0)
