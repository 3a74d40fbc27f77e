"""Cutting and dealing out: nothing that is kept changes, and independent readers agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import errno
import os
from pathlib import Path
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, SMALL, START, TYPES, make, message, moving, record, serialize
from mcap.reader import make_reader
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
import yaml

from flow_vla_core.data import bag_writer
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.bags import read_metadata
from flow_vla_core.data.editing import Written, deal, deal_out, split_bag, trim_bag
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import ConfigError, DataError

Messages = list[tuple[str, int, bytes]]
EPISODE, WORDS = 'flow_vla/msg/Episode', '/instruction'
COUNT = 30


def by_rosbags(bag: Path) -> Messages:
    """Read a bag with rosbags."""
    with Reader(bag) as reader:
        return sorted((connection.topic, time, bytes(data)) for connection, time, data in reader.messages())


def by_mcap(bag: Path) -> Messages:
    """Read a bag with mcap's own reader."""
    with (bag / f'{bag.name}_0.mcap').open('rb') as file:
        return sorted((channel.topic, read.log_time, read.data)
                      for _, channel, read in make_reader(file, validate_crcs=True).iter_messages())


def expected(samples: Iterable[tuple[str, int, Any]]) -> Messages:
    """Serialize what a new bag should hold."""
    return sorted((topic, time, built if isinstance(built, bytes) else serialize(topic, built))
                  for topic, time, built in samples)


def mark(event: int, time: int, name: str, words: str = 'open the faucet', outcome: int = 0) -> tuple[str, int, bytes]:
    """Build an Episode message."""
    built = make(EPISODE, header=message('/ee_pose', time).header, id=name, event=event, instruction=words, task='',
                 outcome=outcome, contract=CONTRACT.label)
    return '/episode', time, bytes(typestore().serialize_cdr(built, EPISODE))


def record_marked(folder: Path, samples: Iterable[tuple[str, int, Any]], marks: dict[str, str]) -> Path:
    """Record a bag in which there may be Episode messages; words are offered to late joiners."""
    topics = [*(Topic(name, kind) for name, kind in TYPES.items()), Topic('/episode', EPISODE)]
    writer = EpisodeWriter(folder, topics, marks)
    for topic, time, data in expected(samples):
        writer.write(topic, data, time, time)
    writer.close()
    return folder


def test_a_trimmed_bag_keeps_every_byte_between_two_times(tmp_path: Path) -> None:
    samples = moving(COUNT)
    written = trim_bag(record(tmp_path / 'bag', samples), tmp_path / 'new', 10 * DT / 1e9, 19 * DT / 1e9)
    begin, end = START + 10 * DT, START + 19 * DT
    kept = [sample for sample in samples if begin <= sample[1] <= end]
    words = (WORDS, begin, samples[0][2])  # said once, before: in force from the beginning of the new bag
    assert by_rosbags(tmp_path / 'new') == by_mcap(tmp_path / 'new') == expected([*kept, words])
    assert (written.messages, written.duration) == (len(kept) + 1, pytest.approx(9 * DT / 1e9))
    marks = read_metadata(tmp_path / 'new')
    assert {key: marks[key] for key in MARKS} == MARKS
    assert marks['source'] == f'bag, from second {10 * DT / 1e9:.3f}'


def test_trimming_nothing_copies_the_bag(tmp_path: Path) -> None:
    samples = moving(6)
    trim_bag(record(tmp_path / 'bag', samples), tmp_path / 'new')
    assert by_rosbags(tmp_path / 'new') == by_rosbags(tmp_path / 'bag') == expected(samples)


def test_marks_outside_of_a_trimmed_bag_are_carried_to_its_ends(tmp_path: Path) -> None:
    last = START + (COUNT - 1) * DT
    samples = [mark(0, START, 'bag'), *moving(COUNT), mark(3, START + 3 * DT, 'bag'), mark(1, last, 'bag', outcome=1)]
    trim_bag(record_marked(tmp_path / 'bag', samples, MARKS), tmp_path / 'new', 5 * DT / 1e9, 9 * DT / 1e9)
    found = [(time, data) for topic, time, data in by_mcap(tmp_path / 'new') if topic == '/episode']
    first, judged, ended = (entry[2] for entry in (samples[0], *samples[-2:]))
    assert found == sorted([(START + 5 * DT, first), (START + 5 * DT, judged), (START + 9 * DT, ended)])


def test_idle_ends_are_cut_and_a_rest_between_stays(tmp_path: Path) -> None:
    def amplitude(k: int) -> float:
        return 0.0 if k < 30 or 60 <= k < 90 or k >= 120 else 1.0

    samples = [(topic, time, message(topic, time, amplitude((time - START) // DT) * value_of(topic, time)))
               if topic != WORDS and 'image' not in topic else (topic, time, built)
               for topic, time, built in moving(150)]
    trim_bag(record(tmp_path / 'bag', samples), tmp_path / 'new', idle=True, contract=SMALL)
    times = [time for topic, time, _ in by_rosbags(tmp_path / 'new') if topic == '/ee_pose']
    first, last = ((time - START) / DT for time in (min(times), max(times)))
    quarter = 0.25e9 / DT
    assert 30 - 2 * quarter <= first <= 30 and 119 <= last <= 119 + 2 * quarter


def value_of(topic: str, time: int) -> float:
    return 0.15 if (time - START) // DT % 2 else -0.15


def test_idle_time_needs_a_contract_and_motion(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', moving(4), marks={})
    with pytest.raises(ConfigError, match='bag: contract: the bag names none; give one'):
        trim_bag(bag, tmp_path / 'new', idle=True)
    still = [(topic, time, message(topic, time) if 'image' not in topic else built)
             for topic, time, built in moving(60)]
    with pytest.raises(DataError, match='still: nothing moves at all'):
        trim_bag(record(tmp_path / 'still', still), tmp_path / 'new', idle=True, contract=SMALL)


@pytest.mark.parametrize(('start', 'end', 'reason'), [
    (2.0, 1.0, 'start 2, end 1: 0 <= start < end'), (-1.0, None, 'start -1, end none'),
    (0.0, float('inf'), 'start 0, end inf'), (float('nan'), None, 'start nan'), (0.0, float('nan'), 'end nan'),
    (1e6, None, 'nothing lies between second 1e[+]06 and its end')])
def test_times_out_of_order_are_refused(tmp_path: Path, start: float, end: float | None, reason: str) -> None:
    bag = record(tmp_path / 'bag', moving(3))
    with pytest.raises((ConfigError, DataError), match=reason):
        trim_bag(bag, tmp_path / 'new', start, end)
    assert not (tmp_path / 'new').exists()


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bag = record(tmp_path / 'bag', moving(8))
    (tmp_path / 'new').mkdir()
    with pytest.raises(DataError, match='new: exists already; nothing is overwritten'):
        trim_bag(bag, tmp_path / 'new')
    calls = iter(range(20))

    def fail(self: EpisodeWriter, *_: object) -> None:
        if next(calls) == 10:
            raise DataError('no')

    monkeypatch.setattr(bag_writer.EpisodeWriter, 'write', fail)
    with pytest.raises(DataError, match='no'):
        split_bag(bag, tmp_path / 'out', '0.1s')
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_seconds_divide_a_bag_without_loss(tmp_path: Path) -> None:
    samples = moving(COUNT)
    step = 8 * DT / 1e9
    parts = split_bag(record(tmp_path / 'bag', samples), tmp_path / 'out', f'{step:g}s')
    assert [part.folder.name for part in parts] == [f'bag_{k:03d}' for k in range(4)]
    whole = [entry for part in parts for entry in by_rosbags(part.folder) if entry[0] != WORDS]
    assert sorted(whole) == expected(sample for sample in samples if sample[0] != WORDS)
    for k, part in enumerate(parts):
        words, = [entry for entry in by_rosbags(part.folder) if entry[0] == WORDS]
        assert words[1:] == (START + 8 * k * DT, serialize(WORDS, samples[0][2]))
    assert [read_metadata(part.folder)['outcome'] for part in parts] == ['unknown'] * 3 + ['success']


def test_marks_divide_a_bag_into_its_episodes(tmp_path: Path) -> None:
    times = {name: (START + begin * DT, START + end * DT) for name, begin, end in (('a', 2, 9), ('b', 12, 20))}
    marks = [entry for k, (name, (begin, end)) in enumerate(times.items())
             for entry in (mark(0, begin, name, f'words {name}'), mark(1, end, name, f'words {name}', 1 + k))]
    samples = [*moving(COUNT), *marks]
    parts = split_bag(record_marked(tmp_path / 'bag', samples, {'contract': CONTRACT.label}), tmp_path / 'out', 'marks')
    for part, (name, (begin, end)), outcome in zip(parts, times.items(), ('success', 'failure')):
        kept = [entry for entry in expected(samples) if begin <= entry[1] <= end]
        assert by_rosbags(part.folder) == sorted([*kept, (WORDS, begin, serialize(WORDS, samples[0][2]))])
        told = read_metadata(part.folder)
        assert (told['instruction'], told['outcome'], told['source']) == (f'words {name}', outcome, 'bag')


def test_words_divide_a_bag(tmp_path: Path) -> None:
    said = [(WORDS, START + k * DT, make('std_msgs/String', data=words)) for k, words in
            ((0, 'push'), (10, 'pull'), (15, 'pull'), (20, 'push'))]
    samples = [*(sample for sample in moving(COUNT) if sample[0] != WORDS), *said]
    parts = split_bag(record(tmp_path / 'bag', samples, marks={}), tmp_path / 'out', 'instruction')
    assert [read_metadata(part.folder)['instruction'] for part in parts] == ['push', 'pull', 'push']
    assert sorted(entry for part in parts for entry in by_rosbags(part.folder)) == expected(samples)
    with pytest.raises(DataError, match='bag: the instruction never changes'):
        split_bag(record(tmp_path / 'one' / 'bag', moving(3)), tmp_path / 'other', 'instruction')


def test_messages_of_a_topic_divide_a_bag(tmp_path: Path) -> None:
    samples = moving(COUNT)
    topics = [*(Topic(name, kind) for name, kind in TYPES.items()), Topic('/button', 'std_msgs/msg/Empty')]
    writer = EpisodeWriter(tmp_path / 'bag', topics, MARKS)
    for topic, time, data in sorted(expected(samples), key=lambda entry: entry[1]):
        if topic == '/ee_pose' and time in (START + 10 * DT, START + 20 * DT):
            writer.write('/button', b'\x00\x01\x00\x00\x00', time, time)
        writer.write(topic, data, time, time)
    writer.close()
    parts = split_bag(tmp_path / 'bag', tmp_path / 'out', '/button')
    first = [min(time for _, time, _ in by_rosbags(part.folder)) for part in parts]
    assert first == [START, START + 10 * DT, START + 20 * DT]
    with pytest.raises(DataError, match='bag: /knob: not recorded'):
        split_bag(tmp_path / 'bag', tmp_path / 'other', '/knob')


def test_other_storages_become_mcap_with_the_same_messages(tmp_path: Path) -> None:
    samples = moving(5)
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        opened = {topic: writer.add_connection(topic, kind, typestore=typestore()) for topic, kind in TYPES.items()}
        for topic, time, built in samples:
            writer.write(opened[topic], time, serialize(topic, built))
    trim_bag(tmp_path / 'bag', tmp_path / 'new')
    assert by_mcap(tmp_path / 'new') == by_rosbags(tmp_path / 'bag')


def test_types_that_only_the_bag_defines_go_along(tmp_path: Path) -> None:
    text = 'float64 x\nuint8 tone\n'
    writer = EpisodeWriter(tmp_path / 'bag', [Topic('/own', 'lab_msgs/msg/Own', (), ('ros2msg', text, ''))], {})
    data = b'\x00\x01\x00\x00' + bytes(9)
    writer.write('/own', data, START, START)
    writer.close()
    trim_bag(tmp_path / 'bag', tmp_path / 'new')
    with (tmp_path / 'new' / 'new_0.mcap').open('rb') as file:
        (schema, channel, read), = make_reader(file).iter_messages()
    assert (schema.name, schema.encoding, schema.data.decode()) == ('lab_msgs/msg/Own', 'ros2msg', text)
    assert (channel.topic, read.data) == ('/own', data)
    assert open_bag(tmp_path / 'new').decode('/own', data).tone == 0


def test_a_type_that_nobody_defines_can_only_be_left_out(tmp_path: Path) -> None:
    topics = [Topic('/own', 'lab_msgs/msg/Own', (), ('', '', '')), Topic(WORDS, TYPES[WORDS])]
    writer = EpisodeWriter(tmp_path / 'bag', topics, {})
    for topic in ('/own', WORDS):
        writer.write(topic, serialize(WORDS, message(WORDS, START)), START, START)
    writer.close()
    with pytest.raises(DataError, match='/own: no definition of lab_msgs/msg/Own is known.*--without /own'):
        trim_bag(tmp_path / 'bag', tmp_path / 'new')
    trim_bag(tmp_path / 'bag', tmp_path / 'new', without=['/own'])
    assert [topic for topic, _, _ in by_rosbags(tmp_path / 'new')] == [WORDS]


def test_offers_go_along_so_that_latched_topics_stay_latched(tmp_path: Path) -> None:
    forever = {'sec': 9223372036, 'nsec': 854775807}
    offer = {'history': 'keep_last', 'depth': 1, 'reliability': 'reliable', 'durability': 'transient_local',
             'deadline': forever, 'lifespan': forever, 'liveliness': 'automatic', 'liveliness_lease_duration': forever,
             'avoid_ros_namespace_conventions': False}
    topics = [Topic('/words', 'std_msgs/msg/String', (offer,)), Topic('/pulse', 'std_msgs/msg/String')]
    writer = EpisodeWriter(tmp_path / 'bag', topics, {})
    data = serialize(WORDS, message(WORDS, START))
    for k in range(4):
        for topic in ('/words', '/pulse') if k == 0 else ('/pulse',):
            writer.write(topic, data, START + k * DT, START + k * DT)
    writer.close()
    trim_bag(tmp_path / 'bag', tmp_path / 'new', 2 * DT / 1e9)
    assert by_rosbags(tmp_path / 'new') == [('/pulse', START + 2 * DT, data), ('/pulse', START + 3 * DT, data),
                                            ('/words', START + 2 * DT, data)]
    told = yaml.safe_load((tmp_path / 'new' / 'metadata.yaml').read_text())['rosbag2_bagfile_information']
    offers = {part['topic_metadata']['name']: part['topic_metadata']['offered_qos_profiles']
              for part in told['topics_with_message_count']}
    assert offers['/words'] == [offer] and offers['/pulse'] == []


def make_folder(root: Path, names: dict[str, str]) -> list[Path]:
    """Record tiny bags, name -> words."""
    for name, words in names.items():
        writer = EpisodeWriter(root / name, [Topic(WORDS, TYPES[WORDS])], {'instruction': words})
        writer.write(WORDS, serialize(WORDS, message(WORDS, START)), START, START)
        writer.close()
    return [root / name for name in names]


def test_bags_are_dealt_out_by_words_and_seed(tmp_path: Path) -> None:
    names = {f'{words}/bag_{k}': words for words in ('push', 'pull') for k in range(10)}
    bags = make_folder(tmp_path / 'bags', names)
    dealt = deal_out(bags, tmp_path / 'bags', tmp_path / 'a', 0.2, seed=1)
    assert {side: len(found) for side, found in dealt.items()} == {'train': 16, 'validation': 4}
    chosen = {str(bag.relative_to(tmp_path / 'a' / 'validation')) for bag in dealt['validation']}
    assert sorted(name.split('/')[0] for name in chosen) == ['pull', 'pull', 'push', 'push']
    for side, found in dealt.items():
        for bag in found:
            name = bag.relative_to(tmp_path / 'a' / side)
            assert by_rosbags(bag) == by_rosbags(tmp_path / 'bags' / name)
    again = deal_out(bags, tmp_path / 'bags', tmp_path / 'b', 0.2, seed=1, link=True)['validation']
    assert {str(bag.relative_to(tmp_path / 'b' / 'validation')) for bag in again} == chosen
    file = next(again[0].glob('*.mcap'))
    assert os.stat(file).st_nlink == 2
    others = [deal_out(bags, tmp_path / 'bags', tmp_path / f'c{seed}', 0.2, seed)['validation'] for seed in range(2, 6)]
    assert any({bag.name for bag in found} != {Path(name).name for name in chosen} for found in others)


def test_a_folder_that_is_dealt_out_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bags = make_folder(tmp_path / 'bags', {'a': 'x', 'b': 'y'})
    left = [bags[0] / 'metadata.yaml', bags[1] / 'metadata.yaml']

    def copy(source: str, target: str) -> None:
        if left.pop() and not left:
            raise OSError(errno.ENOSPC, 'No space left on device')
        Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(deal.shutil, 'copy2', copy)
    with pytest.raises(DataError, match='out: .*No space left on device'):
        deal_out(bags, tmp_path / 'bags', tmp_path / 'out', 0.5, 0)
    assert [path.name for path in tmp_path.iterdir()] == ['bags']


@pytest.mark.parametrize('edit', [lambda bag, out: trim_bag(bag, out), lambda bag, out: split_bag(bag, out, '30s')[0]],
                         ids=['trim', 'split'])
def test_what_is_cut_out_of_a_damaged_bag_says_so(tmp_path: Path, edit: Callable[[Path, Path], Written]) -> None:
    bag = record(tmp_path / 'bag', moving(20))
    assert edit(bag, tmp_path / 'whole').problems == ()
    file = next(bag.glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    assert 'cut off' in edit(bag, tmp_path / 'part').problems[0]


def test_nothing_is_split_out_of_a_bag_without_messages(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='bag: no messages'):
        split_bag(record(tmp_path / 'bag', []), tmp_path / 'out', 'marks')


def test_dealing_out_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    bags = make_folder(tmp_path / 'bags', {'a': 'x', 'b': 'y'})
    assert len(deal_out(bags, tmp_path / 'bags', tmp_path / 'out', 0.5, 0)['validation']) == 1
    with pytest.raises(DataError, match='out: is not empty; nothing is overwritten'):
        deal_out(bags, tmp_path / 'bags', tmp_path / 'out', 0.5, 0)
    with pytest.raises(ConfigError, match='share 100 %: above 0 and below 100'):
        deal_out(bags, tmp_path / 'bags', tmp_path / 'new', 1.0, 0)
    with pytest.raises(DataError, match='1 bags; at least two'):
        deal_out(bags[:1], tmp_path / 'bags', tmp_path / 'new', 0.5, 0)
