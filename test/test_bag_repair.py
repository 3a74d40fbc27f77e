"""Repair: bags cut at any byte open again with other people's readers, and hold all that was whole before the cut."""

from __future__ import annotations

from collections import Counter
import errno
from pathlib import Path
import shutil
from types import SimpleNamespace
from typing import Any

from bag_tools import CONTRACT, MARKS, START, TYPES, record, serialize, steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.stream_reader import StreamReader
from mcap.writer import CompressionType, IndexType, Writer
import pytest
from rosbags.rosbag2 import Reader
from typer.testing import CliRunner
import yaml

from flow_vla_core.data import bag_writer, mcap_repair, read_episode
from flow_vla_core.data.bag_metadata import Topic
from flow_vla_core.data.bag_repair import Repair, complaint, find_recordings, repair_all, repair_bag
from flow_vla_core.data.bag_writer import EpisodeWriter
from flow_vla_core.data.bags import read_metadata
from flow_vla_core.data.mcap_scan import scan
from flow_vla_core.errors import DataError, DiskFull, RecordError
from flow_vla_ros.bags import app

Found = Counter[tuple[str, int, bytes]]
SAMPLES = [(topic, stamp, serialize(topic, built)) for topic, stamp, built in steps(6)]
SMALL = [sample for sample in SAMPLES if 'camera' not in sample[0]]


def killed(folder: Path, samples: list = SMALL, compression: str = 'none', every: int = 5) -> Path:
    """Write a bag with a chunk for every few messages, that lacks its end."""
    writer = EpisodeWriter(folder, [Topic(name, kind) for name, kind in TYPES.items()], MARKS, compression)
    for number, (topic, stamp, data) in enumerate(samples, 1):
        writer.write(topic, data, stamp, stamp)
        if number % every == 0:
            writer.flush()
    writer.flush()
    writer._sink.close()
    return folder


def mcap_of(bag: Path) -> Path:
    path, = bag.glob('*.mcap')
    return path


def whole_before(path: Path) -> Found:
    """Return what mcap's own stream reader finds in whole records before the cut."""
    found: Found = Counter()
    topics: dict[int, str] = {}
    try:
        with path.open('rb') as file:
            for item in StreamReader(file, emit_chunks=False).records:
                if type(item).__name__ == 'Channel':
                    topics[item.id] = item.topic
                elif type(item).__name__ == 'Message':
                    found[topics[item.channel_id], item.log_time, item.data] += 1
    except Exception:  # the cut
        pass
    return found


def chunks_of(path: Path) -> list[Any]:
    with path.open('rb') as file:
        return scan(file).index.chunks


def read_by_others(bag: Path) -> Found:
    """Read with rosbags and with mcap's own reader by its index; both must agree with each other and the metadata."""
    with Reader(bag) as reader:
        by_rosbags = Counter((item.topic, time, bytes(data)) for item, time, data in reader.messages())
        assert reader.message_count == by_rosbags.total()
        assert {item.topic: item.msgcount for item in reader.connections if item.msgcount} == Counter(
            topic for topic, _, _ in by_rosbags.elements())
    by_mcap: Found = Counter()
    for path in bag.glob('*.mcap'):
        with path.open('rb') as file:
            by_mcap.update((channel.topic, message.log_time, message.data)
                           for _, channel, message in make_reader(file, validate_crcs=True).iter_messages())
    assert by_rosbags == by_mcap
    return by_rosbags


@pytest.fixture(scope='module')
def torn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('torn')
    return {name: killed(folder / name, compression=name) for name in ('none', 'lz4', 'zstd')}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(compression=st.sampled_from(['none', 'lz4', 'zstd']), share=st.floats(0, 1))
def test_a_bag_cut_anywhere_is_repaired(torn: dict[str, Path], tmp_path: Path, compression: str, share: float) -> None:
    bag = tmp_path / 'bag'
    shutil.rmtree(bag, ignore_errors=True)
    shutil.copytree(torn[compression], bag)
    path = mcap_of(bag)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    before = whole_before(path)
    repaired = repair_bag(bag)
    assert repaired.complaint and not repaired.error
    after = read_by_others(bag)
    assert not before - after, 'a message that stood whole in a chunk is gone'
    assert after <= Counter(SMALL)
    assert repaired.messages == after.total()
    assert complaint(bag) == '' and str(repair_bag(bag)).endswith('whole')
    assert read_metadata(bag) == MARKS
    kept = b''.join(part.read_bytes() for part in bag.glob('*.damaged'))
    assert data[:int(share * len(data))].endswith(kept) and repaired.cut == len(kept)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), length=st.integers(1, 200), seed=st.randoms(use_true_random=False))
def test_damage_in_the_middle_costs_what_it_hit_and_keeps_the_bytes(
        torn: dict[str, Path], tmp_path: Path, place: float, length: int, seed: Any) -> None:
    bag = tmp_path / 'bag'
    shutil.rmtree(bag, ignore_errors=True)
    shutil.copytree(torn['lz4'], bag)
    path = mcap_of(bag)
    data = bytearray(path.read_bytes())
    first = min(chunk.chunk_start_offset for chunk in chunks_of(path))  # before it stand definitions, without checksums
    start = first + int(place * (len(data) - first - length))
    data[start:start + length] = seed.randbytes(length)
    path.write_bytes(data)
    whole_before_it = whole_before(path)
    repaired = repair_bag(bag)
    after = read_by_others(bag)
    assert after <= Counter(SMALL), 'what is read was recorded so'
    assert not (whole_before_it & Counter(SMALL)) - after or repaired.cut
    for part in bag.glob('*.damaged'):
        assert part.stat().st_size == repaired.cut and part.stat().st_size <= len(data)


@pytest.mark.parametrize('place', range(9, 53))
def test_damage_to_the_head_of_a_chunk_costs_no_other_reader_a_message(torn: dict[str, Path], tmp_path: Path,
                                                                      place: int) -> None:
    for bit in (1, 128):
        bag = tmp_path / f'bag{bit}'
        shutil.copytree(torn['lz4'], bag)
        path = mcap_of(bag)
        data = bytearray(path.read_bytes())
        data[chunks_of(path)[1].chunk_start_offset + place] ^= bit   # no checksum covers it
        path.write_bytes(data)
        repaired = repair_bag(bag)
        kept = read_by_others(bag)
        assert kept == Counter(SMALL) or repaired.cut and kept <= Counter(SMALL)
        assert complaint(bag) == ''


def test_the_whole_of_a_killed_recording_is_kept_and_trains(tmp_path: Path) -> None:
    bag = killed(tmp_path / 'bag', SAMPLES, 'zstd')
    repaired = repair_bag(bag)
    assert repaired.cut == 0 and not list(bag.glob('*.damaged'))
    assert read_by_others(bag) == Counter(SAMPLES)
    episode = read_episode(bag, CONTRACT)
    assert len(episode) == 6 and episode.complete and episode.instruction == MARKS['instruction']


def test_a_closed_bag_is_left_alone(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', SMALL)
    before = {path.name: path.read_bytes() for path in bag.iterdir()}
    assert repair_bag(bag) == Repair(bag)
    assert {path.name: path.read_bytes() for path in bag.iterdir()} == before


def test_marks_come_from_the_file_if_the_metadata_is_gone(tmp_path: Path) -> None:
    bag = killed(tmp_path / 'bag')
    (bag / 'metadata.yaml').unlink()
    repair_bag(bag)
    assert read_metadata(bag) == MARKS
    assert read_by_others(bag) == Counter(SMALL)


@pytest.mark.parametrize('damage', ['missing', 'stale', 'garbage'])
def test_metadata_of_a_whole_file_is_rebuilt_as_it_was(tmp_path: Path, damage: str) -> None:
    bag = record(tmp_path / 'bag', SMALL)
    path = bag / 'metadata.yaml'
    told = yaml.safe_load(path.read_text())
    if damage == 'missing':
        path.unlink()
    else:
        path.write_text('\0\0' if damage == 'garbage' else path.read_text().replace(
            f'message_count: {len(SMALL)}', 'message_count: 0'))
    assert 'metadata.yaml' in repair_bag(bag).complaint
    assert yaml.safe_load(path.read_text()) == told


def test_one_that_is_being_recorded_is_left_alone(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [Topic('/ee_pose', TYPES['/ee_pose'])], MARKS)
    with pytest.raises(RecordError, match='is being recorded'):
        repair_bag(tmp_path / 'bag')
    assert [str(repair) for repair in repair_all(tmp_path)] == [
        f'{tmp_path / "bag"}: not repaired: is being recorded']
    writer.write('/ee_pose', b'1234', START, START)
    writer.close()
    assert complaint(tmp_path / 'bag') == ''


def foreign(bag: Path, **settings: Any) -> Path:
    """Write a bag as another recorder would, with mcap's own writer, and leave it without its end."""
    bag.mkdir()
    with (bag / 'bag_0.mcap').open('wb') as file:
        writer = Writer(file, compression=CompressionType.NONE, chunk_size=1000, **settings)
        writer.start(profile='ros2', library='other')
        channels = {topic: writer.register_channel(topic, 'cdr', writer.register_schema(kind, 'ros2msg', b'x'))
                    for topic, kind in TYPES.items()}
        for topic, stamp, data in SMALL:
            writer.add_message(channels[topic], stamp, data, stamp)
        writer.add_metadata('note', {'by': 'somebody'})
        writer.add_attachment(1, 1, 'calibration.txt', 'text/plain', b'k = 3')
        writer.flush()
    return bag


@pytest.mark.parametrize('settings', [{}, {'use_chunking': False}, {'index_types': IndexType.NONE},
                                      {'enable_crcs': False}])
def test_bags_of_other_recorders_are_repaired(tmp_path: Path, settings: dict[str, Any]) -> None:
    bag = foreign(tmp_path / 'bag', **settings)
    assert repair_bag(bag).messages == len(SMALL)
    assert read_by_others(bag) == Counter(SMALL)
    with mcap_of(bag).open('rb') as file:
        reader = make_reader(file)
        assert [metadata.metadata for metadata in reader.iter_metadata()] == [{'by': 'somebody'}]
        assert [attachment.data for attachment in reader.iter_attachments()] == [b'k = 3']
    assert read_metadata(bag) == {}


def test_a_file_of_nothing_becomes_an_empty_bag(tmp_path: Path) -> None:
    bag = tmp_path / 'bag'
    bag.mkdir()
    (bag / 'bag_0.mcap').write_bytes(b'')
    assert repair_bag(bag).messages == 0
    assert read_by_others(bag) == Counter()


def test_what_is_no_mcap_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / 'bag').mkdir()
    path = tmp_path / 'bag' / 'bag_0.mcap'
    path.write_bytes(b'SQLite format 3\0' * 10)
    with pytest.raises(DataError, match='bag_0.mcap: not an MCAP file'):
        repair_bag(tmp_path / 'bag')
    assert path.read_bytes() == b'SQLite format 3\0' * 10


def test_without_room_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = foreign(tmp_path / 'bag', use_chunking=False)
    before = mcap_of(bag).read_bytes()
    monkeypatch.setattr(mcap_repair.shutil, 'disk_usage', lambda path: SimpleNamespace(free=10))
    with pytest.raises(DiskFull, match='no room on the disk to repair it'):
        repair_bag(bag)
    assert mcap_of(bag).read_bytes() == before and [path.name for path in bag.iterdir()] == ['bag_0.mcap']


def test_a_disk_that_gets_full_while_it_works_leaves_the_old_file(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = foreign(tmp_path / 'bag', use_chunking=False)
    before = mcap_of(bag).read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(mcap_repair.McapFile, 'end_chunk', refuse)
    with pytest.raises(DiskFull):
        repair_bag(bag)
    assert mcap_of(bag).read_bytes() == before and [path.name for path in bag.iterdir()] == ['bag_0.mcap']


def test_every_bag_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    killed(tmp_path / 'a' / 'one')
    record(tmp_path / 'b', SMALL)
    (tmp_path / 'c').mkdir()
    (tmp_path / 'c' / 'c_0.mcap').write_bytes(b'nonsense, and more of it')
    assert find_recordings(tmp_path) == [tmp_path / 'a' / 'one', tmp_path / 'b', tmp_path / 'c']
    done = CliRunner().invoke(app, ['repair', str(tmp_path)])
    first, second, third = done.stdout.splitlines()
    assert first == f'{tmp_path}/a/one: repaired (one_0.mcap: cut off): {len(SMALL)} messages, 0.2 s'
    assert second == f'{tmp_path}/b: whole'
    assert third == f'{tmp_path}/c: not repaired: c_0.mcap: not an MCAP file'
    assert done.exit_code == 1


def test_a_folder_without_bags_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no bags with MCAP'):
        CliRunner().invoke(app, ['repair', str(tmp_path)], catch_exceptions=False)


def test_the_writers_marks_are_where_the_repair_looks(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', SMALL)
    with mcap_of(bag).open('rb') as file:
        names = [metadata.name for metadata in make_reader(file).iter_metadata()]
    assert names == [bag_writer.MARKS]
