"""Episodes out of bags: where they are cut, which words hold, actions from state, compressed images, holes."""

from __future__ import annotations

from collections.abc import Iterable
import logging
from pathlib import Path
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, START, TYPES, header, make, message, record, serialize, steps
import cv2
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract
from flow_vla_core.data import ReadOptions, read_episode, read_episodes
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.mcap_records import CHUNK, MAGIC, records
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import ConfigError, DataError, ImageInvalid
from flow_vla_core.messages import decode_image
from flow_vla_core.types import Actor

STARTED, ENDED, INSTRUCTED, MARKED, DISCARDED = range(5)
POSE = '/ee_pose'
Extra = tuple[str, str, int, Any]


def pack(kind: str, **values: Any) -> bytes:
    return bytes(typestore().serialize_cdr(make(kind, **values), kind.replace('/', '/msg/')))


def mark(step: float, event: int, name: str = 'a', words: str = '', outcome: int = 0) -> Extra:
    """Return an Episode message a little before a step."""
    time = START + round(step * DT) - 1
    data = pack('flow_vla/Episode', header=header(time), id=name, event=event, instruction=words, task='tap',
                outcome=outcome, contract='')
    return '/episode', 'flow_vla/msg/Episode', time, data


def word(step: float, text: str) -> Extra:
    return '/instruction', 'std_msgs/msg/String', START + round(step * DT), pack('std_msgs/String', data=text)


def flag(step: float, value: bool) -> Extra:
    return '/recording', 'std_msgs/msg/Bool', START + round(step * DT) - 1, pack('std_msgs/Bool', data=value)


def make_bag(folder: Path, count: int, extras: Iterable[Extra] = (), marks: dict[str, str] | None = None,
             leave_out: Iterable[str] = ('/instruction',)) -> Path:
    """Record steps whose numbers tell which they are, and further messages."""
    extras = list(extras)
    samples = [(topic, TYPES[topic], stamp, serialize(topic, built)) for topic, stamp, built in steps(count, leave_out)]
    types = {topic: kind for topic, kind, _, _ in [*samples, *extras]}
    writer = EpisodeWriter(folder, [Topic(*pair) for pair in types.items()], marks or {})
    for topic, _, stamp, data in sorted([*samples, *extras], key=lambda sample: sample[2]):
        writer.write(topic, data, stamp, stamp)
    writer.close()
    return folder


def shown(folder: Path, **options: Any) -> list[tuple[str, str, list[int]]]:
    """Return words, outcome and the numbers of the steps of each episode."""
    return [(episode.instruction, episode.outcome, episode.state[:, 0].astype(int).tolist())
            for episode in read_episodes(folder, CONTRACT, ReadOptions(**options))]


def test_marks_cut_a_long_recording(tmp_path: Path) -> None:
    extras = [mark(2, STARTED, 'a', 'open it'), mark(6, ENDED, 'a', outcome=1), mark(8, STARTED, 'b', 'close it'),
              mark(11, DISCARDED, 'b'), mark(12, STARTED, 'c', 'turn it'), mark(15, INSTRUCTED, 'c', 'leave it'),
              mark(17, ENDED, 'c'), mark(19, MARKED, 'c', outcome=2)]
    assert shown(make_bag(tmp_path / 'bag', 20, extras)) == [
        ('open it', 'success', [2, 3, 4, 5]), ('turn it', 'failure', [12, 13, 14]), ('leave it', 'failure', [15, 16])]


def acts(step: float, source: int) -> Extra:
    """Return the executor's status a little before a step."""
    time = START + round(step * DT) - 2
    blank = typestore().types['builtin_interfaces/msg/Duration'](sec=0, nanosec=0)
    numbers = dict.fromkeys(('chunk_id', 'chunk_step', 'ticks', 'late_ticks', 'limited_ticks', 'accepted_chunks',
                             'refused_chunks', 'state', 'code'), 0)
    none = np.zeros(0, np.uint16), np.zeros(0, np.uint64)
    return '/executor/status', 'flow_vla/msg/ExecutionStatus', time, pack(
        'flow_vla/ExecutionStatus', header=header(time), source=source, message='', chunk_age=blank,
        refusal_codes=none[0], refusal_counts=none[1], **numbers,
        **dict.fromkeys(('delay', 'confidence', 'speed', 'tick_ms'), 0.0))


def test_who_acts_is_known_from_the_first_frame_of_each_part(tmp_path: Path) -> None:
    extras = [acts(1, Actor.PERSON), mark(2, STARTED, 'a', 'open it'), mark(6, ENDED, 'a'),
              acts(7, Actor.POLICY), mark(8, STARTED, 'b', 'close it'), mark(11, ENDED, 'b')]
    first, second = read_episodes(make_bag(tmp_path / 'bag', 14, extras), CONTRACT)
    assert first.actors.tolist() == [Actor.PERSON] * 4 and second.actors.tolist() == [Actor.POLICY] * 3


def test_who_acted_long_before_a_part_does_not_count(tmp_path: Path) -> None:
    extras = [acts(1, Actor.PERSON), mark(26, STARTED, 'a', 'open it'), mark(30, ENDED, 'a')]
    assert set(read_episode(make_bag(tmp_path / 'bag', 32, extras), CONTRACT).actors.tolist()) == {Actor.NOBODY}


def test_an_episode_that_was_never_ended_goes_to_the_next_one_or_the_end(tmp_path: Path) -> None:
    extras = [mark(2, STARTED, 'a', 'open it'), mark(5, STARTED, 'b', 'close it')]
    assert shown(make_bag(tmp_path / 'bag', 8, extras)) == [
        ('open it', 'unknown', [2, 3, 4]), ('close it', 'unknown', [5, 6, 7])]


def test_other_words_midway_divide_an_episode_of_our_recorder(tmp_path: Path) -> None:
    extras = [mark(0, STARTED, 'a', 'open the faucet'), mark(4, INSTRUCTED, 'a', 'close it'), mark(9, ENDED, 'a')]
    bag = make_bag(tmp_path / 'bag', 8, extras, MARKS)
    assert shown(bag) == [('open the faucet', 'success', [0, 1, 2, 3]), ('close it', 'success', [4, 5, 6, 7])]
    with pytest.raises(DataError, match='holds 2 episodes, not one'):
        read_episode(bag, CONTRACT)
    assert len(read_episode(bag, CONTRACT, ReadOptions(cut='whole'))) == 8


def test_words_cut_a_recording_without_marks(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / 'bag', 12, [word(3, 'open it'), word(5, 'open it'), word(7, ' close it ')])
    expected = [('open it', 'unknown', list(range(7))), ('close it', 'unknown', [7, 8, 9, 10, 11])]
    assert shown(bag) == shown(bag, cut='instruction') == expected
    assert shown(bag, cut='whole') == [('open it', 'unknown', list(range(12)))]


def test_words_by_option_are_for_bags_without_any(tmp_path: Path) -> None:
    silent = make_bag(tmp_path / 'silent', 4)
    with pytest.raises(DataError, match='silent: no instruction in the bag; give one'):
        read_episodes(silent, CONTRACT)
    assert shown(silent, instruction='wave') == [('wave', 'unknown', [0, 1, 2, 3])]
    assert shown(make_bag(tmp_path / 'told', 4, [word(0, 'open it')]), instruction='wave')[0][0] == 'open it'
    with pytest.raises(DataError, match='/instruction: the instruction is empty'):
        read_episodes(make_bag(tmp_path / 'blank', 4, [word(0, ' ')]), CONTRACT)


def test_a_topic_cuts_a_recording(tmp_path: Path) -> None:
    flags = [flag(2, True), flag(3, True), flag(5, False), flag(8, True)]
    bag = make_bag(tmp_path / 'bag', 10, flags)
    assert shown(bag, cut='recording', instruction='go') == [('go', 'unknown', [2, 3, 4]), ('go', 'unknown', [8, 9])]
    texts = [('/border', 'std_msgs/msg/String', START + step * DT - 1, pack('std_msgs/String', data='x'))
             for step in (3, 7)]
    bag = make_bag(tmp_path / 'texts', 10, texts)
    assert [numbers for _, _, numbers in shown(bag, cut='/border', instruction='go')] == [
        [0, 1, 2], [3, 4, 5, 6], [7, 8, 9]]
    with pytest.raises(DataError, match='texts: /nothing: not recorded; there are '):
        shown(bag, cut='/nothing', instruction='go')
    with pytest.raises(DataError, match='no message begins an episode'):
        shown(make_bag(tmp_path / 'off', 4, [flag(1, False)]), cut='recording', instruction='go')


def test_a_part_that_cannot_be_used_is_told_and_the_others_are_read(tmp_path: Path,
                                                                    caplog: pytest.LogCaptureFixture) -> None:
    flags = [flag(2, True), flag(5, False), flag(20, True)]
    with caplog.at_level(logging.WARNING):
        found = shown(make_bag(tmp_path / 'bag', 10, [*flags, word(21, 'go')]), cut='recording')
    assert found == [('go', 'unknown', [2, 3, 4])]
    assert f'{tmp_path}/bag: no messages' in caplog.text


@pytest.mark.parametrize('values', [{'actions': 'nothing'}, {'lead': 0}, {'threads': -1}, {'cut': ''}])
def test_options_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ReadOptions(**values)


def with_actions(*parts: dict[str, Any]) -> RobotContract:
    """Return a contract with other actions; each part replaces values of the twist or the gripper."""
    base = {'joint_position': 1, 'joint_velocity': 1, 'gripper': 1}
    limits = {'min': (-9.0,) * 3, 'max': (9.0,) * 3, 'velocity': (9.0,) * 3}
    found = []
    for part in parts:
        count = len(part.get('names', ('gripper',)))
        values = {key: bound[:1] * count for key, bound in limits.items()}
        source = CONTRACT.actions[1 if part['kind'] in base else 0].model_dump()
        found.append({**source, **part, 'limits': values})
    return RobotContract.parse({**CONTRACT.model_dump(), 'actions': found})


@pytest.mark.parametrize('lead', [1, 3])
def test_actions_come_from_later_state(tmp_path: Path, lead: int) -> None:
    """The k-th pose is at x = k and the k-th gripper at k, so that everything is known."""
    bag = record(tmp_path / 'bag', steps(9))
    step = {'kind': 'gripper', 'message': 'std_msgs/Float64MultiArray', 'topic': 'g', 'name': 'g', 'trajectory': None}
    for kind, xy, expected in (('ee_pose', ('y', 'x'), lambda k: [0.5, k + lead]),
                               ('ee_delta', ('x', 'y'), lambda k: [lead, 0]),
                               ('ee_twist', ('x',), lambda k: [20.0])):
        arm = {'kind': kind, 'names': xy, 'message': 'std_msgs/Float64MultiArray', 'topic': 'a'}
        episode = read_episode(bag, with_actions(arm, step), ReadOptions(actions='state', lead=lead))
        assert len(episode) == 9 - lead == len(episode.images['front'])
        np.testing.assert_allclose(episode.actions, [[*expected(k), k + lead] for k in range(9 - lead)], rtol=1e-6)
        np.testing.assert_array_equal(episode.state[:, 0], np.arange(9 - lead))
    with pytest.raises(DataError, match='9 steps without a gap, the state 9 later needs more'):
        read_episode(bag, CONTRACT, ReadOptions(actions='state', lead=9))


def test_turns_come_from_later_orientation(tmp_path: Path) -> None:
    """The arm turns by 0.1 rad a step about z; scipy is not asked."""
    samples = []
    for topic, stamp, built in steps(6):
        if topic == POSE:
            half = 0.05 * ((stamp - START) // DT)
            built.pose.orientation.z, built.pose.orientation.w = float(np.sin(half)), float(np.cos(half))
        samples.append((topic, stamp, built))
    bag = record(tmp_path / 'bag', samples)
    turn = {**CONTRACT.state[0].model_dump(), 'name': 'turn', 'field': 'pose.orientation', 'names': 'xyzw'}
    arm = {'kind': 'ee_delta', 'names': ('x', 'rz', 'rx')}
    contract = with_actions(arm)
    contract = RobotContract.parse({**contract.model_dump(),
                                    'state': [*contract.model_dump()['state'], {**turn, 'names': tuple('xyzw')}]})
    for kind, expected in (('ee_delta', [[2, 0.2, 0]] * 4), ('ee_pose', [[k + 2, 0.1 * k + 0.2, 0] for k in range(4)])):
        changed = RobotContract.parse({**contract.model_dump(), 'actions': [
            {**contract.actions[0].model_dump(), 'kind': kind}]})
        episode = read_episode(bag, changed, ReadOptions(actions='state', lead=2))
        np.testing.assert_allclose(episode.actions, expected, atol=1e-6)
    with pytest.raises(DataError, match=r'actions.ee \(ee_delta\) can not be .* 0 state streams'):
        read_episode(bag, with_actions(arm), ReadOptions(actions='state'))


def test_a_part_that_no_state_measures_is_named(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(4))
    with pytest.raises(DataError, match='can not be had from the state: no state stream measures elbow'):
        read_episode(bag, with_actions({'kind': 'joint_position', 'names': ('elbow',)}), ReadOptions(actions='state'))


def compressed_contract(encoding: str = 'rgb8') -> RobotContract:
    cameras = [{**camera.model_dump(), 'message': 'sensor_msgs/CompressedImage', 'encoding': encoding}
               for camera in CONTRACT.cameras]
    return RobotContract.parse({**CONTRACT.model_dump(), 'cameras': cameras})


def scene(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return cv2.resize(noise, (168, 168), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(('suffix', 'tolerance'), [('.png', 0), ('.jpg', 2)])
@pytest.mark.parametrize('threads', [0, 2])
def test_compressed_images_are_those_of_opencv(tmp_path: Path, suffix: str, tolerance: int, threads: int) -> None:
    contract = compressed_contract()
    samples, decoded = [], []
    topics = {'/' + camera.topic for camera in contract.cameras}
    for topic, stamp, built in steps(5):
        if topic in topics:
            coded = cv2.imencode(suffix, scene(stamp % 1000)[..., ::-1])[1]
            decoded.append(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
            built = make('sensor_msgs/CompressedImage', header=header(stamp), format=suffix[1:], data=coded.reshape(-1))
            built = bytes(typestore().serialize_cdr(built, 'sensor_msgs/msg/CompressedImage'))
        samples.append((topic, stamp, built if isinstance(built, bytes) else serialize(topic, built)))
    kinds = {topic: 'sensor_msgs/msg/CompressedImage' if topic in topics else kind for topic, kind in TYPES.items()}
    writer = EpisodeWriter(tmp_path / 'bag', [Topic(*pair) for pair in kinds.items()], MARKS)
    for topic, stamp, data in samples:
        writer.write(topic, data, stamp, stamp)
    writer.close()
    episode = read_episode(tmp_path / 'bag', contract, ReadOptions(threads=threads))
    for k in range(5):
        for place, camera in enumerate(contract.cameras):
            expected = decoded[2 * k + place].reshape(84, 2, 84, 2, 3).mean((1, 3))
            assert np.abs(episode.images[camera.name][k] - expected).max() <= tolerance + 0.5


def test_what_is_wrong_with_a_compressed_image_is_told() -> None:
    camera = compressed_contract().cameras[0]
    good = cv2.imencode('.jpg', scene(1))[1].tobytes()
    small = cv2.imencode('.png', scene(1)[:50])[1].tobytes()
    for data, reason in ((b'', 'neither JPEG nor PNG'), (b'GIF89a' + bytes(50), 'neither JPEG nor PNG'),
                         (small, '50 rows and 168 columns'), (good[:len(good) // 2], 'damaged JPEG')):
        built = make('sensor_msgs/CompressedImage', header=header(0), format='jpeg', data=np.frombuffer(data, np.uint8))
        with pytest.raises(ImageInvalid, match=f'{camera.name}: {reason}'):
            decode_image(built, camera)
    grey = compressed_contract('mono8').cameras[0]
    built.data = np.frombuffer(cv2.imencode('.png', np.full((168, 168), 77, np.uint8))[1].tobytes(), np.uint8)
    assert decode_image(built, grey).shape == (84, 84, 1) and (decode_image(built, grey) == 77).all()


def test_no_frame_is_made_across_a_hole(tmp_path: Path) -> None:
    """A chunk in the middle is damaged: the longest stretch beside it is kept, and the commands in it are right."""
    folder = tmp_path / 'bag'
    writer = EpisodeWriter(folder, [Topic(*pair) for pair in TYPES.items()], MARKS, 'none')
    for number, (topic, stamp, built) in enumerate(steps(30)):
        writer.write(topic, serialize(topic, built), stamp, stamp)
        if number % 18 == 0:  # three steps a chunk
            writer.flush()
    writer.close()
    file = folder / 'bag_0.mcap'
    data = bytearray(file.read_bytes())
    chunks = [(begin, end) for opcode, begin, end in records(bytes(data[:-8]), len(MAGIC)) if opcode == CHUNK]
    data[chunks[4][1] - 9] ^= 1
    file.write_bytes(data)
    episode = read_episode(folder, CONTRACT)
    assert not episode.complete and 12 <= len(episode) < 30
    numbers = episode.state[:, 0].astype(int).tolist()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    np.testing.assert_array_equal(episode.actions[:, 0], numbers)


def test_late_messages_of_one_bag_are_still_used(tmp_path: Path) -> None:
    """The state is recorded 300 ms after it was measured."""
    samples = [(topic, stamp + (300 * 10 ** 6 if topic == POSE else 0), message(topic, stamp, float(k // len(TYPES))))
               for k, (topic, stamp, _) in enumerate(steps(20))]
    late = read_episode(record(tmp_path / 'late', samples), CONTRACT)
    assert len(late) == 20 and (np.diff(late.state[:, 0]) >= 0).all()
