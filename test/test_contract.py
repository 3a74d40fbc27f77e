"""The robot contract: what it accepts, and what its errors say."""

import copy

import pytest
import yaml

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ContractError


@pytest.fixture
def values():
    return yaml.safe_load(find_contract('metaworld').read_text())


def change(values, path, value):
    """Return a copy with one value replaced; a path such as ('cameras', 0, 'size')."""
    changed = copy.deepcopy(values)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


def test_loads_every_shipped_contract():
    for path in find_contract('metaworld').parent.glob('*.yaml'):
        contract = RobotContract.load(path)
        assert contract.action_dim == sum(len(part.names) for part in contract.actions)


def test_slices_cover_the_vectors(values):
    contract = RobotContract.parse(values)
    assert contract.action_slices == {'ee': slice(0, 3), 'gripper': slice(3, 4)}
    assert contract.state_slices == {'ee_position': slice(0, 3), 'gripper': slice(3, 4)}
    assert contract.state_dim == contract.action_dim == 4


WRONG = [
    (('rates', 'control_hz'), 0, ['rates.control_hz', 'greater than or equal to 1', '0']),
    (('rates', 'policy_dt'), -0.1, ['rates.policy_dt', 'greater than 0']),
    (('rates', 'policy_dt'), float('nan'), ['rates.policy_dt', 'finite']),
    (('rates', 'policy_dtt'), 0.05, ['rates.policy_dtt', "did you mean 'policy_dt'"]),
    (('cameras', 0, 'siz'), [84, 84], ['cameras.0.siz', "did you mean 'size'"]),
    (('cameras', 0, 'size'), [84], ['cameras.0.size']),
    (('cameras', 0, 'size'), [84, 0], ['cameras.0.size.1', 'greater than 0']),
    (('cameras', 0, 'encoding'), 'rgb', ['cameras.0.encoding', "'rgb8'"]),
    (('cameras', 1, 'name'), 'front', ["'front' stands 2 times"]),
    (('cameras', 1, 'topic'), 'camera/front/image_raw', ["'camera/front/image_raw' stands 2 times"]),
    (('state', 1, 'name'), 'ee_position', ["'ee_position' stands 2 times"]),
    (('state', 0, 'names'), [], ['state.0.names']),
    (('state', 0, 'names'), ['x', 'x'], ["'x' stands 2 times"]),
    (('state', 0, 'max_age'), '0.3', ['state.0.max_age', "'0.3'"]),
    (('actions', 1, 'limits', 'min'), [2.0], ['min[0] = 2.0 is above max[0] = 1.0']),
    (('actions', 1, 'limits', 'min'), [-1.0, -1.0], ['min has 2 values']),
    (('actions', 1, 'limits'), {}, ['limits.min is needed', "'gripper'"]),
    (('actions', 0, 'limits', 'velocty'), [1.0], ['actions.0.limits.velocty', "did you mean 'velocity'"]),
    (('actions', 0, 'limits', 'velocity'), [0.2], ['limits.velocity has 1 values, names has 3']),
    (('actions', 0, 'limits', 'workspace_min'), [1.0, 0.0, 0.0], ['workspace_min[0]']),
    (('actions', 0, 'kind'), 'ee_twis', ["'ee_twist'", "'ee_twis'"]),
    (('actions', 0, 'names'), ['x', 'y', 'w'], ["'w' is no axis"]),
    (('actions', 0, 'position_from'), 'ee_positon', ["no state stream 'ee_positon'", "did you mean 'ee_position'"]),
    (('actions', 0, 'position_from'), None, ['position_from is needed']),
    (('actions', 0, 'trajectory'), {'lead': 0.02}, ['trajectory goes with', 'geometry_msgs/TwistStamped']),
    (('actions', 1, 'trajectory'), {'lead': 0.0}, ['actions.1.trajectory.lead', 'greater than 0']),
    (('actions', 1, 'trajectory'), {'start': 'soon'}, ['actions.1.trajectory.start', "'stamp' or 'now'"]),
    (('actions', 1, 'goals'), {'rate': 2.0}, ['goals go with an action', 'trajectory_msgs/JointTrajectory']),
    (('actions', 0, 'message'), 'control_msgs/action/GripperCommand', ["for the kind 'gripper'", "'ee_twist' with 3"]),
    (('actions',), [], ['actions']),
    (('camera',), [], ["camera: unknown key; did you mean 'cameras'"]),
    (('history',), 0, ['history']),
]


@pytest.mark.parametrize(('path', 'value', 'expected'), WRONG)
def test_wrong_values_are_named(values, path, value, expected):
    with pytest.raises(ContractError) as error:
        RobotContract.parse(change(values, path, value), 'robot.yaml')
    for part in ('robot.yaml', *expected):
        assert part in str(error.value)


def test_missing_key_is_named(values):
    del values['cameras'][0]['topic']
    with pytest.raises(ContractError, match=r'cameras\.0\.topic: this key is missing'):
        RobotContract.parse(values)


@pytest.mark.parametrize(('text', 'expected'), [
    ('name: a\nname: b\n', "'name' stands 2 times"),
    ('name: [', 'not valid YAML'),
    ('', 'contract'),
    ('- 1\n', 'contract'),
])
def test_wrong_files_are_named(tmp_path, text, expected):
    path = tmp_path / 'contract.yaml'
    path.write_text(text)
    with pytest.raises(ContractError) as error:
        RobotContract.load(path)
    assert str(path) in str(error.value) and expected in str(error.value)


def test_absent_files_are_named(tmp_path):
    with pytest.raises(ContractError, match='No such file'):
        RobotContract.load(tmp_path / 'absent.yaml')
    with pytest.raises(ContractError, match="did you mean 'metaworld'"):
        find_contract('metawrld')


def test_dump_and_load_keep_everything(values, tmp_path):
    contract = RobotContract.parse(values)
    contract.dump(tmp_path / 'contract.yaml')
    assert RobotContract.load(tmp_path / 'contract.yaml') == contract


@pytest.mark.parametrize(('path', 'value', 'differs'), [
    (('cameras', 0, 'size'), [64, 64], True),
    (('state', 0, 'unit'), 'mm', True),
    (('rates', 'policy_dt'), 0.1, True),
    (('actions', 0, 'names'), ['x', 'z', 'y'], True),
    (('cameras', 0, 'topic'), 'other', False),
    (('rates', 'control_hz'), 50.0, False),
    (('actions', 0, 'limits', 'velocity'), [0.1, 0.1, 0.1], False),
])
def test_interface_is_what_a_policy_learns_by(values, path, value, differs):
    one, other = RobotContract.parse(values), RobotContract.parse(change(values, path, value))
    assert bool(one.differences(other)) is differs
    assert (one.digest != other.digest) is differs


def test_order_of_parts_belongs_to_the_interface(values):
    one = RobotContract.parse(values)
    other = RobotContract.parse(change(values, ('cameras',), values['cameras'][::-1]))
    assert one.digest != other.digest and 'cameras' in one.differences(other)[0]
