"""Joystick and keyboard: what moves, what is asked, when nothing counts; and files that are read strictly."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
import pytest
from test_execution_bounds import PARTS, make_contract

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.teleoperation import (
    Function,
    HeldKeys,
    Jog,
    JoystickSettings,
    KeyboardSettings,
    Leader,
    LeaderSettings,
    Pad,
    axes_of,
    key_names,
    load_settings,
)
from flow_vla_core.teleoperation.keys import MotionKeys
from flow_vla_core.teleoperation.pad import Button, Reading, Stick

CONTRACT = RobotContract.load(find_contract('metaworld'))
ROBOTS = ('metaworld', 'so101', 'ur5e', 'fr3', 'xarm6')
REST = [0.0] * 8
UP = [0] * 11


def down(*numbers: int) -> list[int]:
    return [int(number in numbers) for number in range(11)]


def armed(settings: JoystickSettings | None = None, contract: RobotContract = CONTRACT) -> Pad:
    """Return a pad whose dead-man button was seen released."""
    pad = Pad(contract, settings)
    assert not pad.read(REST, UP, 0.0).driving
    return pad


def test_nothing_moves_without_the_dead_man_button() -> None:
    pad = armed()
    assert not pad.read([0.5] * 8, UP, 0.05).deflections
    assert pad.read([0.5] * 8, down(4), 0.1).deflections == {
        'ee.x': 0.5, 'ee.y': 0.5, 'ee.z': 0.5, 'gripper.gripper': 0.0}
    assert not pad.read([0.5] * 8, UP, 0.15).driving


def test_a_button_that_is_held_from_the_start_moves_nothing() -> None:
    pad = Pad(CONTRACT)
    assert not pad.read([1.0] * 8, down(4), 0.0).driving
    pad.read(REST, UP, 0.1)
    assert pad.read([1.0] * 8, down(4), 0.2).driving


@pytest.mark.parametrize('gap', [0.26, -1.0])
def test_a_joystick_that_was_lost_has_to_be_taken_anew(gap: float) -> None:
    pad = armed()
    pad.read(REST, down(4), 0.1)
    assert pad.at(0.3).driving and not pad.at(0.1 + gap).driving
    reading = pad.read(REST, down(4, 6), 2.0)
    assert not reading.driving and not reading.asked
    pad.read(REST, UP, 2.1)
    assert pad.read(REST, down(4), 2.2).driving


def test_told_to_rearm_it_waits_for_the_button_to_be_released() -> None:
    pad = armed()
    pad.read(REST, down(4), 0.1)
    pad.rearm()
    assert not pad.at(0.11).driving
    assert pad.read(REST, down(4, 2), 0.15) == Reading(asked=(Function.SLOWER,))    # and X deletes no episode
    pad.read(REST, UP, 0.2)
    assert pad.read(REST, down(4), 0.25).driving


def test_a_function_is_asked_once_when_its_button_goes_down_and_only_where_it_counts() -> None:
    pad = armed()
    asked = [pad.read(REST, buttons, 0.05 * step).asked for step, buttons in enumerate(
        (down(0), down(0), UP, down(0), down(6), down(4), down(4, 3), down(4, 3, 0)))]
    assert asked == [(Function.START,), (), (), (Function.START,), (Function.ESTOP,), (), (Function.FASTER,), ()]
    assert pad.at(0.36).deflections['gripper.gripper'] == 1.0 and not pad.at(0.36).asked


def test_banks_give_more_axes_than_sticks() -> None:
    contract = RobotContract.load(find_contract('fr3'))
    pad = armed(contract=contract)
    assert pad.banks == 2
    first = pad.read([1.0] * 8, down(4), 0.1).deflections
    pad.read([1.0] * 8, down(4, 10), 0.2)
    second = pad.read([1.0] * 8, down(4), 0.3).deflections
    assert {**first, **second}.keys() == set(axes_of(contract))
    assert set(first) & set(second) == {'gripper.fr3_finger_joint1'}


def test_what_a_message_lacks_or_what_is_no_number_is_none() -> None:
    pad = armed()
    assert pad.read([float('nan'), 2.0], down(4), 0.1).deflections == {
        'ee.x': 1.0, 'ee.y': 0.0, 'ee.z': 0.0, 'gripper.gripper': 0.0}
    assert not pad.read([], [], 0.2).driving


def test_stick_and_buttons_of_one_axis_add_up_within_their_range() -> None:
    settings = JoystickSettings(sticks=(Stick('ee.x', axis=0, scale=-0.5), Stick('ee.x', plus=1, minus=2)))
    pad = armed(settings)
    assert pad.read([1.0], down(4), 0.1).deflections == {'ee.x': -0.5}
    assert pad.read([1.0], down(4, 1), 0.2).deflections == {'ee.x': 0.5}
    assert pad.read([1.0], down(4, 2), 0.3).deflections == {'ee.x': -1.0}


@pytest.mark.parametrize('contract', [*(RobotContract.load(find_contract(name)) for name in ROBOTS),
                                      *(make_contract(name) for name in PARTS)], ids=[*ROBOTS, *PARTS])
def test_every_value_of_every_contract_can_be_moved_without_a_file(contract: RobotContract) -> None:
    pad, keys = Pad(contract), HeldKeys(contract)
    assert {stick.moves for stick in pad.sticks} == {pair.moves for pair in keys.motion} == set(axes_of(contract))
    for bank in range(pad.banks):
        axes = [stick.axis for stick in pad.sticks if stick.bank == bank and stick.axis >= 0]
        assert len(set(axes)) == len(axes)
    assert {button.does for button in pad.buttons} | {'check', 'words', 'take_over', 'quit'} == {
        function.value for function in Function}
    assert {key.does for key in keys.keys} | {'bank'} == {function.value for function in Function}


def test_a_key_moves_for_as_long_as_it_counts_and_repeats_prolong_it() -> None:
    keys = HeldKeys(CONTRACT, KeyboardSettings(hold=0.25))
    for time in (0.0, 0.2, 0.23):
        assert keys.press('w', time) is None
    assert keys.deflections(0.48) == {'ee.x': 1.0} and keys.deflections(0.49) == {}
    keys.press('s', 0.3)
    keys.press('d', 0.4)
    assert keys.deflections(0.45) == {'ee.y': -1.0}
    keys.release_all()
    assert keys.deflections(0.45) == {}
    assert keys.press('escape', 0.5) == Function.ESTOP and keys.press('?', 0.5) is None


@given(st.text(max_size=20))
def test_whatever_a_terminal_sends_is_split_into_keys(text: str) -> None:
    assert all(keys for keys in key_names(text))


def test_keys_have_names_and_sequences_that_are_not_known_are_none() -> None:
    assert list(key_names('aB \t\x7f\x1b')) == ['a', 'B', 'space', 'tab', 'backspace', 'escape']
    assert list(key_names('\x1b[A\x1b[1;5C\x1b[3~\x1bOHx\x1b[')) == ['up', 'right', 'home', 'x', 'escape', '[']


@pytest.mark.parametrize(('name', 'kind', 'robot', 'use'), [
    ('xbox', JoystickSettings, 'metaworld', Pad), ('playstation', JoystickSettings, 'fr3', Pad),
    ('keyboard_metaworld', KeyboardSettings, 'metaworld', HeldKeys), ('leader_so101', LeaderSettings, 'so101', Leader)])
def test_shipped_files_fit_their_robots(name: str, kind: type, robot: str, use: type) -> None:
    contract = RobotContract.load(find_contract(robot))
    settings = load_settings(kind, name)
    use(contract, settings)
    if hasattr(settings, 'jog'):
        Jog(contract, settings.jog)


def test_every_shipped_file_is_tested(root: Path) -> None:
    names = {path.stem for path in (root / 'config' / 'teleop').glob('*.yaml')}
    assert names == {'xbox', 'playstation', 'keyboard_metaworld', 'leader_so101'}


@pytest.mark.parametrize(('kind', 'text', 'said'), [
    (JoystickSettings, 'deadmann: 4', "mine.yaml: deadmann: unknown key; did you mean 'deadman'"),
    (JoystickSettings, 'deadman: LB', "deadman: 'LB' is no int"),
    (JoystickSettings, 'sticks: [{moves: ee.x}]', 'sticks: ee.x: give axis, plus or minus'),
    (JoystickSettings, 'sticks: [{moves: ee.x, axis: 0, scale: 2}]', 'scale: 2 is not allowed; allowed: -1 to 1'),
    (JoystickSettings, 'sticks: [{axis: 0}]', 'moves'),
    (JoystickSettings, 'buttons: [{does: strat, button: 1}]', "did you mean 'start'"),
    (JoystickSettings, 'buttons: [{does: start, button: 4}]', '4 is the dead-man button'),
    (JoystickSettings, 'timeout: 5', 'timeout: 5 is not allowed; allowed: 0.02 to 1'),
    (JoystickSettings, 'jog: {leash: 1.0}', 'jog.leash: 1 is not allowed; allowed: 0.02 to 0.2'),
    (JoystickSettings, 'jog: {speed: 1.5}', 'jog.speed: 1.5 is not allowed'),
    (KeyboardSettings, 'hold: 10', 'hold: 10 is not allowed'),
    (LeaderSettings, 'joints: [{leader: a, moves: b, range: [1, 1]}]', 'has no width'),
    (LeaderSettings, '[1]', 'holds list, not keys and values')])
def test_a_file_that_cannot_be_used_is_named_with_key_and_value(tmp_path: Path, kind: type, text: str,
                                                                said: str) -> None:
    path = tmp_path / 'mine.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(kind, path)
    assert 'mine.yaml' in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize(('use', 'settings', 'said'), [
    (Pad, JoystickSettings(sticks=(Stick('ee.w', axis=0),)), "sticks: no axis 'ee.w'"),
    (HeldKeys, KeyboardSettings(motion=(MotionKeys('ee.w', 'a', 'b'),)), "motion: no axis 'ee.w'"),
    (HeldKeys, KeyboardSettings(motion=(MotionKeys('ee.x', 'n', 'b'),)), "the key 'n' stands twice")])
def test_bindings_that_do_not_fit_the_contract_are_refused(use: type, settings: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        use(CONTRACT, settings)


def test_no_file_of_that_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no bindings 'xboxx' in .*did you mean 'xbox'"):
        load_settings(JoystickSettings, 'xboxx')


def test_the_dead_man_button_keeps_no_other_function() -> None:
    pad = Pad(CONTRACT, JoystickSettings(deadman=5))
    assert 5 not in {button.button for button in pad.buttons}
    assert Button('success', 5) in Pad(CONTRACT).buttons
