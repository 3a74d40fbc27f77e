"""Tests that abandoned shared memory is freed, and only that."""

from __future__ import annotations

import fcntl
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from flow_vla_ros.shared_memory import FOLDER, remove_abandoned

NODE = """
import rclpy, sys
rclpy.init()
node = rclpy.create_node('leaver')
node.create_publisher(__import__('std_msgs.msg').msg.String, 'words', 1)
print('ready', flush=True)
sys.stdin.read()
"""


def segment(folder: Path, name: str, size: int) -> Path:
    path = folder / f'fastdds_{name}'
    path.write_bytes(bytes(size))
    (folder / f'fastdds_{name}_el').touch()
    return path


def test_only_segments_without_an_owner_go(tmp_path: Path) -> None:
    left, kept, foreign = segment(tmp_path, 'left', 1000), segment(tmp_path, 'kept', 2000), tmp_path / 'other_el'
    (tmp_path / 'sem.fastdds_left_mutex').write_bytes(bytes(32))
    foreign.touch()
    with open(f'{kept}_el') as owner:
        fcntl.flock(owner, fcntl.LOCK_SH)
        assert remove_abandoned(tmp_path) == 1032
        assert {path.name for path in tmp_path.iterdir()} == {kept.name, f'{kept.name}_el', foreign.name}
    assert remove_abandoned(tmp_path) == 2000 and not left.exists()


def test_a_killed_node_leaves_memory_that_is_freed(ros_environment) -> None:
    if not FOLDER.is_dir():
        pytest.skip(f'there is no {FOLDER}')
    before = set(FOLDER.glob('fastdds_*_el'))
    nodes = [subprocess.Popen([sys.executable, '-c', NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
             for _ in range(2)]
    try:
        for node in nodes:
            assert node.stdout.readline() == b'ready\n'
        nodes[0].send_signal(signal.SIGKILL)
        nodes[0].wait(20)
        made = set(FOLDER.glob('fastdds_*_el')) - before
        if not made:
            pytest.skip('the middleware uses no shared memory here')
        remove_abandoned()
        left = made & set(FOLDER.glob('fastdds_*_el'))
        assert left < made and left, 'what the killed node had is gone, what the other one has is there'
    finally:
        for node in nodes:
            node.kill()
            node.communicate(timeout=20)
        remove_abandoned()
