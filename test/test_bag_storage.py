"""Reading what others wrote, in every storage, whole and damaged; held against mcap's own reader and rosbags."""

from __future__ import annotations

from collections.abc import Iterator
import io
import os
from pathlib import Path
import random
import resource
import shutil
import sqlite3
import struct
import tracemalloc

from bag_tools import MARKS, START, TYPES, image, record, serialize, steps
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType, Writer
import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter
from rosbags.typesys import get_types_from_msg
import yaml
import zstandard

from flow_vla_core.data import find_bags
from flow_vla_core.data.bag_reader import BagMessage, open_bag
from flow_vla_core.data.compression import SIZE_LIMIT, decompress
from flow_vla_core.data.mcap_records import CHUNK, MAGIC, records
from flow_vla_core.data.typestore import schema, typestore
from flow_vla_core.errors import DataError

POSE = '/ee_pose'
THING = 'float64 weight\nstring name\nstd_msgs/Header header\n' + '=' * 80 + """
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
""" + '=' * 80 + """
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""


def by_mcap(path: Path) -> list[BagMessage]:
    """Read a file with mcap's own reader, in order of log time."""
    with path.open('rb') as file:
        return [BagMessage(channel.topic, message.log_time, message.data)
                for _, channel, message in make_reader(file).iter_messages()]


def write_mcap(path: Path, samples: list[tuple[str, int, bytes]], types: dict[str, tuple[str, str, bytes]],
               **settings: object) -> Path:
    """Write with mcap's own writer; ``types`` gives name, encoding and text of each topic's schema."""
    with path.open('wb') as file:
        writer = Writer(file, **settings)
        writer.start('ros2', 'test')
        channels = {topic: writer.register_channel(topic, 'cdr', writer.register_schema(*kind))
                    for topic, kind in types.items()}
        for topic, time, data in samples:
            writer.add_message(channels[topic], time, data, time)
        writer.finish()
    return path


POSE_TYPE = (TYPES[POSE], 'ros2msg', schema(TYPES[POSE])[0].encode())


def poses(count: int) -> list[tuple[str, int, bytes]]:
    return [(topic, stamp, serialize(topic, built)) for topic, stamp, built in steps(count) if topic == POSE]


@pytest.mark.parametrize('settings', [
    {}, {'compression': CompressionType.LZ4}, {'compression': CompressionType.NONE}, {'use_chunking': False},
    {'index_types': IndexType.NONE}, {'use_statistics': False, 'use_summary_offsets': False, 'repeat_channels': False},
    {'enable_crcs': False, 'chunk_size': 700}])
def test_every_way_of_mcap_is_read_in_order_of_log_time(tmp_path: Path, settings: dict) -> None:
    samples = poses(40)
    random.Random(2).shuffle(samples)
    path = write_mcap(tmp_path / 'a.mcap', samples, {POSE: POSE_TYPE}, **{'chunk_size': 2000, **settings})
    bag = open_bag(path)
    found = list(bag.read())
    assert bag.complete, bag.problems
    assert sorted(found) == sorted(BagMessage(*sample) for sample in samples)
    if settings.get('repeat_channels', True):  # without, mcap's reader does not find the topics
        assert sorted(found) == sorted(by_mcap(path))
    if settings.get('use_chunking', True):
        assert [message.log_time for message in found] == sorted(message.log_time for message in found)
    assert list(bag.read({'/nothing'})) == []


@pytest.mark.parametrize(('storage', 'mode'), [
    (StoragePlugin.SQLITE3, None), (StoragePlugin.SQLITE3, 'FILE'), (StoragePlugin.SQLITE3, 'MESSAGE'),
    (StoragePlugin.MCAP, None), (StoragePlugin.MCAP, 'FILE'), (StoragePlugin.MCAP, 'MESSAGE'),
    (StoragePlugin.MCAP, 'STORAGE')])
def test_what_rosbags_writes_is_read(tmp_path: Path, storage: StoragePlugin, mode: str | None) -> None:
    writer = RosbagWriter(tmp_path / 'bag', version=9, storage_plugin=storage)
    if mode:
        writer.set_compression(CompressionMode[mode], CompressionFormat.ZSTD)
    samples = [(topic, stamp, serialize(topic, built)) for topic, stamp, built in steps(4)]
    with writer:
        opened = {topic: writer.add_connection(topic, kind, typestore=typestore()) for topic, kind in TYPES.items()}
        for topic, stamp, data in samples:
            writer.write(opened[topic], stamp, data)
    bag = open_bag(tmp_path / 'bag')
    assert sorted(bag.read()) == sorted(BagMessage(*sample) for sample in samples)
    assert bag.complete and bag.types == TYPES


def test_files_of_a_split_bag_are_merged_by_log_time(tmp_path: Path) -> None:
    samples = poses(30)
    bag = tmp_path / 'bag'
    bag.mkdir()
    for number in range(3):  # they overlap
        write_mcap(bag / f'bag_{number}.mcap', samples[number::3], {POSE: POSE_TYPE}, chunk_size=500)
    opened = open_bag(bag)
    assert [BagMessage(*sample) for sample in samples] == list(opened.read())
    assert opened.problems == ('metadata.yaml is missing',)
    assert find_bags(tmp_path) == [bag]


def test_single_files_and_loose_ones_are_bags(tmp_path: Path) -> None:
    for name in ('red', 'blue'):
        write_mcap(tmp_path / f'{name}.mcap', poses(3), {POSE: POSE_TYPE})
    assert find_bags(tmp_path) == [tmp_path / 'blue.mcap', tmp_path / 'red.mcap']
    assert find_bags(tmp_path / 'red.mcap') == [tmp_path / 'red.mcap']
    assert len(list(open_bag(tmp_path / 'red.mcap').read())) == 3
    compressed = tmp_path / 'green.mcap.zstd'
    compressed.write_bytes(zstandard.compress((tmp_path / 'red.mcap').read_bytes()))
    assert list(open_bag(compressed).read()) == list(open_bag(tmp_path / 'red.mcap').read())


def test_links_to_bags_are_followed_and_each_bag_counts_once(tmp_path: Path) -> None:
    for name in 'ab':
        (tmp_path / 'store' / name).mkdir(parents=True)
        (tmp_path / 'store' / name / 'metadata.yaml').write_text('')
    (tmp_path / 'chosen').mkdir()
    (tmp_path / 'chosen' / 'first').symlink_to(tmp_path / 'store' / 'a')
    (tmp_path / 'chosen' / 'again').symlink_to(tmp_path / 'chosen' / 'first')
    (tmp_path / 'chosen' / 'loop').symlink_to(tmp_path / 'chosen')
    assert find_bags(tmp_path / 'chosen') == [tmp_path / 'chosen' / 'again']
    assert [bag.resolve().name for bag in find_bags(tmp_path)] == ['a', 'b']


def test_types_that_only_the_file_knows_are_decoded_as_it_says(tmp_path: Path) -> None:
    store = type(typestore())()
    store.register({**typestore().fielddefs, **get_types_from_msg(THING, 'my_msgs/msg/Thing')})
    header = store.types['std_msgs/msg/Header'](frame_id='', stamp=store.types['builtin_interfaces/msg/Time'](1, 2))
    data = bytes(store.serialize_cdr(store.types['my_msgs/msg/Thing'](2.5, 'box', header), 'my_msgs/msg/Thing'))
    types = {'/thing': ('my_msgs/msg/Thing', 'ros2msg', THING.encode()), '/odd': ('odd/msg/X', 'ros2msg', b'\xff{{{'),
             '/proto': ('foxglove.RawImage', 'protobuf', b'\x00\x01'), POSE: POSE_TYPE}
    samples = [('/thing', START, data), ('/odd', START + 1, b'zz'), ('/proto', START + 2, b''), *poses(1)]
    bag = open_bag(write_mcap(tmp_path / 'a.mcap', samples, types))
    assert {message.topic: message.data for message in bag.read()} == {topic: data for topic, _, data in samples}
    thing = bag.decode('/thing', data)
    assert (thing.weight, thing.name, thing.header.stamp.nanosec) == (2.5, 'box', 2)
    assert bag.decode(POSE, poses(1)[0][2]).pose.position.y == 0.5
    for topic in ('/odd', '/proto'):
        with pytest.raises(DataError, match=f'a.mcap: {topic}: no definition of the message type'):
            bag.decode(topic, b'zz')
    assert bag.complete


def test_an_older_definition_of_our_own_type_is_believed(tmp_path: Path) -> None:
    text = 'uint8 event\nstring words\n'
    bag = open_bag(write_mcap(tmp_path / 'a.mcap', [('/episode', START, b'\x00\x01\x00\x00\x02\x00\x00\x00'
                                                      b'\x03\x00\x00\x00go\x00')],
                              {'/episode': ('flow_vla/msg/Episode', 'ros2msg', text.encode())}))
    mark = bag.decode('/episode', next(bag.read()).data)
    assert (mark.event, mark.words) == (2, 'go')


def chunks_of(data: bytes) -> list[tuple[int, int]]:
    return [(begin, end) for opcode, begin, end in records(data[:-8], len(MAGIC)) if opcode == CHUNK]


def test_a_damaged_chunk_leaves_a_hole_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / 'a.mcap', poses(40), {POSE: POSE_TYPE}, chunk_size=1000)
    data = bytearray(path.read_bytes())
    begin, end = chunks_of(bytes(data))[2]
    data[end - 3] ^= 0xFF
    path.write_bytes(data)
    bag, holes, found = open_bag(path), [], []
    for message in bag.read(on_hole=lambda: holes.append(len(found))):
        found.append(message)
    whole = [BagMessage(*sample) for sample in poses(40)]
    lost = [message for message in whole if message not in found]
    assert found == [message for message in whole if message not in lost] and 0 < len(lost) < 20
    assert holes == [whole.index(lost[0])]
    (problem,) = bag.problems
    assert problem.startswith(f'a.mcap: messages at byte {begin - 9}: ')


def test_an_index_that_is_damaged_is_made_anew(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / 'a.mcap', poses(40), {POSE: POSE_TYPE}, chunk_size=1000)
    data = bytearray(path.read_bytes())
    data[-60] ^= 0xFF
    path.write_bytes(data)
    bag = open_bag(path)
    assert list(bag.read()) == [BagMessage(*sample) for sample in poses(40)]
    assert bag.problems == ('a.mcap: its index does not match its checksum',)


def test_topics_of_two_types_are_told(tmp_path: Path) -> None:
    bag = tmp_path / 'bag'
    bag.mkdir()
    write_mcap(bag / 'bag_0.mcap', poses(2), {POSE: POSE_TYPE})
    write_mcap(bag / 'bag_1.mcap', poses(2), {POSE: ('std_msgs/msg/String', 'ros2msg', b'string data\n')})
    assert any(f'{POSE}: recorded as' in problem for problem in open_bag(bag).problems)


def test_what_a_killed_recorder_left_in_the_log_of_sqlite_is_read(tmp_path: Path) -> None:
    """Rosbag2 lets sqlite write ahead: the newest messages stand in a second file until it is closed."""
    with RosbagWriter(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        opened = writer.add_connection(POSE, TYPES[POSE], typestore=typestore())
        for _, stamp, data in poses(3):
            writer.write(opened, stamp, data)
    connection = sqlite3.connect(tmp_path / 'bag' / 'bag.db3')
    connection.execute('PRAGMA journal_mode = WAL')
    rest = poses(9)[3:]
    connection.executemany('INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)',
                           [(stamp, data) for _, stamp, data in rest])
    connection.commit()
    killed = shutil.copytree(tmp_path / 'bag', tmp_path / 'killed')
    connection.close()
    before = {path: path.read_bytes() for path in killed.iterdir()}
    bag = open_bag(killed)
    assert list(bag.read()) == [BagMessage(*sample) for sample in poses(9)]
    assert bag.problems == ('bag.db3: the recording was not ended; what stands in bag.db3-wal is read too',)
    assert {path: path.read_bytes() for path in killed.iterdir()} == before


def test_a_bag_may_have_more_files_than_may_be_open(tmp_path: Path) -> None:
    bag = tmp_path / 'bag'
    bag.mkdir()
    write_mcap(bag / 'bag_0.mcap', poses(1), {POSE: POSE_TYPE})
    for number in range(1, 60):
        shutil.copy(bag / 'bag_0.mcap', bag / f'bag_{number}.mcap')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 70, hard))
    try:
        bags = [open_bag(bag) for _ in range(3)]
        assert [len(list(opened.read())) for opened in bags] == [60, 60, 60]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_missing_file_of_a_split_bag_is_told(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(3))
    path = bag / 'metadata.yaml'
    values = yaml.safe_load(path.read_text())
    values['rosbag2_bagfile_information']['relative_file_paths'] = ['bag_0.mcap', 'bag_1.mcap']
    path.write_text(yaml.safe_dump(values))
    opened = open_bag(bag)
    assert opened.problems == ('bag_1.mcap: No such file or directory',) and len(list(opened.read())) == 19


@pytest.mark.parametrize('text', ['', 'a: [', '\x00', 'rosbag2_bagfile_information: 3'])
def test_damaged_metadata_do_not_hide_the_messages(tmp_path: Path, text: str) -> None:
    bag = record(tmp_path / 'bag', steps(3))
    (bag / 'metadata.yaml').write_text(text)
    opened = open_bag(bag)
    assert len(list(opened.read())) == 19 and opened.marks == MARKS
    assert len(opened.problems) == 1 and 'metadata.yaml' in opened.problems[0] and '\n' not in opened.problems[0]


def test_a_name_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(3))
    shutil.copy(bag / 'bag_0.mcap', tmp_path / 'secret.mcap')
    values = {'storage_identifier': 'mcap', 'relative_file_paths': ['../secret.mcap'], 'custom_data': MARKS}
    (bag / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': values}))
    with pytest.raises(DataError, match='no messages: secret.mcap: No such file'):
        open_bag(bag)
    for name in ('..', '', '/', 'a\0b.mcap', 'a\nb.db3', 'x' * 5000, 3, None, ['a.mcap']):
        values['relative_file_paths'] = [name]
        (bag / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': values}))
        with pytest.raises(DataError, match='^[^\n]*no messages: [^\n]*$'):
            open_bag(bag)


def test_lengths_are_not_believed() -> None:
    bomb = zstandard.compress(bytes(50_000_000))
    for data, kind, size, reason in (
            (b'', '', 2 ** 40, f'at most {SIZE_LIMIT} are read'), (bomb, 'zstd', 1000, '1000'),
            (b'abc', '', 4, '4 were announced'), (b'abc', 'zstd', 3, 'not valid zstd'), (b'abc', 'lz4', 3, 'lz4'),
            (b'', 'brotli', 3, "compression 'brotli' is unknown")):
        tracemalloc.start()
        with pytest.raises(DataError, match=reason):
            decompress(data, kind, size)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
    assert decompress(bomb, 'zstd', 50_000_000) == bytes(50_000_000)


def test_a_long_bag_is_read_in_little_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8)
    topic = '/camera/front/image_raw'
    data = serialize(topic, image(START, noise))
    kind = (TYPES[topic], 'ros2msg', schema(TYPES[topic])[0].encode())
    path = write_mcap(tmp_path / 'a.mcap', [(topic, START + k, data) for k in range(60)], {topic: kind},
                      compression=CompressionType.NONE)
    tracemalloc.start()
    count = sum(1 for _ in open_bag(path).read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 and path.stat().st_size > 60_000_000 and peak < 12_000_000


def hostile(data: bytes) -> Iterator[bytes]:
    """Yield files whose lengths are lies."""
    begin, _ = chunks_of(data)[0]
    for at, form in ((begin - 8, '<Q'), (begin + 16, '<Q'), (begin + 28, '<I')):
        for value in (2 ** 31, 2 ** 32 - 1, 2 ** 62):
            found = bytearray(data)
            struct.pack_into(form, found, at, value % 2 ** (8 * struct.calcsize(form)))
            yield bytes(found)
    yield data[:-8] + io.BytesIO(b'\xff' * 8).read()
    yield MAGIC + b'\x06' + struct.pack('<Q', 2 ** 63) + b'\x00' * 100


def test_hostile_lengths_cost_nothing(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / 'a.mcap', poses(40), {POSE: POSE_TYPE}, chunk_size=1000)
    for data in hostile(path.read_bytes()):
        path.write_bytes(data)
        tracemalloc.start()
        try:
            bag = open_bag(path)
            assert len(list(bag.read())) <= 40 and bag.problems
        except DataError as error:
            assert str(path) in str(error)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
