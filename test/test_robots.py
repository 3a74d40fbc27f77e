"""Every shipped contract drives the follower, and every command of it can be sent and understood."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

import control_messages

from flow_vla_core.contract import ActionPart, RobotContract, find_contract
from flow_vla_core.execution import ChunkFollower, Command, ExecutionState
from flow_vla_core.messages import decode_action
from flow_vla_core.types import ActionChunk
from flow_vla_ros.codecs import encode_action

ROBOTS = sorted(path.stem for path in find_contract('metaworld').parent.glob('*.yaml'))
HORIZON = 8
JOINTS = {'ur5e': 6, 'fr3': 7, 'xarm6': 6, 'so101': 5}


def load(robot: str) -> RobotContract:
    return RobotContract.load(find_contract(robot))


def start_of(contract: RobotContract) -> dict[str, np.ndarray]:
    """Measure every stream in the middle of the range of what it measures."""
    middles = {name: (low + high) / 2 for part in contract.actions if part.limits.min
               for name, low, high in zip(part.names, part.limits.min, part.limits.max)}
    box = next((part.limits for part in contract.actions if part.limits.workspace_min), None)
    if box is not None:
        middles |= dict(zip('xyz', np.add(box.workspace_min, box.workspace_max) / 2))
    return {stream.name: np.array([middles.get(name, 0.0) for name in stream.names]) for stream in contract.state}


def chunk_for(contract: RobotContract, random: np.random.Generator) -> np.ndarray:
    """Draw actions (H, A): positions that wander from the middle at half speed, velocities at random."""
    columns = []
    for part in contract.actions:
        if part.limits.min is None:
            columns.append(random.uniform(-1, 1, (HORIZON, part.dim)) * part.limits.velocity)
            continue
        low, high = np.array(part.limits.min), np.array(part.limits.max)
        step = (high - low) / 50 if part.limits.velocity is None else np.array(part.limits.velocity) / 2
        step = step * contract.rates.policy_dt
        wander = np.cumsum(random.uniform(-1, 1, (HORIZON, part.dim)) * step, 0)
        columns.append(np.clip((low + high) / 2 + wander, low, high))
    return np.concatenate(columns, 1).astype(np.float32)


def drive(contract: RobotContract) -> Iterator[Command]:
    """Yield the commands of one chunk and of the stop after it."""
    follower, period = ChunkFollower(contract), round(1e9 / contract.rates.control_hz)
    follower.command(0, start_of(contract))
    actions = chunk_for(contract, np.random.default_rng(0))
    assert follower.accept(ActionChunk(period, contract.rates.policy_dt_ns, actions), period)
    for tick in range(1, 2 + round((HORIZON * contract.rates.policy_dt + 1.0) * contract.rates.control_hz)):
        yield follower.command(tick * period, start_of(contract))


@pytest.mark.parametrize('robot', ROBOTS)
def test_its_commands_stay_within_the_limits_and_come_through(robot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    control_messages.install(monkeypatch)
    contract = load(robot)
    commands = list(drive(contract))
    assert {command.state for command in commands} >= {ExecutionState.FOLLOWING, ExecutionState.HOLDING}
    for name, place in contract.action_slices.items():
        part = next(part for part in contract.actions if part.name == name)
        values = np.array([command.values[place] for command in commands if name in command.parts])
        assert_within(part, values, 1 / contract.rates.control_hz)
        for command in commands[::10]:
            message = encode_action(part, command.values[place], 5, reach_in=10 ** 7,
                                    velocities=command.velocities[place])
            np.testing.assert_allclose(decode_action(message, part), command.values[place], atol=1e-6)


def assert_within(part: ActionPart, values: np.ndarray, period: float) -> None:
    limits, tolerance = part.limits, 1e-6
    if limits.min is not None:
        assert (values >= np.array(limits.min) - tolerance).all() and (values <= np.array(limits.max) + tolerance).all()
    if part.kind == 'joint_position':
        assert (np.abs(np.diff(values, axis=0)) <= np.array(limits.velocity) * period + tolerance).all()
    if part.kind in ('ee_twist', 'joint_velocity'):
        assert (np.abs(values) <= np.array(limits.velocity) + tolerance).all()


@pytest.mark.parametrize('robot', JOINTS)
def test_an_arm_has_every_limit_for_every_joint_and_measures_them_all(robot: str) -> None:
    contract = load(robot)
    arm = contract.actions[0]
    assert (arm.kind, arm.dim) == ('joint_position', JOINTS[robot])
    for key in ('min', 'max', 'velocity', 'acceleration', 'jerk'):
        assert len(getattr(arm.limits, key)) == arm.dim, key
    measured = {name for stream in contract.state for name in stream.names}
    assert set(arm.names) <= measured
    assert ChunkFollower(contract).needs


@pytest.mark.parametrize('robot', ROBOTS)
def test_its_limits_name_their_source(robot: str) -> None:
    text = find_contract(robot).read_text()
    assert robot == 'metaworld' or 'https://' in text
