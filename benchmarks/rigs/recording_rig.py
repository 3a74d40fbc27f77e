"""Runs the robot with three cameras and the recorder as processes, for the benchmarks of recording."""

from __future__ import annotations

import os
from pathlib import Path
import signal
import subprocess
import sys
import time
from typing import Any

from rigs.camera_robot import contract_text, read_log
from rigs.listener import Listener

from flow_vla.msg import Episode
from flow_vla.srv import StartEpisode, StopEpisode
from flow_vla_core.contract import RobotContract
from flow_vla_core.errors import FlowVLAError
from flow_vla_ros.bringup import ManagedProcesses, node_spec

START_SECONDS = 90.0
ANSWER_SECONDS = 60.0
CHUNK = 4 * 2 ** 20


class RecordingRig:
    """Publishes and records; a context manager that ends every process it started.

    Args:
        out: folder for contract, logs and bags.
        noise: of the images, grey levels.
        parameters: of the recorder.
    """

    def __init__(self, out: Path, noise: float, **parameters: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.bags, self.log = out, out / 'bags', out / 'published.bin'
        self._noise = noise
        self._parameters = {'autostart': True, 'folder': str(self.bags.resolve()), **parameters}
        path = out / 'contract.yaml'
        path.write_text(contract_text())
        self.contract, self._path = RobotContract.load(path), path

    def __enter__(self) -> RecordingRig:
        self._processes = ManagedProcesses(logs=self.out / 'logs')
        self._processes.__enter__()
        words = [sys.executable, str(Path(__file__).with_name('camera_robot.py')), str(self._path), str(self.log),
                 '--noise', str(self._noise)]
        self.robot = subprocess.Popen(words, start_new_session=True)
        self._listener = Listener('benchmark')
        self._clients = {'start': self._listener.node.create_client(StartEpisode, 'recorder/start'),
                         'stop': self._listener.node.create_client(StopEpisode, 'recorder/stop')}
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.robot.send_signal(signal.SIGINT)
            self.robot.wait(20)
        except subprocess.TimeoutExpired:
            self.robot.kill()
        finally:
            self._listener.__exit__()
            self._processes.__exit__(None, None, None)

    def start_recorder(self, **parameters: Any) -> subprocess.Popen:
        """Start the recorder's process."""
        spec = node_spec('recorder', contract=str(self._path.resolve()), parameters={**self._parameters, **parameters})
        return self._processes.start(spec)

    def begin(self) -> Path:
        """Begin an episode as soon as the recorder agrees; return its folder."""
        request = StartEpisode.Request(instruction='do nothing', task='benchmark')
        end = time.monotonic() + START_SECONDS
        while not (answer := self._call('start', request)).success:
            if time.monotonic() > end:
                raise FlowVLAError(f'recorder/start: {answer.message}')
            time.sleep(0.2)
        return Path(answer.path)

    def stop(self) -> StopEpisode.Response:
        """End the episode and keep it."""
        answer = self._call('stop', StopEpisode.Request(keep=True, outcome=Episode.SUCCESS))
        if not answer.success:
            raise FlowVLAError(f'recorder/stop: {answer.message}')
        return answer

    def published(self) -> dict[str, list[int]]:
        """Return the stamps that were published on each topic so far, ns."""
        topics = [part.topic for part in (*self.contract.cameras, *self.contract.state, *self.contract.actions)]
        return {f'/{topics[number]}': list(stamps) for number, stamps in read_log(self.log).items()}

    def _call(self, name: str, request: object) -> Any:
        """Ask until an answer comes; it is lost while the two ends still connect."""
        client, end = self._clients[name], time.monotonic() + START_SECONDS
        self._listener.wait(client.service_is_ready, START_SECONDS, f'the service recorder/{name}')
        while time.monotonic() < end:
            future = client.call_async(request)
            if self._listener.becomes_true(future.done, ANSWER_SECONDS):
                return future.result()
        raise FlowVLAError(f'recorder/{name}: no answer')


def cpu_seconds(process: subprocess.Popen) -> float:
    """Return the time that a process has had of all cores, s."""
    fields = Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def plain_write_rate(folder: Path, size: int = 500 * 2 ** 20) -> float:
    """Return how fast plain writes reach the disk, fdatasync included, MB/s."""
    path, block = folder / 'plain', os.urandom(CHUNK)
    began = time.monotonic()
    with path.open('wb', buffering=0) as file:
        for _ in range(size // CHUNK):
            file.write(block)
        os.fdatasync(file.fileno())
    seconds = time.monotonic() - began
    path.unlink()
    return size / seconds / 1e6
