"""What a keyboard says through a terminal: keys that are held, and functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import ConfigError
from flow_vla_core.teleoperation.axes import axes_of
from flow_vla_core.teleoperation.settings import Function, JogSettings, check_axes, check_function, check_range

__all__ = ['HeldKeys', 'Key', 'KeyboardSettings', 'MotionKeys', 'key_names', 'usual_keys', 'usual_motion']

NAMES = {'\r': 'enter', '\n': 'enter', ' ': 'space', '\t': 'tab', '\x7f': 'backspace', '\b': 'backspace',
         '\x1b': 'escape'}
SEQUENCES = {'A': 'up', 'B': 'down', 'C': 'right', 'D': 'left', 'H': 'home', 'F': 'end'}
PAIRS = ('ws', 'ad', 'rf', 'tg', 'yh', 'uj', 'ik', 'ol')
GRIPPERS = ('.,', "';", '][')


@dataclass(frozen=True)
class MotionKeys:
    """Lets two keys move one axis of the robot.

    Args:
        moves: axis of the robot, ``PART.NAME``.
        plus: key.
        minus: key.
        scale: share of the speed.
    """

    moves: str
    plus: str
    minus: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range(f'motion: {self.moves}: scale', self.scale, 0.01, 1)


@dataclass(frozen=True)
class Key:
    """Lets a key do something.

    Args:
        does: a `Function`.
        key: a character, or the name of a key such as ``enter``.
    """

    does: str
    key: str

    def __post_init__(self) -> None:
        check_function(self.does)


@dataclass(frozen=True)
class KeyboardSettings:
    """Says what a keyboard does.

    Args:
        hold: a terminal tells that a key goes down and repeats, never that it goes up: each time counts so long, s.
        motion: what moves what; derived from the contract if empty.
        keys: what the other keys do; the usual ones if empty.
        jog: how they become motion.
    """

    hold: float = 0.25
    motion: tuple[MotionKeys, ...] = ()
    keys: tuple[Key, ...] = ()
    jog: JogSettings = field(default_factory=lambda: JogSettings(speed=0.25))

    def __post_init__(self) -> None:
        check_range('hold', self.hold, 0.05, 1)


class HeldKeys:
    """Knows which keys are held, by what a terminal says of them, and what they ask for.

    Args:
        contract: says the axes of the robot.
        settings: what each key does.

    Raises:
        ConfigError: if a key stands twice, or an axis is named that the contract lacks.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> keys = HeldKeys(RobotContract.load(find_contract('metaworld')), KeyboardSettings(hold=0.25))
        >>> keys.press('w', now=0.0), keys.press('enter', now=0.1)
        (None, <Function.START: 'start'>)
        >>> keys.deflections(now=0.2), keys.deflections(now=0.3)
        ({'ee.x': 1.0}, {})
    """

    def __init__(self, contract: RobotContract, settings: KeyboardSettings | None = None) -> None:
        settings = settings or KeyboardSettings()
        self.motion = settings.motion or usual_motion(contract)
        self.keys = settings.keys or usual_keys()
        check_axes((pair.moves for pair in self.motion), axes_of(contract), 'motion')
        self._hold = settings.hold
        self._moves = {key: (pair.moves, sign * pair.scale) for pair in self.motion
                       for key, sign in ((pair.plus, 1.0), (pair.minus, -1.0))}
        self._does = {key.key: Function(key.does) for key in self.keys}
        _differ([key for pair in self.motion for key in (pair.plus, pair.minus)] + [key.key for key in self.keys])
        self.release_all()

    def press(self, key: str, now: float) -> Function | None:
        """Take in a key at a time, s; return the function that it asks for."""
        if key in self._moves:
            self._pressed[key] = now
        return self._does.get(key)

    def moves(self, key: str) -> bool:
        """Whether a key moves the robot."""
        return key in self._moves

    def release_all(self) -> None:
        """Forget which keys are held."""
        self._pressed: dict[str, float] = {}

    def deflections(self, now: float) -> dict[str, float]:
        """Return what is held at a time, s: axis -> -1 to 1; both keys of an axis are none."""
        total: dict[str, float] = {}
        for key, since in self._pressed.items():
            if 0 <= now - since <= self._hold:
                axis, value = self._moves[key]
                total[axis] = total.get(axis, 0.0) + value
        return {axis: value for axis, value in total.items() if value}


def key_names(text: str) -> Iterator[str]:
    """Split what a terminal sent into keys: characters, and names such as ``enter``, ``escape`` and ``up``.

    Example:
        >>> list(key_names('w\\r\\x1b[A\\x1b'))
        ['w', 'enter', 'up', 'escape']
    """
    while text:
        if text[:2] in ('\x1b[', '\x1bO'):
            end = next((index for index, letter in enumerate(text[2:], 2) if letter.isalpha() or letter == '~'), None)
            if end is not None:
                name, text = SEQUENCES.get(text[end]), text[end + 1:]
                if name:
                    yield name
                continue
        yield NAMES.get(text[0], text[0])
        text = text[1:]


def usual_motion(contract: RobotContract) -> tuple[MotionKeys, ...]:
    """Give the contract's values pairs of keys, in order. Raise `ConfigError` if there are more than keys."""
    pairs = {False: iter(PAIRS), True: iter(GRIPPERS)}
    motion = []
    for part in contract.actions:
        for name in part.names:
            pair = next(pairs[part.kind == 'gripper'], None)
            if pair is None:
                raise ConfigError(f'the contract {contract.name} has more axes than there are keys for: name those '
                                  'that matter under motion in a file of bindings')
            motion.append(MotionKeys(f'{part.name}.{name}', *pair))
    return tuple(motion)


def usual_keys() -> tuple[Key, ...]:
    """Give the other keys their functions."""
    return tuple(Key(function, key) for key, function in (
        ('space', 'take_over'), ('tab', 'release'), ('escape', 'estop'), ('backspace', 'reset_estop'),
        ('enter', 'start'), ('n', 'keep'), ('x', 'discard'), ('z', 'rerecord'), ('1', 'success'), ('0', 'failure'),
        ('c', 'check'), ('e', 'words'), ('+', 'faster'), ('-', 'slower'), ('q', 'quit')))


def _differ(keys: Iterable[str]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ConfigError(f'the key {key!r} stands twice')
        seen.add(key)
