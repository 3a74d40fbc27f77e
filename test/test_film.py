"""The film: which frames it keeps for which episode, and that it hurries when it has to."""

from __future__ import annotations

from itertools import count
import math
from pathlib import Path
import time

import av
import numpy as np
import pytest

pytest.importorskip('rclpy')

from rclpy.serialization import serialize_message

from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError
from flow_vla_core.evaluation.plots import Motion
from flow_vla_core.evaluation.report import EpisodeResult
from flow_vla_ros import codecs
from flow_vla_ros.film import STILL_FRAMES, Film, MotionTrace

STEP = 50_000_000


@pytest.fixture(scope='module')
def contract() -> RobotContract:
    return RobotContract.load(find_contract('metaworld'))


def show(film: Film, contract: RobotContract, stamps: range, missing: str = '') -> None:
    """Give the film one image of each camera for each stamp, as the middleware would."""
    for number in stamps:
        for camera in contract.cameras:
            image = np.full((*camera.resolution, 3), 10 * (number % 20), np.uint8)
            if camera.name != missing:
                film._keep(camera.name, bytes(serialize_message(codecs.encode_image(image, camera, number * STEP))))


def outcome(success: bool = True) -> EpisodeResult:
    return EpisodeResult('reach', 'go', 0, success, 10, 500)


def read(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format='rgb24') for frame in frames], frames[-1].time


def test_only_whole_frames_inside_of_an_episode_are_shown(contract: RobotContract, tmp_path: Path) -> None:
    with Film(contract, tmp_path) as film:
        show(film, contract, range(5, 10))
        show(film, contract, range(10, 12), missing='gripper_cam')
        show(film, contract, range(12, 20))
        film.cut(outcome(), (7 * STEP, 14 * STEP))
        count = film.write_video(tmp_path / 'a.mp4', 20.0)
    frames, _ = read(tmp_path / 'a.mp4')
    assert len(frames) == count == 5 + STILL_FRAMES
    levels = [round(float(frame[:300, :300].mean()), -1) for frame in frames]
    assert levels == [70, 80, 90, 120, 130] + [140] * STILL_FRAMES


def test_a_slow_machine_leaves_frames_out_and_keeps_the_time(contract: RobotContract, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    with Film(contract, tmp_path) as film:
        show(film, contract, range(80))
        film.cut(outcome(), (0, 19 * STEP))
        film.cut(outcome(), (20 * STEP, 79 * STEP))
        every = film.write_video(tmp_path / 'all.mp4', 20.0, seconds=1e6)
        clock = count(step=1.0)
        monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
        fewer = film.write_video(tmp_path / 'few.mp4', 20.0, seconds=3.0)
    first, stride = 19 + STILL_FRAMES, 4  # 31 frames took 2 s, 60 have to be done in 1 s
    assert every == 80 + 2 * (STILL_FRAMES - 1)
    assert fewer == first + math.ceil(59 / stride) + STILL_FRAMES / stride
    assert read(tmp_path / 'few.mp4')[1] == pytest.approx(read(tmp_path / 'all.mp4')[1], abs=0.2)


def test_the_gif_holds_the_shortest_success_of_each_task(contract: RobotContract, tmp_path: Path) -> None:
    with Film(contract, tmp_path) as film:
        show(film, contract, range(30))
        film.cut(outcome(success=False), (0, 20 * STEP))
        assert film.write_gif(tmp_path / 'none.gif', 20.0) == 0
        film.cut(outcome(), (0, 12 * STEP))
        assert film.write_gif(tmp_path / 'one.gif', 20.0) == 12 / 3 + STILL_FRAMES / 3


def test_nothing_is_left_on_the_disk(contract: RobotContract, tmp_path: Path) -> None:
    with Film(contract, tmp_path) as film:
        show(film, contract, range(3))
        assert list(tmp_path.iterdir()) == []


def traced(contract: RobotContract) -> Motion:
    trace = MotionTrace(contract)
    values = np.arange(len(trace.stream.names))
    for number in range(10):
        trace._on_command(codecs.encode_action(trace.part, np.full(trace.part.dim, number), number * STEP))
        trace._on_position(codecs.encode_state(trace.stream, -number * values, number * STEP))
    return trace.between(4 * STEP, 6 * STEP, np.array([0, 5, 9]) * STEP, 'reach')


@pytest.mark.parametrize('robot', ['metaworld', 'so101'])
def test_motion_is_cut_out_in_seconds_since_the_start(robot: str) -> None:
    motion = traced(RobotContract.load(find_contract(robot)))
    np.testing.assert_allclose(motion.command_times, [0, 0.05, 0.1])
    np.testing.assert_allclose(motion.commands[:, 0], [4, 5, 6])
    np.testing.assert_allclose(motion.chunk_times, [0.05])


def test_what_a_velocity_brought_about_is_the_slope_of_the_position(contract: RobotContract) -> None:
    motion = traced(contract)
    np.testing.assert_allclose(motion.measured_times, [0.025, 0.075])
    np.testing.assert_allclose(motion.measured, np.tile([0, -20, -40], (2, 1)), rtol=1e-5)


def test_what_a_position_brought_about_is_the_measured_one() -> None:
    motion = traced(RobotContract.load(find_contract('so101')))
    np.testing.assert_allclose(motion.measured_times, [0, 0.05, 0.1])
    np.testing.assert_allclose(motion.measured, -np.outer([4, 5, 6], np.arange(5)))


def test_a_part_that_nothing_measures_is_named() -> None:
    contract = RobotContract.load(find_contract('so101'))
    stream = contract.state[0].model_copy(update={'names': ('elbow_flex',)})
    with pytest.raises(ConfigError, match='actions.arm: no state stream measures shoulder_pan'):
        MotionTrace(contract.model_copy(update={'state': (stream,)}))
