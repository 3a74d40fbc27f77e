"""Our bags in the hands of others: four readers that share no code with ours see the same topics, types and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bag_tools import START, TYPES, make, message, moving, record, serialize
from mcap.reader import NonSeekingReader, make_reader
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flow_vla_core.data.bag_writer import COMPRESSIONS, EpisodeWriter, Topic
from flow_vla_core.data.typestore import typestore

COUNT = 6
EPISODE = 'flow_vla/msg/Episode'


@pytest.fixture(params=sorted(COMPRESSIONS))
def bag(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Record the streams of a contract."""
    return record(tmp_path / 'bag', moving(COUNT), compression=request.param)


def file_of(bag: Path) -> Path:
    return bag / f'{bag.name}_0.mcap'


def expected() -> list[tuple[str, int, bytes]]:
    return sorted((topic, time, serialize(topic, built)) for topic, time, built in moving(COUNT))


def test_the_reader_of_mcap_sees_every_message(bag: Path) -> None:
    for make_it in (make_reader, NonSeekingReader):
        with file_of(bag).open('rb') as file:
            read = [(channel.topic, schema.name, message.log_time, message.data)
                    for schema, channel, message in make_it(file, validate_crcs=True).iter_messages()]
        assert sorted((topic, time, data) for topic, _, time, data in read) == expected()
        assert {topic: name for topic, name, _, _ in read} == TYPES


def test_rosbags_sees_the_same_messages_and_definitions(bag: Path) -> None:
    with Reader(bag) as reader, file_of(bag).open('rb') as file:
        read = sorted((connection.topic, time, bytes(data)) for connection, time, data in reader.messages())
        summary = make_reader(file).get_summary()
        texts = {schema.name: schema.data.decode() for schema in summary.schemas.values()}
        for connection in reader.connections:
            assert connection.msgdef.data == texts[connection.msgtype]
            assert connection.digest == typestore().hash_rihs01(connection.msgtype)
    assert read == expected()


def test_the_definitions_in_the_file_are_enough_to_decode_it(tmp_path: Path) -> None:
    """A reader that knows no message type at all, as Foxglove, gets every number out of what the file says."""
    bag = record_with_marks(tmp_path / 'bag')
    with file_of(bag).open('rb') as file:
        reader = make_reader(file)
        empty = get_typestore(Stores.EMPTY)
        types: dict = {}
        for schema in reader.get_summary().schemas.values():
            assert schema.encoding == 'ros2msg'
            types.update(get_types_from_msg(schema.data.decode(), schema.name))
        empty.register(types)
        for schema, _, read in reader.iter_messages():
            theirs = empty.deserialize_cdr(read.data, schema.name)
            assert plain(theirs) == plain(typestore().deserialize_cdr(read.data, schema.name))


def test_another_decoder_gets_the_same_numbers(tmp_path: Path) -> None:
    decoder = pytest.importorskip('mcap_ros2.decoder', reason='mcap-ros2-support is not installed')
    with file_of(record_with_marks(tmp_path / 'bag')).open('rb') as file:
        decoded = list(make_reader(file, decoder_factories=[decoder.DecoderFactory()]).iter_decoded_messages())
    assert len(decoded) == len(moving(COUNT)) + 1
    for schema, _, read, theirs in decoded:
        ours = plain(typestore().deserialize_cdr(read.data, schema.name))
        assert plain(theirs) == ours and ours


def test_the_reader_of_rerun_sees_the_same_channels(bag: Path) -> None:
    chunk = pytest.importorskip('rerun.chunk', reason='rerun-sdk is not installed, or too old to read MCAP')
    info = chunk.McapReader(str(file_of(bag))).info()
    assert (info.profile, info.message_count, info.statistics_present) == ('ros2', len(moving(COUNT)), True)
    assert {channel.topic: channel.schema.name for channel in info.channels} == TYPES
    assert {channel.topic: channel.message_count for channel in info.channels} == {
        topic: 1 if topic == '/instruction' else COUNT for topic in TYPES}
    assert info.message_start_time_ns == START


def record_with_marks(folder: Path) -> Path:
    """Record all kinds of messages of a contract, and one of our own with constants."""
    topics = [*(Topic(name, kind) for name, kind in TYPES.items()), Topic('/episode', EPISODE)]
    writer = EpisodeWriter(folder, topics, {})
    for topic, time, built in moving(COUNT):
        writer.write(topic, serialize(topic, built), time, time)
    mark = make(EPISODE, header=message('/ee_pose', START).header, id='bag', event=1, instruction='öffnen', task='',
                outcome=2, contract='x@y')
    writer.write('/episode', bytes(typestore().serialize_cdr(mark, EPISODE)), START, START)
    writer.close()
    return folder


def plain(value: Any) -> Any:
    """Turn a decoded message of any library into plain values."""
    if isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)) or hasattr(value, 'tolist'):
        return [plain(item) for item in value]
    names = getattr(value, '__slots__', None) or getattr(value, '__dataclass_fields__', None) or vars(value)
    return {name: plain(getattr(value, name)) for name in names if not name.isupper() and not name.startswith('_')}
