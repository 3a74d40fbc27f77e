"""What a joystick says: deflections while the dead-man button is held, and functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import math

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError
from flow_vla_core.teleoperation.axes import axes_of
from flow_vla_core.teleoperation.settings import Function, JogSettings, check_axes, check_function, check_range

__all__ = ['Button', 'JoystickSettings', 'Pad', 'Reading', 'Stick', 'usual_buttons', 'usual_sticks']

# An Xbox pad as the joy package numbers it on Linux: up and left are positive.
LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y, CROSS_X, CROSS_Y = 0, 1, 3, 4, 6, 7
A, B, X, Y, LB, RB, BACK, START, GUIDE, LEFT_STICK, RIGHT_STICK = range(11)
ORDER = (LEFT_X, LEFT_Y, RIGHT_Y, RIGHT_X, CROSS_Y, CROSS_X)
PREFERRED = {'x': LEFT_Y, 'y': LEFT_X, 'z': RIGHT_Y, 'rz': RIGHT_X, 'rx': CROSS_X, 'ry': CROSS_Y}


@dataclass(frozen=True)
class Stick:
    """Lets an axis of the joystick, or two of its buttons, move one axis of the robot.

    Args:
        moves: axis of the robot, ``PART.NAME``.
        axis: number in Joy.axes; -1: none.
        scale: -1 turns it round, less than 1 makes it slower.
        plus: number in Joy.buttons of the button that moves it up; -1: none.
        minus: of the button that moves it down.
        bank: it does so while this bank is chosen; -1: always.
    """

    moves: str
    axis: int = -1
    scale: float = 1.0
    plus: int = -1
    minus: int = -1
    bank: int = -1

    def __post_init__(self) -> None:
        if self.axis < 0 and self.plus < 0 and self.minus < 0:
            raise ConfigError(f'sticks: {self.moves}: give axis, plus or minus')
        check_range(f'sticks: {self.moves}: scale', self.scale, -1, 1)


@dataclass(frozen=True)
class Button:
    """Lets a button do something when it goes down.

    Args:
        does: a `Function`.
        button: number in Joy.buttons.
        driving: only while the dead-man button is held (true), or is not (false); both without it.
    """

    does: str
    button: int
    driving: bool | None = None

    def __post_init__(self) -> None:
        check_function(self.does)
        check_range(f'buttons: {self.does}: button', self.button, 0, 63)


@dataclass(frozen=True)
class JoystickSettings:
    """Says what a joystick does.

    Args:
        deadman: number in Joy.buttons of the button without which nothing moves.
        timeout: without a message for so long the joystick counts as lost, s.
        sticks: what moves what; derived from the contract if empty.
        buttons: what each button does; those of an Xbox pad if empty.
        jog: how deflections become motion.
    """

    deadman: int = 4
    timeout: float = 0.25
    sticks: tuple[Stick, ...] = ()
    buttons: tuple[Button, ...] = ()
    jog: JogSettings = field(default_factory=JogSettings)

    def __post_init__(self) -> None:
        check_range('deadman', self.deadman, 0, 63)
        check_range('timeout', self.timeout, 0.02, 1)
        taken = [button.button for button in self.buttons if button.driving is not False]
        if self.deadman in taken:
            raise ConfigError(f'buttons: {self.deadman} is the dead-man button and can do nothing else')


@dataclass(frozen=True)
class Reading:
    """Holds what a joystick says now.

    Args:
        driving: whether the dead-man button is held.
        deflections: axis of the robot -> -1 to 1; empty unless driving.
        asked: functions whose buttons went down since the last reading.
    """

    driving: bool = False
    deflections: dict[str, float] = field(default_factory=dict)
    asked: tuple[Function, ...] = ()


class Pad:
    """Reads a joystick by its settings; where they leave something open, by the contract and an Xbox pad's layout.

    The dead-man button has to be seen released before it counts: at the beginning, after the joystick was lost, and
    after `rearm`. Numbers that are not finite, and axes and buttons that a message lacks, are none.

    Args:
        contract: says the axes of the robot.
        settings: what moves and does what.

    Raises:
        ConfigError: if the settings name an axis that the contract lacks.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> pad = Pad(RobotContract.load(find_contract('metaworld')), JoystickSettings(deadman=4))
        >>> pad.read([0.0] * 8, [0] * 11, now=0.0).driving
        False
        >>> pad.read([0.5] + [0.0] * 7, [0, 0, 0, 0, 1] + [0] * 6, now=0.1).deflections['ee.y']
        0.5
        >>> pad.at(now=0.2).driving, pad.at(now=0.5).driving
        (True, False)
    """

    def __init__(self, contract: RobotContract, settings: JoystickSettings | None = None) -> None:
        self._settings = settings = settings or JoystickSettings()
        self.sticks = settings.sticks or usual_sticks(contract)
        self.buttons = settings.buttons or usual_buttons(settings.deadman)
        check_axes((stick.moves for stick in self.sticks), axes_of(contract), 'sticks')
        self.banks = 1 + max((stick.bank for stick in self.sticks), default=0)
        self.bank = 0
        self._heard: float | None = None
        self._held: Sequence[int] = ()
        self._reading = Reading()
        self.rearm()

    def rearm(self) -> None:
        """Let nothing move until the dead-man button has been released and pressed anew."""
        self._armed = False
        self._reading = Reading()

    def read(self, axes: Sequence[float], buttons: Sequence[int], now: float) -> Reading:
        """Take in a message; ``now`` in s of a clock that never stops."""
        if self._lost(now):
            self.rearm()
            self._held = buttons  # nothing that was held meanwhile counts as pressed now
        held = _pressed(buttons, self._settings.deadman)
        self._armed = self._armed or not held
        driving = held and self._armed
        asked = tuple(self._asked(buttons, held))
        self._held, self._heard = tuple(buttons), now
        if Function.BANK in asked:
            self.bank = (self.bank + 1) % max(self.banks, 1)
        self._reading = Reading(driving, self._deflections(axes, buttons) if driving else {}, asked)
        return self._reading

    def at(self, now: float) -> Reading:
        """Return what holds at a time, s: the last reading without its functions, or none if the joystick is lost."""
        if self._lost(now):
            self.rearm()
        return Reading(self._reading.driving, self._reading.deflections)

    def _lost(self, now: float) -> bool:
        return self._heard is None or not 0 <= now - self._heard <= self._settings.timeout

    def _asked(self, buttons: Sequence[int], held: bool) -> list[Function]:
        return [Function(binding.does) for binding in self.buttons
                if binding.driving in (None, held) and _pressed(buttons, binding.button)
                and not _pressed(self._held, binding.button)]

    def _deflections(self, axes: Sequence[float], buttons: Sequence[int]) -> dict[str, float]:
        total: dict[str, float] = {}
        for stick in self.sticks:
            if stick.bank not in (-1, self.bank):
                continue
            value = _finite(axes, stick.axis) + _pressed(buttons, stick.plus) - _pressed(buttons, stick.minus)
            total[stick.moves] = min(max(total.get(stick.moves, 0.0) + stick.scale * value, -1.0), 1.0)
        return total


def usual_sticks(contract: RobotContract) -> tuple[Stick, ...]:
    """Give sticks and cross of a pad to the contract's values, up to six to a bank, and A and B to its gripper.

    Of an end effector, left stick up is x, to the left is y, right stick up is z and to the left is rz, the cross is rx
    and ry; joints come in order. Of several grippers there is one to a bank.
    """
    sticks, free, bank = [], list(ORDER), 0
    kinds = {f'{part.name}.{name}': part.kind for part in contract.actions for name in part.names}
    for name in [name for name, kind in kinds.items() if kind != 'gripper']:
        if not free:
            free, bank = list(ORDER), bank + 1
        wanted = PREFERRED.get(name.rpartition('.')[2], free[0])
        axis = wanted if wanted in free else free[0]
        free.remove(axis)
        sticks.append(Stick(name, axis, bank=bank))
    grippers = [name for name, kind in kinds.items() if kind == 'gripper']
    return (*sticks, *(Stick(name, plus=A, minus=B, bank=number if len(grippers) > 1 else -1)
                       for number, name in enumerate(grippers)))


def usual_buttons(deadman: int) -> tuple[Button, ...]:
    """Give the buttons of an Xbox pad their functions; none to the dead-man button."""
    buttons = (
        Button('start', A, driving=False), Button('keep', B, driving=False), Button('discard', X, driving=False),
        Button('rerecord', Y, driving=False), Button('slower', X, driving=True), Button('faster', Y, driving=True),
        Button('success', RB), Button('failure', LEFT_STICK), Button('estop', BACK), Button('release', START),
        Button('reset_estop', GUIDE, driving=False), Button('bank', RIGHT_STICK))
    return tuple(button for button in buttons if button.button != deadman)


def _pressed(buttons: Sequence[int], number: int) -> bool:
    return 0 <= number < len(buttons) and bool(buttons[number])


def _finite(axes: Sequence[float], number: int) -> float:
    return float(axes[number]) if 0 <= number < len(axes) and math.isfinite(axes[number]) else 0.0
