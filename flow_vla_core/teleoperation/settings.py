"""What a person can ask for, how deflections become motion, and how the files in ``config/teleop`` are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from flow_vla_core.config import from_values, load_yaml
from flow_vla_core.contract import config_folder
from flow_vla_core.errors import ConfigError, closest

__all__ = ['Function', 'Initial', 'JogSettings', 'check_axes', 'check_function', 'check_range', 'find_settings',
           'load_settings']

Settings = TypeVar('Settings')


class Function(str, Enum):
    """Names what a person can ask for beside motion."""

    START = 'start'              # an episode
    KEEP = 'keep'                # end it, and keep it
    DISCARD = 'discard'          # end it, and delete it
    RERECORD = 'rerecord'        # delete it, and start it again
    SUCCESS = 'success'          # mark its outcome
    FAILURE = 'failure'
    CHECK = 'check'              # whether it could start
    WORDS = 'words'              # other words from now on
    TAKE_OVER = 'take_over'      # from the policy, and stand still
    RELEASE = 'release'          # let the policy go on
    ESTOP = 'estop'
    RESET_ESTOP = 'reset_estop'
    FASTER = 'faster'
    SLOWER = 'slower'
    BANK = 'bank'                # next set of axes for the sticks
    QUIT = 'quit'                # the keyboard


@dataclass(frozen=True)
class Initial:
    """Says where a value begins that has neither been commanded nor measured.

    Args:
        axis: name, ``PART.NAME``.
        value: in the contract's unit.
    """

    axis: str
    value: float


@dataclass(frozen=True)
class JogSettings:
    """Says how deflections become motion.

    Args:
        speed: share of the contract's largest velocity at full deflection, to begin with.
        dead_zone: deflections up to it are none.
        expo: 0, the velocity is proportional to the deflection; 1, to its cube.
        travel: time from one end to the other of a value without a velocity limit, such as a gripper, s.
        leash: positions lead the robot by at most the way that it makes in so long at its largest velocity, s.
        reach: a chunk says how to go on for so long if nothing follows it, s.
        initial: where values begin of which nothing is known.
    """

    speed: float = 0.5
    dead_zone: float = 0.1
    expo: float = 0.4
    travel: float = 1.0
    leash: float = 0.15
    reach: float = 0.2
    initial: tuple[Initial, ...] = ()

    def __post_init__(self) -> None:
        check_range('jog.speed', self.speed, 0.01, 1)
        check_range('jog.dead_zone', self.dead_zone, 0, 0.9)
        check_range('jog.expo', self.expo, 0, 1)
        check_range('jog.travel', self.travel, 0.1, 60)
        check_range('jog.reach', self.reach, 0.05, 0.5)
        check_range('jog.leash', self.leash, 0.02, self.reach)


def find_settings(name: str | Path) -> Path:
    """Return the file of settings, given its path or the name of one in ``config/teleop``."""
    if Path(name).suffix in ('.yaml', '.yml'):
        return Path(name)
    folder = config_folder() / 'teleop'
    path = folder / f'{name}.yaml'
    if not path.is_file():
        raise ConfigError(f'no bindings {str(name)!r} in {folder}; '
                          f'{closest(str(name), [path.stem for path in folder.glob("*.yaml")])}')
    return path


def load_settings(kind: type[Settings], name: str | Path = '') -> Settings:
    """Read settings of a kind from a file or by name; the defaults if empty. Raise `ConfigError`, which names both."""
    if not str(name):
        return kind()
    path = find_settings(name)
    values: dict[str, Any] = load_yaml(path)
    try:
        return from_values(kind, values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f'{path}: {error}') from error


def check_function(function: str) -> None:
    """Raise `ConfigError` if there is no such function."""
    names = [known.value for known in Function]
    if function not in names:
        raise ConfigError(f'does: {function!r}; {closest(function, names)}')


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` if a number is out of range."""
    if not low <= value <= high:
        raise ConfigError(f'{name}: {value:g} is not allowed; allowed: {low:g} to {high:g}')


def check_axes(named: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise `ConfigError` if an axis of the robot is named that the contract does not have."""
    known = list(known)
    for name in named:
        if name not in known:
            raise ConfigError(f'{what}: no axis {name!r}; {closest(name, known)}')
