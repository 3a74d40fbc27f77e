"""A terminal whose keys are read one by one, and on which a panel is drawn."""

from __future__ import annotations

from collections.abc import Sequence
import os
import select
import sys
import termios
import tty
from typing import TextIO

from flow_vla_core.errors import ConfigError

__all__ = ['Terminal']

ENTER, LEAVE = '\x1b[?1049h\x1b[?25l', '\x1b[?25h\x1b[?1049l'   # another screen without a cursor, and back
USUAL = 80, 24
HOME, CLEAR_LINE, CLEAR_BELOW = '\x1b[H', '\x1b[K', '\x1b[J'


class Terminal:
    """Reads keys as they are pressed, until `close`; Ctrl-C still interrupts.

    The panel goes to the terminal itself, wherever standard output goes, and never waits: of a terminal that has been
    stopped (Ctrl-S) the keys are read all the same.

    Args:
        source: stream that is a terminal; standard input if None.

    Raises:
        ConfigError: if the source is no terminal.
    """

    def __init__(self, source: TextIO | None = None) -> None:
        source = source or sys.stdin
        if source is None or source.closed or not os.isatty(source.fileno()):
            raise ConfigError('the keyboard needs a terminal, and standard input is none: run it in a terminal of its '
                              'own, with `flow-vla teleop keyboard` or `ros2 run flow_vla keyboard_node`')
        self._source, self._number = source, source.fileno()
        # Opened anew, so that not waiting is our own affair and not the shell's.
        self._screen = os.open(os.ttyname(self._number), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        self._before = termios.tcgetattr(self._number)
        tty.setcbreak(self._number)
        self.hung_up = False
        self._write(ENTER)

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

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows; those of an old terminal where it doesn't say."""
        try:
            size = os.get_terminal_size(self._number)
        except OSError:
            return USUAL
        return (size.columns, size.lines) if size.columns and size.lines else USUAL

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the panel; what does not fit is cut off."""
        columns, rows = self.size
        shown = ''.join(f'{line[:columns - 1]}{CLEAR_LINE}\r\n' for line in lines[:rows - 1])
        self._write(HOME + shown + CLEAR_BELOW)

    def close(self) -> None:
        """Be an ordinary terminal again."""
        try:
            self._write(LEAVE)
            termios.tcsetattr(self._number, termios.TCSANOW, self._before)
        except (OSError, termios.error):  # it has hung up
            pass
        os.close(self._screen)

    def _write(self, text: str) -> None:
        try:
            os.write(self._screen, text.encode())
        except BlockingIOError:  # it takes nothing now: the next panel replaces this one
            pass
        except OSError:
            self.hung_up = True
