"""The recording thread: order, overflow, JPEG, a writer that fails; and the meter of a topic."""

from __future__ import annotations

from collections import Counter
import errno
from io import BytesIO
import os
from pathlib import Path
import threading
from typing import Any

from bag_tools import DT, MARKS, START, fill_disk, image, serialize
from mcap.reader import make_reader
import numpy as np
from PIL import Image as Pillow
import pytest
from rosbags.rosbag2 import Reader

from flow_vla_core.data import recording as module
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.jpeg import COMPRESSED_IMAGE, IMAGE, compress_image, compressed_topic
from flow_vla_core.data.mcap_file import COMPRESSIONS, McapFile
from flow_vla_core.data.recording import Recording, RecordingOptions
from flow_vla_core.data.topic_meter import TopicMeter
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import Code, DataError, RecordError

FRONT = '/camera/front/image_raw'
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def begin(folder: Path, topics: dict[str, str], **options: Any) -> Recording:
    writer = EpisodeWriter(folder, [Topic(name, kind) for name, kind in topics.items()], MARKS, 'none')
    return Recording(writer, {**topics, FRONT: IMAGE}, RecordingOptions(**options))


class Gate:
    """Holds the writer back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        write = EpisodeWriter.write

        def wait_and_write(writer: EpisodeWriter, *arguments: Any) -> None:
            assert self.open.wait(60)
            write(writer, *arguments)

        monkeypatch.setattr(EpisodeWriter, 'write', wait_and_write)


def test_everything_is_written_in_order(tmp_path: Path) -> None:
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String', '/b': 'std_msgs/String'})
    sent = [('/ab'[0] + 'ab'[k % 2], b'%d' % k, START + k, START - k) for k in range(500)]
    assert all(recording.put(*message) for message in sent)
    recording.close({'outcome': 'success'})
    with recording.writer.file.open('rb') as file:
        read = [(channel.topic, message.data, message.log_time, message.publish_time)
                for _, channel, message in make_reader(file).iter_messages()]
    assert read == sent and recording.waiting == 0 and not recording.lost
    assert recording.taken == Counter({'/a': 250, '/b': 250})


def test_a_full_queue_loses_images_first_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String', '/big': 'std_msgs/String'}, queue_bytes=1_000_000)
    big = [recording.put('/big', bytes(100_000), START + k, START) for k in range(15)]
    assert big == [True] * 10 + [False] * 5
    small = [recording.put('/a', bytes(1000), START + k, START) for k in range(120)]
    assert small == [True] * 100 + [False] * 20, 'a tenth more is kept for small messages'
    assert recording.lost == Counter({'/a': 20, '/big': 5})
    gate.open.set()
    recording.close({})
    assert recording.writer.messages == 110 and recording.waiting == 0


def test_what_was_put_reaches_the_file_within_a_second_without_further_messages(tmp_path: Path) -> None:
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'})
    empty = recording.writer.file.stat().st_size
    recording.put('/a', bytes(1000), START, START)
    for _ in range(600):  # a minute at most
        if recording.writer.file.stat().st_size > empty + 1000:
            break
        threading.Event().wait(0.1)
    assert recording.writer.file.stat().st_size > empty + 1000
    recording.discard()
    assert not (tmp_path / 'bag').exists()


def test_a_full_disk_ends_it_and_later_messages_count_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 50_000)
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'}, sync=False)
    recording.put('/a', bytes(2_000_000), START, START)
    recording._threads[0].join(60)
    assert recording.failure.code == Code.DISK_FULL
    assert not recording.put('/a', b'1', START, START) and recording.lost['/a'] == 1
    with pytest.raises(RecordError, match='the disk is full'):
        recording.close({})


def test_an_error_nobody_foresaw_is_a_failure_and_not_a_silent_thread(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'})
    recording.put('/unheard', b'1', START, START)  # of a type that nobody knows
    recording._threads[0].join(60)
    with pytest.raises(RecordError, match='DataError'):
        recording.close({})


def test_the_disk_is_asked_to_keep_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = threading.Event()
    monkeypatch.setattr(module, 'SYNC_SECONDS', 0.01)
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'})
    monkeypatch.setattr(recording.writer, 'sync', synced.set)
    assert synced.wait(60)
    recording.close({})


def test_a_disk_that_refuses_to_sync_does_not_end_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RecordError('no')

    monkeypatch.setattr(module, 'SYNC_SECONDS', 0.0)
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'})
    monkeypatch.setattr(recording.writer, 'sync', refuse)
    recording.put('/a', b'1', START, START)
    recording.close({})
    assert recording.writer.messages == 1


def raw(encoding: str, pixels: np.ndarray = PIXELS, **changes: Any) -> bytes:
    return serialize(FRONT, image(START, pixels, encoding=encoding, **changes))


def test_jpeg_images_get_the_name_and_keep_the_stamps(tmp_path: Path) -> None:
    compressed = compressed_topic(FRONT)
    recording = begin(tmp_path / 'bag', {compressed: COMPRESSED_IMAGE, '/a': 'std_msgs/String'}, jpeg=95)
    for k in range(20):
        recording.put(FRONT, raw('rgb8'), START + k * DT, START + k * DT - 5)
        recording.put('/a', b'%d' % k, START + k * DT + 1, START)
    recording.close({})
    with Reader(tmp_path / 'bag') as reader:
        assert {item.topic: (item.msgtype, item.msgcount) for item in reader.connections} == {
            compressed: (COMPRESSED_IMAGE, 20), '/a': ('std_msgs/msg/String', 20)}
        times = [time for item, time, _ in reader.messages() if item.topic == compressed]
    assert times == [START + k * DT for k in range(20)]
    bag = open_bag(tmp_path / 'bag')
    stamps = [stamp for stamp, _ in bag.stamped(compressed)]
    assert stamps == [START] * 20


@pytest.mark.parametrize(('encoding', 'channels', 'said'), [
    ('rgb8', [0, 1, 2], 'rgb8; jpeg compressed bgr8'), ('bgr8', [2, 1, 0], 'bgr8; jpeg compressed bgr8'),
    ('mono8', [0], 'mono8; jpeg compressed mono8')])
def test_jpeg_shows_the_colours_that_were_sent(encoding: str, channels: list[int], said: str) -> None:
    smooth = np.stack([np.linspace(20, 230, 64 * 48).reshape(48, 64), np.full((48, 64), 60.0),
                       np.linspace(230, 20, 64 * 48).reshape(48, 64)], -1).astype(np.uint8)
    data = compress_image(raw(encoding, smooth[..., channels]), 100)
    message = typestore().deserialize_cdr(data, COMPRESSED_IMAGE)
    shown = np.asarray(Pillow.open(BytesIO(message.data.tobytes())), np.int16).reshape(48, 64, -1)
    sent = smooth if len(channels) == 3 else smooth[..., :1]
    assert np.abs(shown - sent).max() <= 6
    assert message.format == said and message.header.stamp.sec == START // 10 ** 9


@pytest.mark.parametrize('data', [
    raw('rgba8'), raw('16UC1', PIXELS[..., :2]), raw('rgb8', height=99), raw('rgb8', data=np.zeros(0, np.uint8))],
    ids=['four channels', 'depth', 'another height', 'no pixels'])
def test_images_that_jpeg_cannot_hold_stay_raw(tmp_path: Path, data: bytes) -> None:
    assert compress_image(data, 90) is None
    recording = begin(tmp_path / 'bag', {compressed_topic(FRONT): COMPRESSED_IMAGE}, jpeg=90)
    recording.put(FRONT, data, START, START)
    recording.close({})
    (kept,) = open_bag(tmp_path / 'bag').read()
    assert (kept.topic, bytes(kept.data)) == (FRONT, data)


class Memory(BytesIO):
    """Is a sink."""


@pytest.mark.parametrize(('data', 'compressed'), [(os.urandom(50_000), False), (bytes(50_000), True)],
                         ids=['noise', 'zeros'])
def test_auto_compresses_where_it_pays(data: bytes, compressed: bool) -> None:
    file = McapFile(sink := Memory(), 'auto')
    file.add_schema(1, 'x', 'ros2msg', b'')
    file.add_channel(1, '/x', 1, {})
    for k in range(40):
        file.add_message(1, k, START + k, START, data)
        file.end_chunk()
    file.finish()
    sink.seek(0)
    summary = make_reader(sink).get_summary()
    assert {chunk.compression for chunk in summary.chunk_indexes} == ({'zstd'} if compressed else {''})
    assert [message.data for _, _, message in make_reader(sink, validate_crcs=True).iter_messages()] == [data] * 40


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(DataError, match="no compression 'zst'; did you mean 'zstd'"):
        McapFile(Memory(), 'zst')
    assert list(COMPRESSIONS)[0] == 'auto'


def test_missing_numbers_are_lost_messages() -> None:
    meter = TopicMeter(stamped=False)
    for publisher, number in ((b'a', 7), (b'b', 100), (b'a', 8), (b'a', 11), (b'b', 101), (b'a', 12)):
        meter.number(publisher, number)
    assert meter.lost == 2
    meter.note_lost(1)
    assert meter.lost == 2, 'the same losses are not counted twice'
    meter.note_lost(5)
    assert meter.lost == 5
    meter.forget_numbers()
    meter.number(b'a', 1000)
    assert meter.lost == 5


def test_rates_look_back_on_two_seconds_and_start_again_when_time_goes_back() -> None:
    meter = TopicMeter(stamped=True)
    assert (meter.rate, meter.age, meter.delay) == (0.0, float('inf'), None)
    for k in range(100):
        meter.add(10, k * 10 ** 8, k * 10 ** 8 - 2 * 10 ** 8)  # 10 Hz
    for k in range(1, 61):
        meter.add(10, 99 * 10 ** 8 + k * 5 * 10 ** 7, 0)       # then 20 Hz
    assert meter.rate == pytest.approx(20.0) and meter.bytes_per_second == pytest.approx(200.0)
    meter.add(10, 5, 5)
    assert meter.rate == 0.0 and meter.delay == 0.0


def test_another_error_of_the_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = begin(tmp_path / 'bag', {'/a': 'std_msgs/String'})

    def refuse(_data: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(recording.writer._sink, 'write', refuse)
    recording.put('/a', b'1', START, START)
    with pytest.raises(RecordError, match='Input/output error'):
        recording.close({})


