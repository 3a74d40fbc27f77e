"""Bags to episodes: the time grid, the command in force, gaps, and everything that is wrong with a bag."""

from __future__ import annotations

from collections.abc import Iterator
import logging
from pathlib import Path
import random
import shutil
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, START, TYPES, image, message, record, serialize, steps
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
import yaml

from flow_vla_core.align import Synchroniser
from flow_vla_core.data import find_bags, read_episode, read_metadata
from flow_vla_core.data.bag_reader import Bag, BagMessage, header_stamp, open_bag, read_bag
from flow_vla_core.data.storage import Storage
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import DataError
from flow_vla_core.messages import make_observation

FRONT, POSE, TWIST, GRIPPER = '/camera/front/image_raw', '/ee_pose', '/servo/twist_cmd', '/gripper/command'


def edit(bag: Path, **changes: Any) -> Path:
    """Change what the metadata say."""
    path = bag / 'metadata.yaml'
    values = yaml.safe_load(path.read_text())
    values['rosbag2_bagfile_information'].update(changes)
    path.write_text(yaml.safe_dump(values))
    return bag


def test_an_episode_holds_every_step(tmp_path: Path) -> None:
    episode = read_episode(record(tmp_path / 'bag', steps(8)), CONTRACT)
    assert len(episode) == 8 and episode.complete
    np.testing.assert_array_equal(episode.stamps, START + np.arange(8) * DT)
    for view in episode.images.values():
        assert (view.shape, view.dtype, view.flags.c_contiguous) == ((8, 84, 84, 3), np.uint8, True)
        np.testing.assert_array_equal(view[:, 40, 40, 1], np.arange(8))
    np.testing.assert_allclose(episode.state, [[k, 0.5, 0.1, k] for k in range(8)])
    np.testing.assert_allclose(episode.actions, [[k, 0, 0, k] for k in range(8)])
    assert (episode.state.dtype, episode.actions.dtype, episode.stamps.dtype) == (np.float32, np.float32, np.int64)
    assert (episode.instruction, episode.task, episode.outcome) == ('open the faucet', 'faucet-open', 'success')
    assert episode.source == tmp_path / 'bag'


def test_the_command_in_force_never_looks_ahead(tmp_path: Path) -> None:
    """Streams at odd rates and phases; every label and sample is the newest one at or before its grid time."""
    rates = {FRONT: 33, '/camera/gripper/image_raw': 47, POSE: 9, '/joint_states': 21, TWIST: 17, GRIPPER: 70}
    samples = [(topic, START + phase * 10 ** 6 + k * rate * 10 ** 6, message(topic, START + phase * 10 ** 6
                                                                             + k * rate * 10 ** 6, float(k)))
               for phase, (topic, rate) in enumerate(rates.items()) for k in range(700 // rate)]
    episode = read_episode(record(tmp_path / 'bag', samples), CONTRACT)
    times = {topic: START + phase * 10 ** 6 + np.arange(700 // rate) * rate * 10 ** 6
             for phase, (topic, rate) in enumerate(rates.items())}
    assert episode.stamps[0] == max(stamps[0] for stamps in times.values())
    np.testing.assert_array_equal(np.diff(episode.stamps), DT)

    def newest(topic: str) -> np.ndarray:
        return np.searchsorted(times[topic], episode.stamps, 'right') - 1

    np.testing.assert_array_equal(episode.actions[:, 0], newest(TWIST))
    np.testing.assert_array_equal(episode.actions[:, 3], newest(GRIPPER))
    np.testing.assert_array_equal(episode.state[:, 0], newest(POSE))
    np.testing.assert_array_equal(episode.images['front'][:, 0, 0, 0], newest(FRONT))


def test_the_grid_ends_with_the_last_command(tmp_path: Path) -> None:
    samples = [sample for sample in steps(10) if sample[0] not in (TWIST, GRIPPER) or sample[1] <= START + 6 * DT]
    assert len(read_episode(record(tmp_path / 'bag', samples), CONTRACT)) == 7


def test_a_part_that_is_commanded_once_stays_in_force(tmp_path: Path) -> None:
    samples = [sample for sample in steps(6) if sample[0] != GRIPPER or sample[1] == START]
    episode = read_episode(record(tmp_path / 'bag', samples), CONTRACT)
    np.testing.assert_array_equal(episode.actions[:, 3], 0)
    assert len(episode) == 6


def test_order_in_the_file_does_not_matter(tmp_path: Path) -> None:
    samples = steps(8)
    random.Random(0).shuffle(samples)
    shuffled = read_episode(record(tmp_path / 'a', samples), CONTRACT)
    straight = read_episode(record(tmp_path / 'b', steps(8)), CONTRACT)
    np.testing.assert_array_equal(shuffled.state, straight.state)
    np.testing.assert_array_equal(shuffled.actions, straight.actions)


def test_observations_are_those_of_the_synchroniser(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(5))
    episode = read_episode(bag, CONTRACT)
    synchroniser = Synchroniser.for_contract(CONTRACT)
    recorded = read_bag(bag)
    for stream in CONTRACT.streams:
        for stamp, data in recorded.stamped('/' + stream.topic):
            synchroniser.push(stream.name, stamp, recorded.decode('/' + stream.topic, data))
    for index, stamp in enumerate(episode.stamps):
        observation = make_observation(CONTRACT, synchroniser.select(int(stamp)), episode.instruction)
        np.testing.assert_array_equal(observation.state[0], episode.state[index])
        np.testing.assert_array_equal(observation.images['front'][0], episode.images['front'][index])


def test_a_command_stamped_zero_counts_from_its_receipt(tmp_path: Path) -> None:
    samples = [(topic, stamp, message(topic, 0, float(k)) if topic == GRIPPER else built)
               for k, (topic, stamp, built) in enumerate(steps(4))]
    episode = read_episode(record(tmp_path / 'bag', samples), CONTRACT)
    assert len(episode) == 4 and (np.diff(episode.actions[:, 3]) > 0).all()


class Types(Storage):
    """Knows topics and their types, but has no messages."""

    def __init__(self, types: dict[str, str]) -> None:
        super().__init__(Path('nothing.mcap'))
        self.types = types

    def read(self, *_: object) -> Iterator[BagMessage]:
        return iter(())


def test_namespaces_are_found(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(3))
    moved = Bag(bag, {}, [Types({'/left' + name: kind for name, kind in TYPES.items()})])
    assert moved.find('ee_pose', 'geometry_msgs/PoseStamped') == '/left/ee_pose'
    with pytest.raises(DataError, match='/ee_pose: not recorded; there are '):
        moved.find('/ee_pose', 'geometry_msgs/PoseStamped')
    double = Bag(bag, {}, [Types({'/left/ee_pose': TYPES[POSE], '/right/ee_pose': TYPES[POSE]})])
    with pytest.raises(DataError, match='several namespaces: /left/ee_pose, /right/ee_pose'):
        double.find('ee_pose', 'geometry_msgs/PoseStamped')


@pytest.mark.parametrize('marks', [{}, {'outcome': 'fine'}])
def test_without_marks_the_words_come_from_the_topic(tmp_path: Path, marks: dict[str, str]) -> None:
    episode = read_episode(record(tmp_path / 'bag', steps(3), marks=marks), CONTRACT)
    assert (episode.instruction, episode.task, episode.outcome) == ('close the faucet', '', 'unknown')


@pytest.mark.parametrize('storage', [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_bags_of_other_writers_are_read(tmp_path: Path, storage: StoragePlugin) -> None:
    with Writer(tmp_path / 'bag', version=9, storage_plugin=storage) as writer:
        opened = {topic: writer.add_connection(topic, kind, typestore=typestore()) for topic, kind in TYPES.items()}
        for topic, stamp, built in steps(4):
            writer.write(opened[topic], stamp, serialize(topic, built))
    assert len(read_episode(tmp_path / 'bag', CONTRACT)) == 4


@pytest.mark.parametrize('topic', [topic for topic in TYPES if topic != '/instruction'])
def test_a_topic_that_is_missing_or_silent_is_named(tmp_path: Path, topic: str) -> None:
    absent = record(tmp_path / 'absent', steps(3, leave_out=[topic]), leave_out=[topic])
    with pytest.raises(DataError, match=f'absent: {topic[1:]}: not recorded; there are /'):
        read_episode(absent, CONTRACT)
    silent = record(tmp_path / 'silent', steps(3, leave_out=[topic]))
    with pytest.raises(DataError, match=f'silent: {topic}: no messages$'):
        read_episode(silent, CONTRACT)


def test_a_topic_of_another_type_is_named(tmp_path: Path) -> None:
    contract = CONTRACT.model_copy(update={'state': (CONTRACT.state[0].model_copy(
        update={'message': 'geometry_msgs/PointStamped'}), CONTRACT.state[1])})
    with pytest.raises(DataError, match='/ee_pose: recorded as geometry_msgs/msg/PoseStamped, expected geometry_msgs/'):
        read_episode(record(tmp_path / 'bag', steps(3)), contract)


def replaced(topic: str, built: Any) -> list[tuple[str, int, Any]]:
    """Return an episode of five steps in whose third a message is another one."""
    return [(name, stamp, built if (name, stamp) == (topic, START + 2 * DT) else present)
            for name, stamp, present in steps(5)]


STAMP = START + 2 * DT
WHITE = np.full((168, 168, 3), 255, np.uint8)


@pytest.mark.parametrize(('topic', 'built', 'reason'), [
    (FRONT, image(STAMP, WHITE[:100]), '100 rows and 168 columns, the contract says 168 and 168'),
    (FRONT, image(STAMP, WHITE, encoding='bgr8'), "encoding 'bgr8', the contract says 'rgb8'"),
    (FRONT, image(STAMP, WHITE, step=100), 'step 100 bytes, a row needs 504'),
    (FRONT, image(STAMP, WHITE, data=np.zeros(9, np.uint8)), '9 bytes'),
    (POSE, message(POSE, STAMP, float('nan')), 'x is not finite'),
    (TWIST, message(TWIST, STAMP, float('inf')), 'the command at .* is not finite'),
    (POSE, b'\x00\x01', 'a message of 2 bytes has no header'),
    (POSE, serialize(POSE, message(POSE, STAMP))[:20], 'damaged message'),
])
def test_a_bad_message_is_named_with_bag_and_topic(tmp_path: Path, topic: str, built: Any, reason: str) -> None:
    with pytest.raises(DataError, match=f'{tmp_path}/bag: {topic}: (front: |ee_position: )?{reason}'):
        read_episode(record(tmp_path / 'bag', replaced(topic, built)), CONTRACT)


def test_of_a_bag_with_a_gap_the_longest_stretch_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [sample for sample in steps(20) if sample[0] != FRONT or not 5 <= (sample[1] - START) // DT < 9]
    with caplog.at_level(logging.WARNING):
        episode = read_episode(record(tmp_path / 'bag', samples), CONTRACT)
    np.testing.assert_array_equal(episode.stamps, START + np.arange(9, 20) * DT)
    assert not episode.complete
    assert 'front: nearest sample lies 0.100 s before' in caplog.text and '11 of 20 steps' in caplog.text


def test_one_missing_frame_is_within_the_skew(tmp_path: Path) -> None:
    samples = [sample for sample in steps(8) if sample[:2] != (FRONT, START + 3 * DT)]
    episode = read_episode(record(tmp_path / 'bag', samples), CONTRACT)
    assert episode.complete
    np.testing.assert_array_equal(episode.images['front'][:, 0, 0, 0], [0, 1, 2, 2, 4, 5, 6, 7])


def test_streams_that_never_overlap_are_refused(tmp_path: Path) -> None:
    samples = [(topic, stamp, message(topic, stamp + 10 ** 12) if topic == POSE else built)
               for topic, stamp, built in steps(3)]
    with pytest.raises(DataError, match='never overlap'):
        read_episode(record(tmp_path / 'bag', samples), CONTRACT)


def test_what_is_no_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='nowhere: not a rosbag2 folder: metadata.yaml: No such file'):
        read_episode(tmp_path / 'nowhere', CONTRACT)
    for text, reason in (('a: [', 'not valid YAML'), ('a: 1', 'rosbag2_bagfile_information is missing'),
                         ('', 'is missing'), ('rosbag2_bagfile_information: {custom_data: 3}', 'no mapping'),
                         ('rosbag2_bagfile_information: {storage_identifier: mcap}', 'no messages'),
                         ('rosbag2_bagfile_information: {version: 9}', str(tmp_path))):
        (tmp_path / 'metadata.yaml').write_text(text)
        with pytest.raises(DataError, match=reason):
            read_episode(tmp_path, CONTRACT)
    assert find_bags(tmp_path) == [tmp_path]
    (tmp_path / 'metadata.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='not valid YAML'):
        read_metadata(tmp_path)


def test_an_empty_bag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='empty: no messages$'):
        read_episode(record(tmp_path / 'empty', []), CONTRACT)
    bag = record(tmp_path / 'bag', steps(3))
    (bag / 'bag_0.mcap').write_bytes(b'')
    with pytest.raises(DataError, match='bag: no messages: bag_0.mcap: empty'):
        read_episode(bag, CONTRACT)
    (bag / 'bag_0.mcap').unlink()
    with pytest.raises(DataError, match='No such file'):
        read_episode(bag, CONTRACT)


@pytest.mark.parametrize('compression', ['none', 'zstd', 'lz4'])
def test_a_bag_cut_anywhere_is_read_as_far_as_it_goes(tmp_path: Path, compression: str) -> None:
    bag = record(tmp_path / 'bag', steps(16), compression=compression)
    whole = (bag / 'bag_0.mcap').read_bytes()
    places = {0, 1, 7, 8, 9, len(whole) - 1, *np.linspace(10, len(whole) - 2, 25).astype(int).tolist()}
    lengths = []
    for place in sorted(places):
        (bag / 'bag_0.mcap').write_bytes(whole[:place])
        try:
            episode = read_episode(bag, CONTRACT)
        except DataError as error:
            assert str(bag) in str(error)
            lengths.append(0)
        else:
            assert not episode.complete
            np.testing.assert_array_equal(episode.state[:, 0], np.arange(len(episode)))
            lengths.append(len(episode))
    assert lengths == sorted(lengths) and lengths[0] == 0 and lengths[-1] == 16
    assert set(lengths) - {0, 16}, 'no cut left a part of the episode'


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(4))
    whole = (bag / 'bag_0.mcap').read_bytes()
    generator = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 5, 50])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (bag / 'bag_0.mcap').write_bytes(damaged)
        try:
            assert len(read_episode(bag, CONTRACT)) <= 4
        except DataError as error:
            assert str(bag) in str(error)


def test_a_cut_bag_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bag = record(tmp_path / 'bag', steps(16), compression='none')
    whole = (bag / 'bag_0.mcap').read_bytes()
    (bag / 'bag_0.mcap').write_bytes(whole[:len(whole) * 2 // 3])
    with caplog.at_level(logging.WARNING):
        assert not read_episode(bag, CONTRACT).complete
    assert f'{bag}: read as far as it goes: bag_0.mcap: cut off' in caplog.text


@pytest.mark.parametrize('closed', [True, False], ids=['closed', 'killed'])
def test_marks_are_read_from_the_file_where_the_metadata_do_not_tell_them(tmp_path: Path, closed: bool) -> None:
    marks = {**MARKS, 'outcome': 'failure'}
    bag = record(tmp_path / 'bag', steps(4), marks, close=closed)
    file = next(bag.glob('*.mcap'))
    assert open_bag(file).marks == marks
    (bag / 'metadata.yaml').write_text('a: [')
    assert open_bag(bag).marks == marks
    if closed:  # of the other one no message has reached the file
        episode = read_episode(bag, CONTRACT)
        assert (episode.outcome, episode.instruction, episode.task) == ('failure', 'open the faucet', 'faucet-open')


def test_what_metadata_tell_counts_before_what_stands_in_the_file(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(4))
    text = (bag / 'metadata.yaml').read_text()
    (bag / 'metadata.yaml').write_text(text.replace('outcome: success', 'outcome: failure'))
    assert open_bag(bag).marks['outcome'] == 'failure'


def test_several_files_make_one_bag(tmp_path: Path) -> None:
    samples = steps(8)
    first, second = record(tmp_path / 'a', samples[:25]), record(tmp_path / 'b', samples[25:])
    shutil.copy(second / 'b_0.mcap', first / 'a_1.mcap')
    edit(first, relative_file_paths=['a_0.mcap', 'a_1.mcap'])
    assert len(read_episode(first, CONTRACT)) == 8


def test_header_stamps_are_read_from_both_byte_orders() -> None:
    little = serialize(POSE, message(POSE, START + 7))
    big = bytes(typestore().serialize_cdr(message(POSE, START + 7), TYPES[POSE], little_endian=False))
    assert header_stamp(little) == header_stamp(big) == START + 7
    assert MARKS['contract'] == CONTRACT.label
