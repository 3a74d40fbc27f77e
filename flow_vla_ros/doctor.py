"""Checks a machine, one line for each check, and says what to do about each failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import platform
import shutil
import statistics
import subprocess
import sys
import time

from rich.console import Console
import typer

from flow_vla_ros.bringup import prepare_environment

__all__ = ['CHECKS', 'Finding', 'doctor', 'examine', 'probe_dds', 'probe_messages', 'probe_rendering']

PROBE_SECONDS = 60.0
ROUND_TRIPS = 50
LEAST_DISK, SCARCE_DISK = 0.2e9, 2e9
COLOURS = {'ok': 'green', 'warning': 'yellow', 'failed': 'red'}
ROS_ADVICE = 'source a ROS distribution, or on x86-64 Linux: pip install "flow_vla[ros]"'
BUILD_ADVICE = 'build the package: make setup, or colcon build and source install/setup.bash'
RENDER_ADVICE = 'Debian and Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0'
DDS_ADVICE = ('look for a firewall that closes UDP on this machine, for ROS_DISCOVERY_SERVER or a DDS profile in the '
              'environment, and for a full /dev/shm')
SCENE = """<mujoco><worldbody><light pos="0 0 3"/><camera name="eye" pos="0 -2 1" xyaxes="1 0 0 0 .5 1"/>
<geom type="sphere" size=".5" rgba="1 0 0 1"/></worldbody></mujoco>"""


class _Failed(Exception):
    """Reports a failed check, with what to do about it."""

    def __init__(self, detail: str, advice: str, state: str = 'failed') -> None:
        super().__init__(detail)
        self.advice, self.state = advice, state


@dataclass(frozen=True)
class Finding:
    """Holds the outcome of one check.

    Args:
        name: of the check.
        state: ok, warning or failed.
        detail: what was found.
        advice: what to do; empty when it is ok.
    """

    name: str
    state: str
    detail: str
    advice: str = ''


def doctor() -> None:
    """Check this machine: python, torch, ROS, messages, a DDS round trip, rendering and disk.

    Ends with exit code 1 if something that is needed fails.
    """
    prepare_environment()
    console, failed = Console(soft_wrap=True, highlight=False), False
    for name, check in CHECKS.items():
        finding = examine(name, check)
        failed |= finding.state == 'failed'
        console.print(f'[{COLOURS[finding.state]}]{finding.state:8}[/] {finding.name:10}', end='')
        console.print(finding.detail, markup=False)
        if finding.advice:
            console.print(f'{"":19}-> {finding.advice}', markup=False)
    if failed:
        raise typer.Exit(1)


def examine(name: str, check: Callable[[], str]) -> Finding:
    """Run one check; whatever goes wrong becomes a finding."""
    try:
        return Finding(name, 'ok', check())
    except _Failed as failure:
        return Finding(name, failure.state, str(failure), failure.advice)
    except Exception as error:
        return Finding(name, 'failed', f'{type(error).__name__}: {error}', 'this check itself broke: please report it')


def _python() -> str:
    return f'{platform.python_version()}, {sys.executable}'


def _torch() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:
        raise _Failed(str(error), 'make setup, or pip install torch') from error
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f'{torch.__version__}; devices: cpu ({torch.get_num_threads()} threads)' + ''.join(
        f', cuda:{index} {name}' for index, name in enumerate(devices))


def _numpy() -> str:
    try:
        import numpy
    except ImportError as error:
        raise _Failed(str(error), 'make setup, or pip install "numpy>=1.26"') from error
    return numpy.__version__


def _ros() -> str:
    try:
        import rclpy
        middleware = rclpy.get_rmw_implementation_identifier()
    except Exception as error:  # a missing middleware raises errors of rclpy's own
        raise _Failed(str(error), ROS_ADVICE) from error
    distribution = os.environ.get('ROS_DISTRO')
    return f'{distribution or "Python wheels"}, {middleware}, {Path(rclpy.__file__).parent}'


def _messages() -> str:
    return _probe('probe_messages', BUILD_ADVICE)


def _dds() -> str:
    return _probe('probe_dds', DDS_ADVICE)


def _rendering() -> str:
    try:
        import mujoco
    except ImportError as error:
        raise _Failed(f'{error}: the simulated robot is not available', 'pip install "flow_vla[sim]"; a real robot '
                      'does without', 'warning') from error
    return f'MuJoCo {mujoco.__version__}, {_probe("probe_rendering", RENDER_ADVICE)}'


def _disk() -> str:
    free = shutil.disk_usage('.').free
    found = f'{free / 1e9:.1f} GB free in {Path.cwd()}'
    if free < SCARCE_DISK:
        raise _Failed(found, 'free some space: two cameras take about 3 MB/s while recording',
                      'failed' if free < LEAST_DISK else 'warning')
    return found


CHECKS = {'python': _python, 'torch': _torch, 'numpy': _numpy, 'ros': _ros, 'messages': _messages, 'dds': _dds,
          'rendering': _rendering, 'disk': _disk}


def _probe(function: str, advice: str) -> str:
    """Run a function of this module in a process of its own, which may crash or hang."""
    code = f'from flow_vla_ros.doctor import {function}; print({function}())'
    return run_probe([sys.executable, '-c', code], advice)


def run_probe(command: Sequence[str], advice: str, seconds: float = PROBE_SECONDS) -> str:
    """Return the last line that a command prints; raise the failure that its end or its error output tells of."""
    environment = dict(os.environ, ROS_DOMAIN_ID=str(1 + (os.getpid() + 50) % 100))
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise _Failed(f'no answer within {seconds:.0f} s', advice) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ['']
        raise _Failed(said[-1] or f'ended with code {done.returncode}', advice)
    return (done.stdout.strip().splitlines() or [''])[-1]


def probe_messages() -> str:
    """Pass one of our messages through the middleware's serialisation."""
    from rclpy.serialization import deserialize_message, serialize_message

    from flow_vla import msg, srv
    sent = msg.ActionChunk(id=7, data=[1.0, 2.0])
    if deserialize_message(serialize_message(sent), msg.ActionChunk) != sent:
        raise SystemExit('a message came back changed')
    return f'{len(_interfaces(msg))} messages and {len(_interfaces(srv))} services compiled'


def _interfaces(module: object) -> list[str]:
    return [name for name in vars(module) if name[0].isupper() and '_' not in name]


def probe_dds() -> str:
    """Send chunks from one node to another and back, each in a context (a DDS participant) of its own."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    from flow_vla.msg import ActionChunk
    contexts = [rclpy.Context(), rclpy.Context()]
    spinners = []
    for context in contexts:
        rclpy.init(context=context, args=[])
        spinners.append(SingleThreadedExecutor(context=context))
    asking, answering = (rclpy.create_node(f'doctor_{index}', context=c) for index, c in enumerate(contexts))
    for spinner, node in zip(spinners, (asking, answering)):
        spinner.add_node(node)
    reply = answering.create_publisher(ActionChunk, 'doctor_answer', 10)
    answering.create_subscription(ActionChunk, 'doctor_question', reply.publish, 10)
    answers: list[int] = []
    asking.create_subscription(ActionChunk, 'doctor_answer', lambda message: answers.append(message.id), 10)
    ask = asking.create_publisher(ActionChunk, 'doctor_question', 10)

    def spin_until(predicate: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 10
        while not predicate():
            if time.monotonic() > deadline:
                raise SystemExit(f'waited 10 s in vain for {what}')
            for spinner in spinners:
                spinner.spin_once(timeout_sec=0.0005)

    spin_until(lambda: ask.get_subscription_count() and reply.get_subscription_count(), 'two nodes to find each other')
    milliseconds = []
    for number in range(1, ROUND_TRIPS + 1):
        start = time.perf_counter()
        ask.publish(ActionChunk(id=number, data=[0.0] * 64))
        spin_until(lambda wanted=number: wanted in answers, f'answer {number}')
        milliseconds.append(1e3 * (time.perf_counter() - start))
    for context in contexts:
        rclpy.shutdown(context=context)
    return f'{ROUND_TRIPS} round trips between two nodes, {statistics.median(milliseconds):.1f} ms each'


def probe_rendering() -> str:
    """Render one frame of a red ball off screen, and look whether it is there."""
    import mujoco

    from flow_vla_core.simulation.rendering import OffscreenRenderer
    renderer = OffscreenRenderer(64, 64)
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    image = renderer.render(model, data, 'eye')
    red, _, blue = image[32, 32]
    if not red > 2 * int(blue) + 50:
        raise SystemExit(f'the middle of the picture should be red and is {image[32, 32].tolist()}')
    renderer.close()
    used = next(name for name in ('osmesa', 'egl') if f'mujoco.{name}' in sys.modules)  # EGL is tried first
    return f'a frame rendered with {used}'
