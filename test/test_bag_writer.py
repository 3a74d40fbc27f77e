"""The writer: bags that rosbags and mcap read, that outlive a crash and a full disk, and that can be deleted."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, START, TYPES, fill_disk, message, record, serialize, steps
from mcap.reader import make_reader
import pytest
from rosbags.rosbag2 import Reader
import yaml

from flow_vla_core.data.bag_reader import read_bag
from flow_vla_core.data.bag_writer import COMPRESSIONS, EpisodeWriter, Topic
from flow_vla_core.data.bags import find_bags, read_metadata
from flow_vla_core.data.typestore import full_name, schema, typestore
from flow_vla_core.errors import Code, DataError, DiskFull, RecordError

NOISE = os.urandom(200_000)


def information(bag: Path) -> dict[str, Any]:
    return yaml.safe_load((bag / 'metadata.yaml').read_text())['rosbag2_bagfile_information']


@pytest.mark.parametrize('compression', COMPRESSIONS)
def test_rosbags_reads_every_message(tmp_path: Path, compression: str) -> None:
    samples = steps(5)
    bag = record(tmp_path / 'bag', samples, compression=compression)
    with Reader(bag) as reader:
        read = [(connection.topic, time, bytes(data)) for connection, time, data in reader.messages()]
        assert {connection.topic: connection.msgtype for connection in reader.connections} == TYPES
        assert (reader.message_count, reader.duration) == (len(samples), 4 * DT + 1)
    assert sorted(read) == sorted((topic, stamp, serialize(topic, built)) for topic, stamp, built in samples)


def test_mcap_reads_profile_schemas_and_both_times(tmp_path: Path) -> None:
    topic = Topic('/ee_pose', TYPES['/ee_pose'], ({'reliability': 'reliable', 'depth': 7},))
    writer = EpisodeWriter(tmp_path / 'bag', [topic], MARKS)
    writer.write('/ee_pose', serialize('/ee_pose', message('/ee_pose', START)), START + 5, START)
    writer.close()
    with writer.file.open('rb') as file:
        reader = make_reader(file, validate_crcs=True)
        (definition, channel, read), = reader.iter_messages()
        assert (reader.get_header().profile, reader.get_summary().statistics.message_count) == ('ros2', 1)
    assert (definition.name, definition.encoding) == ('geometry_msgs/msg/PoseStamped', 'ros2msg')
    assert b'MSG: geometry_msgs/Quaternion' in definition.data and b'MSG: std_msgs/Header' in definition.data
    assert (channel.topic, channel.message_encoding) == ('/ee_pose', 'cdr')
    assert yaml.safe_load(channel.metadata['offered_qos_profiles']) == [{'reliability': 'reliable', 'depth': 7}]
    assert (read.log_time, read.publish_time, read.sequence) == (START + 5, START, 1)


def test_metadata_is_that_of_rosbag2(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', steps(3))
    told = information(bag)
    assert (told['version'], told['storage_identifier'], told['relative_file_paths']) == (9, 'mcap', ['bag_0.mcap'])
    assert told['custom_data'] == MARKS == read_metadata(bag)
    assert told['starting_time'] == {'nanoseconds_since_epoch': START}
    assert (told['duration'], told['message_count']) == ({'nanoseconds': 2 * DT}, 19)
    counts = {part['topic_metadata']['name']: part['message_count'] for part in told['topics_with_message_count']}
    assert counts == {topic: 1 if topic == '/instruction' else 3 for topic in TYPES}
    assert all(part['topic_metadata']['type_description_hash'].startswith('RIHS01_')
               for part in told['topics_with_message_count'])


def test_marks_of_the_end_are_added(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [], {'outcome': 'unknown', 'task': 'reach'})
    assert read_metadata(tmp_path / 'bag') == {'outcome': 'unknown', 'task': 'reach'}
    writer.close({'outcome': 'failure'})
    assert read_metadata(tmp_path / 'bag') == {'outcome': 'failure', 'task': 'reach'}
    assert find_bags(tmp_path) == [tmp_path / 'bag']


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [Topic('/ee_pose', TYPES['/ee_pose'])], MARKS)
    writer.write('/ee_pose', NOISE, START, START)
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_counts_and_duration(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [Topic('/ee_pose', TYPES['/ee_pose'])], MARKS)
    for time in (START + 30, START + 10, START + 10 ** 9):
        writer.write('/ee_pose', b'', time, time)
    assert (writer.messages, writer.duration) == (3, pytest.approx(1.0 - 1e-8))
    writer.close()


def test_refuses_unknown_topics_types_and_a_taken_folder(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [], MARKS)
    with pytest.raises(DataError, match="bag: topic '/else' was not announced"):
        writer.write('/else', b'', START, START)
    writer.close()
    with pytest.raises(RecordError, match='bag: File exists'):
        EpisodeWriter(tmp_path / 'bag', [], MARKS)
    with pytest.raises(DataError, match="message type 'no_msgs/msg/Such'"):
        EpisodeWriter(tmp_path / 'other', [Topic('/x', 'no_msgs/Such')], MARKS)


def test_refuses_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(RecordError, match='Not a directory') as refusal:
        EpisodeWriter(tmp_path / 'file' / 'bag', [], MARKS)
    assert refusal.value.code == Code.WRITE_FAILED


def test_what_was_flushed_outlives_the_process(tmp_path: Path, python: str) -> None:
    script = ('import os, sys\n'
              f'sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
              'import bag_tools\n'
              'from flow_vla_core.data import bag_writer\n'
              'bag_writer.FLUSH_SECONDS = 0.0\n'
              'bag_tools.EpisodeWriter.abandon = lambda self: os._exit(9)\n'
              'from pathlib import Path\n'
              'bag_tools.record(Path(sys.argv[1]), bag_tools.steps(6), close=False)\n')
    done = subprocess.run([python, '-c', script, str(tmp_path / 'bag')], capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    bag = read_bag(tmp_path / 'bag')
    assert not bag.complete
    assert {topic: len(messages) for topic, messages in bag.messages.items()} == {
        topic: 1 if topic == '/instruction' else 6 for topic in TYPES}
    assert read_metadata(tmp_path / 'bag')['instruction'] == MARKS['instruction']


def fill(folder: Path) -> int:
    """Write until the disk is full; return how many messages the writer took."""
    writer = EpisodeWriter(folder, [Topic('/ee_pose', TYPES['/ee_pose'])], MARKS, 'none')
    with pytest.raises(DiskFull, match='the disk is full; what was written so far stays readable') as refusal:
        for k in range(100):
            writer.write('/ee_pose', NOISE, START + k * DT, START + k * DT)
    assert refusal.value.code == Code.DISK_FULL
    return writer.messages


def check_what_is_left(folder: Path, taken: int) -> None:
    bag = read_bag(folder)
    assert not bag.complete
    assert 1 <= len(bag.messages['/ee_pose']) <= taken
    assert [data for _, data in bag.messages['/ee_pose']] == [NOISE] * len(bag.messages['/ee_pose'])


def test_a_disk_that_gets_full_leaves_a_readable_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 3_000_000)
    check_what_is_left(tmp_path / 'bag', fill(tmp_path / 'bag'))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Mount a real file system of 4 MB."""
    place = tmp_path / 'disk'
    place.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(place)]
    if not sys.platform.startswith('linux') or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip('mounting a small file system needs root on Linux')
    yield place
    subprocess.run(['umount', '-l', str(place)], check=True)  # also while a failed test holds a file open


def test_a_real_disk_that_gets_full_leaves_a_readable_bag(small_disk: Path) -> None:
    check_what_is_left(small_disk / 'bag', fill(small_disk / 'bag'))


def test_a_disk_that_is_full_refuses_the_start(small_disk: Path) -> None:
    with pytest.raises(OSError):
        (small_disk / 'ballast').write_bytes(bytes(5_000_000))
    with pytest.raises(DiskFull):
        EpisodeWriter(small_disk / 'bag', [Topic('/ee_pose', TYPES['/ee_pose'])], MARKS)


def test_definitions_of_this_package_are_those_of_the_interface_files(root: Path) -> None:
    text, digest = schema('flow_vla/Episode')
    for line in (root / 'msg' / 'Episode.msg').read_text().splitlines():
        declared = ' '.join(line.split('#')[0].split())
        assert declared in text.replace(' = ', '=') or not declared, declared
    assert digest.startswith('RIHS01_') and len(digest) == 71
    assert full_name('std_msgs/Header') == full_name('std_msgs/msg/Header') == 'std_msgs/msg/Header'
    assert {full_name(part.message) for part in (*CONTRACT.state, *CONTRACT.actions)} <= set(typestore().fielddefs)
