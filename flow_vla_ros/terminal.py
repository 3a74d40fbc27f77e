"""A terminal whose keys are read one by one, and on which a panel is drawn."""

from __future__ import annotations

from collections.abc import Sequence
import os
import select
import shutil
import sys
import termios
import tty
from typing import TextIO

from flow_vla_core.errors import ConfigError

__all__ = ['Terminal']

ENTER, LEAVE = '\x1b[?1049h\x1b[?25l', '\x1b[?25h\x1b[?1049l'   # another screen without a cursor, and back
HOME, CLEAR_LINE, CLEAR_BELOW = '\x1b[H', '\x1b[K', '\x1b[J'


class Terminal:
    """Reads keys as they are pressed, until `close`; Ctrl-C still interrupts.

    Args:
        source: stream that is a terminal, such as standard input.
        screen: where the panel goes.

    Raises:
        ConfigError: if the source is no terminal.
    """

    def __init__(self, source: TextIO | None = None, screen: TextIO | None = None) -> None:
        self._source, self._screen = source or sys.stdin, screen or sys.stdout
        if self._source is None or self._source.closed or not os.isatty(self._source.fileno()):
            raise ConfigError('the keyboard needs a terminal, and standard input is none: run it in a terminal of its '
                              'own, with `flow-vla teleop keyboard` or `ros2 run flow_vla keyboard_node`')
        self._number = self._source.fileno()
        self._before = termios.tcgetattr(self._number)
        tty.setcbreak(self._number)
        self._write(ENTER)
        self.hung_up = False

    def read(self) -> str:
        """Return what was typed since the last call, without waiting; at a hang-up nothing, and `hung_up` is set."""
        if not select.select([self._number], [], [], 0)[0]:
            return ''
        try:
            data = os.read(self._number, 1024)
        except OSError:
            data = b''
        self.hung_up = not data
        return data.decode(errors='replace')

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the panel; what does not fit is cut off."""
        columns, rows = shutil.get_terminal_size()
        shown = ''.join(f'{line[:columns - 1]}{CLEAR_LINE}\r\n' for line in lines[:rows - 1])
        self._write(HOME + shown + CLEAR_BELOW)

    def close(self) -> None:
        """Be an ordinary terminal again."""
        try:
            self._write(LEAVE)
            termios.tcsetattr(self._number, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):  # it has hung up
            pass

    def _write(self, text: str) -> None:
        try:
            self._screen.write(text)
            self._screen.flush()
        except OSError:  # it has hung up
            self.hung_up = True
