"""Lets a person drive the robot, and say when episodes begin and end, with the keys of a terminal."""

from __future__ import annotations

from collections import deque
import os
import signal
import time

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.teleoperation import Function, HeldKeys, Jog, KeyboardSettings, key_names, load_settings
from flow_vla_ros.diagnostics import wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.teleop_desk import TeleopDesk
from flow_vla_ros.teleop_drive import ChunkOutlet, JogDrive
from flow_vla_ros.teleop_panel import describe_execution, describe_recorder, describe_topics, in_lines
from flow_vla_ros.terminal import Terminal

__all__ = ['KeyboardNode', 'main']

POLL_SECONDS = 0.02
SAID = 5    # lines that stay on the panel


class KeyboardNode(FlowLifecycleNode):
    """Turns keys into chunks and into calls of recorder and executor, and shows how both are.

    A terminal never tells that a key goes up, so each time that it comes or repeats moves the robot for ``hold`` s of
    the bindings. The first motion takes over from the policy, as does the space bar, which also stands still; the
    person keeps control until tab hands back.
    """

    PARAMETERS = (
        Parameter('contract', 'metaworld', 'robot contract: a file, or a name in config/robots'),
        Parameter('bindings', '', 'what the keys do: a file, or a name in config/teleop; empty: the usual'),
        Parameter('rate', 20.0, 'of chunks, Hz', minimum=5.0, maximum=100.0),
        Parameter('instruction', '', 'words that are put in force at the start; empty: those on their topic'),
        Parameter('task', '', 'label of the episodes'),
        Parameter('panel_hz', 5.0, 'rate of the panel, Hz', minimum=0.5, maximum=20.0),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Load contract and bindings, open the topics, and take the terminal."""
        self._settings = parameters
        contract = RobotContract.load(find_contract(parameters.contract))
        settings = load_settings(KeyboardSettings, parameters.bindings)
        self._title = f'{contract.label}  flow-vla keyboard'
        self._keys = HeldKeys(contract, settings)
        self._drive = JogDrive(self, contract, Jog(contract, settings.jog), ChunkOutlet(self, contract))
        self._said: deque[str] = deque(maxlen=SAID)
        self._desk = TeleopDesk(self, contract, parameters.task, self._said.append, self._let_go)
        self._typed: str | None = None
        self._terminal = Terminal()

    def on_start(self) -> None:
        """Begin to read."""
        self._keys.release_all()
        if self._settings.instruction:
            self._desk.instruct(self._settings.instruction)
        periods = ((POLL_SECONDS, self._poll), (1 / self._settings.rate, self._tick),
                   (1 / self._settings.panel_hz, self._draw))
        self._own_timers = [self.create_timer(period, call, clock=wall_clock()) for period, call in periods]

    def on_stop(self) -> None:
        """Send nothing more; without chunks the executor brings the robot to rest."""
        for timer in self._own_timers:
            self.destroy_timer(timer)
        self._drive.abandon()

    def on_teardown(self) -> None:
        """Give the terminal back."""
        self._terminal.close()

    def _poll(self) -> None:
        for key in key_names(self._terminal.read()):
            if self._typed is not None and key != 'escape':
                self._type(key)
            elif (function := self._keys.press(key, time.monotonic())) is not None:
                self._do(function)
        if self._terminal.hung_up:
            self._do(Function.QUIT)

    def _tick(self) -> None:
        self._desk.look_after()
        deflections = self._keys.deflections(time.monotonic())
        if not deflections:
            self._drive.rest()
        elif complaint := self._drive.drive(deflections):
            self._say_once(f'cannot drive: {complaint}')

    def _do(self, function: Function) -> None:
        if function in (Function.FASTER, Function.SLOWER):
            self._drive.jog.faster(function == Function.FASTER)
        elif function == Function.WORDS:
            self._keys.release_all()
            self._typed = ''
        elif function == Function.QUIT:
            os.kill(os.getpid(), signal.SIGINT)
        elif function == Function.TAKE_OVER and not self._desk.has_leader:
            self._keys.release_all()
            if complaint := self._drive.drive({}):
                self._say_once(f'cannot drive: {complaint}')
        elif function != Function.BANK:
            if function in (Function.RELEASE, Function.ESTOP):
                self._typed = None
                self._let_go()
            self._desk.ask(function)

    def _type(self, key: str) -> None:
        """Add a key to the words; enter puts them in force."""
        if key == 'enter':
            words, self._typed = self._typed.strip(), None
            if words:
                self._desk.instruct(words)
        elif key == 'backspace':
            self._typed = self._typed[:-1]
        elif key == 'space' or len(key) == 1 and key.isprintable():
            self._typed += ' ' if key == 'space' else key

    def _let_go(self) -> None:
        """Send nothing until a key is pressed anew."""
        self._keys.release_all()
        self._drive.abandon()

    def _say_once(self, line: str) -> None:
        if not self._said or self._said[-1] != line:
            self._said.append(line)

    def _draw(self) -> None:
        recorder = self._desk.recorder
        typing = [f'new words: {self._typed}_   (enter: put in force, escape: STOP)'] if self._typed is not None else []
        self._terminal.draw([
            self._title, '', *describe_execution(self._desk.execution), *describe_recorder(recorder),
            f'in force  {self._desk.words or "no words yet"}', f'jog       {self._drive.jog.speed:.0%} of the limits',
            '', *describe_topics(recorder), '', *typing, *self._said, '', *self._help()])

    def _help(self) -> list[str]:
        motion = [f'{pair.plus} {pair.minus}  {pair.moves}' for pair in self._keys.motion]
        others = [f'{key.key}  {key.does}' for key in self._keys.keys]
        width = self._terminal.size[0] - 1
        return [*in_lines(motion, width), *in_lines(others, width)]


def main() -> None:
    """Run the node."""
    run(KeyboardNode)


if __name__ == '__main__':
    main()
