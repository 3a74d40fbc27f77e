"""Plays bags: recorded messages at their times, with ROS time, pauses, and nobody who obeys recorded commands."""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import select
import signal
import sys
import termios
import threading
import traceback
import tty

from rosgraph_msgs.msg import Clock
from std_srvs.srv import SetBool

from flow_vla_core.data.bag_reader import BagMessage
from flow_vla_core.data.bags import need_bags
from flow_vla_core.data.playback import Begin, End, PlayClock, Player, Playlist
from flow_vla_core.data.read_ahead import ReadAhead
from flow_vla_core.errors import Code, ConfigError, FlowVLAError
from flow_vla_ros import codecs, qos
from flow_vla_ros.diagnostics import DiagnosticsOutbox, wall_clock
from flow_vla_ros.lifecycle import FlowLifecycleNode, Parameter, Parameters, run
from flow_vla_ros.playing import COMMANDS, Stage

__all__ = ['Keys', 'PlayerNode', 'main']

LOOK_SECONDS = 0.1   # between two looks at who is there
SETTLE_SECONDS = 1.0  # in which others are found before anything is played


class PlayerNode(FlowLifecycleNode):
    """Publishes what bags hold, in a thread of its own, on an absolute schedule of their log times.

    Commands are played below ``/played``, where the policy in shadow mode and the replay trainer hear them and no
    controller does, unless ``commands`` says otherwise. While another node publishes one of the contract's streams, as
    on a robot that runs, nothing is played: a policy could not tell the recorded robot from the real one.
    """

    PARAMETERS = (
        Parameter('contract', '', 'robot contract: a file, or a name in config/robots; empty: what the bags say'),
        Parameter('bags', [''], 'rosbag2 folders, or folders of them, played one after another'),
        Parameter('rate', 1.0, 'recorded seconds per second', minimum=0.001, maximum=1000.0),
        Parameter('loop', False, 'begin again after the last bag'),
        Parameter('start_offset', 0.0, 'leave out so much of the beginning, s', minimum=0.0),
        Parameter('clock_hz', 100.0, 'rate of /clock, Hz; 0: no clock', minimum=0.0, maximum=1000.0),
        Parameter('gap', 0.5, 'time before the first message of each bag, s', minimum=0.0, maximum=60.0),
        Parameter('topics', [''], 'play only these; empty: all'),
        Parameter('commands', 'aside', 'play commands below /played, leave them out, or play them to whoever obeys',
                  choices=COMMANDS),
        Parameter('paused', False, 'begin paused'),
        Parameter('wait_for_subscribers', False, 'begin when every stream of the contract has a subscriber'),
        Parameter('alone', True, "play nothing while other nodes publish the contract's streams"),
        Parameter('read_ahead_mb', 64, 'memory for messages that are read ahead', minimum=1, maximum=65536),
        Parameter('exit_at_end', False, 'end the process after the last bag'),
        Parameter('keys', False, 'pause and go on with the space key, if there is a terminal'),
    )

    def on_setup(self, parameters: Parameters) -> None:
        """Open the bags and offer their topics."""
        self._settings = parameters
        bags = _find([Path(bag).expanduser() for bag in parameters.bags if bag])
        topics = [topic for topic in parameters.topics if topic]
        self._stage = Stage(self, bags, parameters.commands, parameters.contract, topics)
        self._ros_clock = self.create_publisher(Clock, '/clock', qos.CLOCK) if parameters.clock_hz else None
        self._diagnostics = DiagnosticsOutbox(self, 'bags')
        self._items = ReadAhead(Playlist(bags, topics, parameters.start_offset, parameters.loop),
                                parameters.read_ahead_mb * 2 ** 20)
        clock = PlayClock(parameters.rate)
        self._player = Player(self._items, clock, self._emit, self._tell_time,
                              parameters.clock_hz, parameters.gap)
        self._player.pause(parameters.paused)
        self._state, self._bag, self._time = 'waiting', '', 0
        self._quit = threading.Event()
        self._keys = Keys(self._toggle) if parameters.keys else None
        self._thread = threading.Thread(target=self._run, name='player', daemon=True)
        self.create_service(SetBool, '~/pause', self._on_pause)
        self.create_timer(1.0, self._report, clock=wall_clock())

    def on_start(self) -> None:
        """Begin to play."""
        self._thread.start() if not self._thread.is_alive() else self._player.pause(False)

    def on_stop(self) -> None:
        """Pause."""
        self._player.pause(True)

    def on_teardown(self) -> None:
        """End the threads."""
        self._quit.set()
        self._player.stop()
        self._items.close()
        if self._thread.ident is not None:
            self._thread.join(10.0)
        if self._keys is not None:
            self._keys.close()

    def _run(self) -> None:
        try:
            if self._wait_for_others():
                self._state = 'playing'
                self._player.run()
                self._stage.wait_for_readers()
                self._state = 'stopped' if self._quit.is_set() else 'done'
        except FlowVLAError as error:
            self._fail(str(error))
        except Exception:
            self._fail(traceback.format_exc())
        if self._state != 'stopped':
            self._tell_end()

    def _wait_for_others(self) -> bool:
        """Give the graph time to be found, and wait for subscribers if that is asked for; tell whether to play."""
        settle = round(SETTLE_SECONDS / LOOK_SECONDS)
        while settle > 0 or (self._settings.wait_for_subscribers and self._stage.missing_readers()):
            settle -= 1
            if self._quit.wait(LOOK_SECONDS):
                self._state = 'stopped'
                return False
            if settle == 0 and self._settings.wait_for_subscribers and (missing := self._stage.missing_readers()):
                self.get_logger().info(f'waiting for subscribers of {", ".join(missing)}')
        self._check_alone()
        if obeying := self._stage.obeying():
            self.get_logger().warning(f'recorded commands go to {", ".join(obeying)}')
        return True

    def _check_alone(self) -> None:
        if self._settings.alone and (others := self._stage.others()):
            raise FlowVLAError(f"others publish the contract's streams: {', '.join(others)}; play in another "
                               'ROS_DOMAIN_ID, or set alone to false')

    def _emit(self, item: Begin | BagMessage | End) -> None:
        if isinstance(item, Begin):
            self._bag = str(item.bag.path)
            self._check_alone()
        elif isinstance(item, BagMessage):
            self._time = item.log_time
        self._stage.emit(item)

    def _tell_time(self, time: int) -> None:
        if self._ros_clock is not None:
            self._ros_clock.publish(Clock(clock=codecs.to_time(time)))

    def _fail(self, message: str) -> None:
        self._state = 'failed'
        self.get_logger().error(f'playing ended: {message}')

    def _tell_end(self) -> None:
        late = self._player.lateness
        self.get_logger().info(
            f'{self._state}: {self._player.messages} messages, late by {1e3 * late.quantile(0.5):.2f} ms in the median '
            f'and {1e3 * late.quantile(0.99):.2f} ms at the 99th percentile')
        if self._settings.exit_at_end:
            os.kill(os.getpid(), signal.SIGINT)

    def _toggle(self) -> None:
        self._pause(not self._player.paused)

    def _pause(self, paused: bool) -> None:
        self._player.pause(paused)
        self.get_logger().info('paused' if paused else 'playing on')

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._pause(request.data)
        response.success, response.message = True, 'paused' if request.data else 'playing'
        return response

    def _report(self) -> None:
        late = self._player.lateness
        state = 'paused' if self._player.paused else self._state
        self._diagnostics.publish(self._state != 'failed', Code.OK, state, {
            'bag': self._bag, 'time': f'{self._time * 1e-9:.3f} s', 'messages': self._player.messages,
            'late, median': f'{1e3 * late.quantile(0.5):.2f} ms',
            'late, 99th percentile': f'{1e3 * late.quantile(0.99):.2f} ms'})


class Keys:
    """Calls back for each press of the space key in a terminal; without one it does nothing.

    Args:
        on_space: called in a thread of its own.
    """

    def __init__(self, on_space: Callable[[], None]) -> None:
        self._on_space = on_space
        self._before = termios.tcgetattr(sys.stdin) if sys.stdin and sys.stdin.isatty() else None
        self._reader, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._watch, name='keys', daemon=True)
        if self._before is not None:
            tty.setcbreak(sys.stdin)
            self._thread.start()

    def close(self) -> None:
        """Put the terminal back as it was."""
        os.write(self._writer, b'x')
        if self._before is not None:
            self._thread.join()
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([sys.stdin, self._reader], [], [])
            if self._reader in ready:
                return
            key = os.read(sys.stdin.fileno(), 1)
            if not key:
                return
            if key == b' ':
                self._on_space()


def _find(paths: list[Path]) -> list[Path]:
    """Return the bags at or below some places."""
    if not paths:
        raise ConfigError('bags: give at least one rosbag2 folder')
    return need_bags(paths)


def main() -> None:
    """Run the node."""
    run(PlayerNode)


if __name__ == '__main__':
    main()
