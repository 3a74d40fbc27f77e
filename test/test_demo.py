"""The demo: what it leaves, that it fits into its time, and that it leaves no process, however it ends."""

from __future__ import annotations

from collections.abc import Callable
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import av
import numpy as np
from PIL import Image
import psutil
import pytest

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import CheckpointError
from flow_vla_core.simulation.metaworld import DEMO_TASKS, MAX_STEPS, TASKS
from flow_vla_core.simulation.robots import kind_of
from flow_vla_ros import evaluate
from flow_vla_ros.demo import EPISODES, LEAST_STEPS, RESERVE_SECONDS, SECONDS, step_limit

HERE = Path(__file__).parent


@pytest.mark.parametrize('robot', ['metaworld', 'so101'])
def test_six_tasks_of_each_robot(robot: str):
    kind = kind_of(RobotContract.load(find_contract(robot)))
    assert len(set(kind.demo_tasks)) == 6 and set(kind.demo_tasks) <= set(kind.tasks)


def test_the_pair_of_tasks_with_one_scene_is_shown():
    assert {'faucet-open', 'faucet-close'} <= set(DEMO_TASKS)


def test_every_kind_of_task_and_every_cube_is_shown():
    tasks = kind_of(RobotContract.load(find_contract('so101'))).demo_tasks
    words = {word for task in tasks for word in task.split('-')}
    assert words == {'reach', 'push', 'lift', 'red', 'green', 'blue', 'left', 'right'}


@pytest.mark.parametrize('overhead', [0.5, 3.0])
def test_eighteen_failures_fit_into_the_time(overhead: float):
    elapsed, limits = 20.0, []
    for episode in range(len(DEMO_TASKS) * EPISODES, 0, -1):
        limits.append(step_limit(SECONDS - elapsed, episode, 0.05, MAX_STEPS))
        elapsed += limits[-1] * 0.05 + overhead
    assert elapsed <= SECONDS + 1
    assert limits[0] == MAX_STEPS and min(limits) >= LEAST_STEPS


def test_quick_successes_leave_every_episode_its_full_time():
    left = SECONDS - 20
    for episode in range(18, 0, -1):
        assert step_limit(left, episode, 0.05, MAX_STEPS) == MAX_STEPS
        left -= 4.5 + 1
    assert RESERVE_SECONDS >= LEAST_STEPS * 0.05


def test_each_robot_has_a_policy_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for robot in ('metaworld', 'so101', 'mine'):
        (tmp_path / robot).mkdir()
    monkeypatch.setattr(evaluate, 'default_checkpoint', lambda robot: tmp_path / robot)
    assert evaluate.checkpoint_folder(None, 'so101') == tmp_path / 'so101'
    assert evaluate.checkpoint_folder(tmp_path / 'mine', 'so101') == tmp_path / 'mine'
    with pytest.raises(CheckpointError, match='no checkpoint at .*so102'):
        evaluate.checkpoint_folder(None, 'so102')


def start(out: Path, environment: dict[str, str], tasks: str = 'drawer-close,faucet-close'):
    path = os.pathsep.join(filter(None, [str(HERE), environment.get('PYTHONPATH')]))
    return subprocess.Popen([sys.executable, str(HERE / 'expert_demo.py'), str(out), tasks], text=True,
                            env={**environment, 'PYTHONPATH': path, 'COLUMNS': '200'}, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


def nodes_of(process: subprocess.Popen):
    """Return every process that descends from the demo, which must be running."""
    assert process.poll() is None, process.stdout.read()
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(predicate: Callable[[], object], seconds: float = 90.0):
    end = time.monotonic() + seconds
    while not (value := predicate()):
        assert time.monotonic() < end, f'not true within {seconds} s'
        time.sleep(0.05)
    return value


@pytest.mark.ros
def test_the_demo_leaves_report_video_and_plots(ros_environment: dict[str, str], tmp_path: Path):
    out = tmp_path / 'demo'
    process = start(out, ros_environment)
    nodes = wait_until(lambda: len(nodes_of(process)) >= 3 and nodes_of(process))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert not any(node.is_running() and node.status() != 'zombie' for node in nodes)
    report = json.loads((out / 'report.json').read_text())
    assert {task: (r['episodes'], r['successes']) for task, r in report['tasks'].items()} == {
        'drawer-close': (1, 1), 'faucet-close': (1, 1)}
    assert report['tasks']['faucet-close']['instruction'] == TASKS['faucet-close']
    for key in ('late_tick_fraction', 'control_hz', 'seconds'):
        assert report[key] is not None
    assert report['chunk_ms']['p99'] == 1.5 and report['camera_to_command_ms']['p50'] > 0
    for name in ('report.json', 'motion.png', 'latency.png', 'demo.mp4', 'demo.gif'):
        assert f'written: {out / name}' in output.replace('\n', '')
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        'contract.yaml', 'demo.gif', 'demo.mp4', 'latency.png', 'motion.png', 'report.json']
    check_video(out, report)


def check_video(out: Path, report: dict):
    steps = sum(episode['steps'] for episode in report['episodes'])
    with av.open(str(out / 'demo.mp4')) as container:
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert frames[0].shape == (2 * 168 + 40, 4 * 168, 3)
    assert 0.8 * steps < len(frames) <= steps + 40
    assert frames[0][:336, :336].std() > 10 and frames[0][:336, 336:].std() > 10
    green = [((frame[336:, 400:, 1].astype(int) - frame[336:, 400:, 0]) > 60).sum() for frame in frames]
    assert green[0] == 0 and green[-1] > 50, 'success is written on the last frame only'
    with Image.open(out / 'demo.gif') as gif:
        assert gif.n_frames > 5
    assert (out / 'demo.gif').stat().st_size <= 3_000_000
    with Image.open(out / 'motion.png') as motion:
        assert np.asarray(motion.convert('L')).std() > 5


@pytest.mark.ros
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('moment', ['starting', 'moving'])
def test_an_interrupted_demo_leaves_no_process(ros_environment: dict[str, str], tmp_path: Path, number: signal.Signals,
                                                 moment: str):
    out = tmp_path / 'demo'
    process = start(out, ros_environment)
    nodes = wait_until(lambda: len(nodes_of(process)) >= 3 and nodes_of(process))
    if moment == 'moving':
        wait_until(lambda: '1/2' in process.stdout.readline())
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    process.stdout.close()
    wait_until(lambda: not any(node.is_running() and node.status() != psutil.STATUS_ZOMBIE for node in nodes), 10.0)
    assert not list(out.glob('*.raw')) and not (out / 'report.json').exists()
