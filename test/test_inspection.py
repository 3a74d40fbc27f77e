"""What is said about bags: each thing that can be wrong with one is one finding, and nothing raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import random
from typing import Any

from bag_tools import CONTRACT, DT, MARKS, SMALL, START, TYPES, image, make, message, moving, record, serialize, steps
from mcap.reader import make_reader
from mcap.writer import Writer
import numpy as np
import pytest
import yaml

from flow_vla_core.data.bag_writer import EpisodeWriter, Topic
from flow_vla_core.data.bags import find_bags
from flow_vla_core.data.inspection import Detail, Finding, FindingCode, Severity, inspect_bag, inspect_bags
from flow_vla_core.data.inspection.findings import MEANING, read_codes, worst
from flow_vla_core.data.inspection.motion import distribute, idle_spans, still
from flow_vla_core.data.inspection.pictures import EvenlySpaced
from flow_vla_core.data.inspection.scan import TopicScan
from flow_vla_core.data.inspection.survey import robust_scores
from flow_vla_core.data.inspection.timing import measure
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import ConfigError
from flow_vla_core.types import Actor

FRONT, POSE, JOINTS, TWIST, GRIPPER = ('/camera/front/image_raw', '/ee_pose', '/joint_states', '/servo/twist_cmd',
                                       '/gripper/command')
COUNT = 40
SECOND = 10 ** 9
Samples = list[tuple[str, int, Any]]
NUMBERS = Detail.none()


def codes(bag: Path, contract: Any = SMALL) -> list[tuple[str, str]]:
    """Return code and topic of each finding of a bag."""
    return [(finding.code.name, finding.topic) for finding in inspect_bag(bag, contract, NUMBERS).findings]


def stamped(topic: str, stamp: int) -> Callable[[Samples], Samples]:
    """Change every stamp of a topic to one and the same."""
    return lambda samples: [(name, time, message(topic, stamp, value(built)) if name == topic else built)
                            for name, time, built in samples]


def shifted(topic: str, shift: int, first: int = 0, last: int = COUNT) -> Callable[[Samples], Samples]:
    """Move the stamps of a topic's messages, ns; those from ``first`` to before ``last``."""
    def change(samples: Samples) -> Samples:
        return [(name, time, message(topic, time + shift, value(built)) if name == topic
                 and first <= (time - START) // DT < last else built) for name, time, built in samples]
    return change


def value(built: Any) -> float:
    """Return the number that `message` was built from."""
    if hasattr(built, 'pose'):
        return built.pose.position.x
    if hasattr(built, 'twist'):
        return built.twist.linear.x
    if hasattr(built, 'points'):
        return built.points[0].positions[0]
    return float(built.data[0] if hasattr(built, 'encoding') else built.position[0])


def without(topic: str, first: int, last: int) -> Callable[[Samples], Samples]:
    """Leave the messages of a topic out, from the step ``first`` to before ``last``."""
    return lambda samples: [sample for sample in samples
                            if not (sample[0] == topic and first <= (sample[1] - START) // DT < last)]


def swapped(topic: str) -> Callable[[Samples], Samples]:
    """Let every tenth message of a topic come one step late, after the next one."""
    def change(samples: Samples) -> Samples:
        late = {START + k * DT for k in range(5, COUNT, 10)}
        return [(name, time + DT + 1000 if name == topic and time in late else time, built)
                for name, time, built in samples]
    return change


def replaced(topic: str, built: Callable[[int], Any], every: int = 1) -> Callable[[Samples], Samples]:
    """Put other messages in the place of a topic's."""
    return lambda samples: [(name, time, built(time) if name == topic and (time - START) // DT % every == 0 else old)
                            for name, time, old in samples]


def twist(x: float) -> Callable[[int], Any]:
    return lambda time: message(TWIST, time, x)


CASES: dict[str, tuple[Callable[[Samples], Samples], list[tuple[str, str]]]] = {
    'nothing': (lambda samples: samples, []),
    'zero stamps': (stamped(POSE, 0), [('STAMP_ZERO', POSE)]),
    'a few zero stamps': (replaced(JOINTS, lambda time: message(JOINTS, 0, 0.01), 8), [('STAMP_ZERO', JOINTS)]),
    'zero in commands means now': (stamped(GRIPPER, 0), []),
    'the future': (shifted(POSE, SECOND // 2), [('STAMP_FUTURE', POSE)]),
    'far from receipt': (shifted(POSE, -100 * SECOND, 10, 14), [('STAMP_FAR', POSE)]),
    'four from the future': (shifted(POSE, 100 * SECOND, 10, 14), [('STAMP_FUTURE', POSE)]),
    'far backwards': (shifted(POSE, -30 * SECOND, 20), [('STAMP_BACKWARDS', POSE)]),
    'backwards': (shifted(POSE, -SECOND // 2, 20), [('STAMP_BACKWARDS', POSE)]),
    'repeated': (lambda s: [*s[:8], *(x for x in s[8:] if x[0] != JOINTS),
                            *((JOINTS, t, message(JOINTS, t - t % (2 * DT), 0.01 * k)) for k, t in
                              enumerate(range(START + 2 * DT, START + COUNT * DT, DT)))], [('STAMP_REPEATED', JOINTS)]),
    'gap': (without(FRONT, 10, 22), [('GAP', FRONT)]),
    'gap in commands': (without(TWIST, 10, 22), [('GAP', TWIST)]),
    'reordered': (swapped(JOINTS), [('REORDERED', JOINTS)]),
    'drops': (lambda samples: [s for s in samples if s[0] != TWIST or (s[1] - START) // DT % 9 != 4],
              [('DROPS', TWIST)]),
    'slow': (lambda samples: [s for s in samples if s[0] != JOINTS or (s[1] - START) // DT % 2 == 0],
             [('RATE_LOW', JOINTS)]),
    'resolution': (replaced(FRONT, lambda time: image(time, np.full((10, 14, 3), time // DT % 256, np.uint8)), 2),
                   [('RESOLUTION_WRONG', FRONT)]),
    'encoding': (replaced(FRONT, lambda t: image(t, np.full((12, 12, 3), t // DT % 256, np.uint8), encoding='bgr8')),
                 [('ENCODING_WRONG', FRONT)]),
    'short image': (replaced(FRONT, lambda t: image(t, np.full((12, 12, 3), t // DT % 256, np.uint8),
                                                    data=np.zeros(9, np.uint8)), 20), [('IMAGE_INVALID', FRONT)]),
    'frozen': (replaced(FRONT, lambda time: image(time, np.full((12, 12, 3), 7, np.uint8))), [('FROZEN', FRONT)]),
    'NaN in the state': (replaced(POSE, lambda time: message(POSE, time, float('nan')), 20), [('NOT_FINITE', POSE)]),
    'infinity in a command': (replaced(GRIPPER, lambda time: message(GRIPPER, time, float('inf')), 20),
                              [('NOT_FINITE', GRIPPER)]),
    'beyond the limits': (replaced(TWIST, twist(0.3)), [('OUT_OF_LIMITS', TWIST)]),
    'damaged message': (replaced(JOINTS, lambda time: b'\x00\x01\x00\x00' + time.to_bytes(8, 'little'), 20),
                        [('MESSAGE_DAMAGED', JOINTS)]),
}


@pytest.mark.parametrize('name', CASES)
def test_each_case_is_found_and_nothing_else(tmp_path: Path, name: str) -> None:
    change, expected = CASES[name]
    assert codes(record(tmp_path / 'bag', change(moving(COUNT)))) == expected


def test_messages_carry_the_numbers(tmp_path: Path) -> None:
    def line(name: str) -> str:
        return inspect_bag(record(tmp_path / name, CASES[name][0](moving(COUNT))), SMALL, NUMBERS).findings[0].message

    assert line('a few zero stamps') == '5 of 40 stamps are zero'
    assert line('the future') == '40 of 40 stamps lie after their receipt, by up to 0.500 s'
    assert line('far from receipt') == '4 of 40 stamps lie more than 1 s before their receipt, up to 100.000 s'
    gap = 13 * DT / SECOND
    assert line('gap').startswith(f'1 gap, {gap:.2f} s in all; the longest lasts {gap:.2f} s from second '
                                  f'{9 * DT / SECOND:.2f} on; the contract allows ')
    assert line('reordered') == '4 of 40 messages come after later ones'
    assert line('beyond the limits') == 'x: 40 of 40 commands; 0.3 to 0.3, allowed -0.2 to 0.2 m/s'


def test_a_gap_is_an_error_only_where_the_contract_forbids_it(tmp_path: Path) -> None:
    for name, severity in (('gap', Severity.ERROR), ('gap in commands', Severity.WARNING)):
        finding, = inspect_bag(record(tmp_path / name, CASES[name][0](moving(COUNT))), SMALL, NUMBERS).findings
        assert finding.severity == severity


def test_a_stream_that_comes_late_is_skewed(tmp_path: Path) -> None:
    late = round(2 * SMALL.state[0].max_skew * SECOND)
    samples = [(name, time, built) for name, time, built in moving(COUNT) if name != POSE or (time - START) % late == 0]
    found = codes(record(tmp_path / 'bag', samples))
    assert ('SKEWED', POSE) in found and {topic for _, topic in found} == {POSE}


def test_the_clock_of_a_simulation_is_one_finding(tmp_path: Path) -> None:
    samples = [(name, time + 400 * SECOND, built) for name, time, built in moving(COUNT)]
    finding, = inspect_bag(record(tmp_path / 'bag', samples), SMALL, NUMBERS).findings
    assert (finding.code, finding.topic) == (FindingCode.STAMP_FAR, '')
    assert 'all stamps lie 400.000 s behind' in finding.message


def test_missing_silent_and_wrong_topics(tmp_path: Path) -> None:
    rest = [sample for sample in moving(COUNT) if sample[0] != POSE]
    assert codes(record(tmp_path / 'absent', rest, leave_out=[POSE])) == [('TOPIC_MISSING', 'ee_pose')]
    assert codes(record(tmp_path / 'silent', rest)) == [('TOPIC_SILENT', POSE)]
    point = make('geometry_msgs/Twist', linear=make('geometry_msgs/Vector3', x=0.0, y=0.0, z=0.0),
                 angular=make('geometry_msgs/Vector3', x=0.0, y=0.0, z=0.0))
    writer = EpisodeWriter(tmp_path / 'wrong', [Topic(name, 'geometry_msgs/msg/Twist' if name == POSE else kind)
                                                for name, kind in TYPES.items()], MARKS)
    for name, time, built in moving(COUNT):
        data = bytes(typestore().serialize_cdr(point, 'geometry_msgs/msg/Twist')) if name == POSE else serialize(
            name, built)
        writer.write(name, data, time, time)
    writer.close()
    assert codes(tmp_path / 'wrong') == [('TYPE_WRONG', POSE)]


def test_bags_without_messages_are_empty(tmp_path: Path) -> None:
    assert codes(record(tmp_path / 'channels', [])) == [('EMPTY', '')]
    EpisodeWriter(tmp_path / 'nothing', [], {}).close()
    assert codes(tmp_path / 'nothing') == [('EMPTY', '')]


def test_what_is_no_bag_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / 'metadata.yaml').write_text('a: [')
    for place in (tmp_path, tmp_path / 'nowhere'):
        assert codes(place) == [('UNREADABLE', '')]
    (tmp_path / 'noise_0.mcap').write_bytes(b'noise')
    (tmp_path / 'metadata.yaml').unlink()
    assert codes(tmp_path / 'noise_0.mcap') == [('UNREADABLE', '')]


@pytest.mark.parametrize('compression', ['none', 'zstd', 'lz4'])
def test_a_truncated_bag_is_damaged_and_read_as_far_as_it_goes(tmp_path: Path, compression: str) -> None:
    bag, topics = tmp_path / 'bag', [Topic(name, kind) for name, kind in TYPES.items()]
    writer = EpisodeWriter(bag, topics, MARKS, compression, chunk_bytes=4000)
    for name, time, built in moving(COUNT):
        writer.write(name, serialize(name, built), time, time)
    writer.close()
    with writer.file.open('rb') as file:
        chunks = make_reader(file).get_summary().chunk_indexes
    middle = chunks[len(chunks) // 2]
    writer.file.write_bytes(writer.file.read_bytes()[:middle.chunk_start_offset + middle.chunk_length // 2])
    report = inspect_bag(bag, SMALL, NUMBERS)
    assert {finding.code.name for finding in report.findings} <= {'DAMAGED', 'CONSTANT'}
    assert report.findings[0].code == FindingCode.DAMAGED and report.findings[0].message.startswith('bag_0.mcap: ')
    assert 0 < report.messages < len(moving(COUNT))


def test_flipped_bytes_never_raise(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', moving(4), compression='none')
    whole, generator = (bag / 'bag_0.mcap').read_bytes(), random.Random(3)
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 8, 60])):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (bag / 'bag_0.mcap').write_bytes(damaged)
        found = inspect_bag(bag, SMALL, Detail(2, 10, 10)).findings
        assert all(isinstance(finding, Finding) for finding in found)


def test_the_metadata_are_held_against_the_files(tmp_path: Path) -> None:
    bag = record(tmp_path / 'bag', moving(COUNT))
    values = yaml.safe_load((bag / 'metadata.yaml').read_text())
    count = values['rosbag2_bagfile_information']['message_count']
    values['rosbag2_bagfile_information']['message_count'] = count + 3
    (bag / 'metadata.yaml').write_text(yaml.safe_dump(values))
    finding, = inspect_bag(bag, SMALL, NUMBERS).findings
    assert finding.code == FindingCode.COUNT_DIFFERS
    assert finding.message == f'the metadata speak of {count + 3} messages, the files hold {count}'


def test_a_type_that_nobody_knows_is_foreign_and_one_that_the_bag_defines_is_not(tmp_path: Path) -> None:
    with (tmp_path / 'foreign.mcap').open('wb') as file:
        writer = Writer(file)
        writer.start('ros2')
        for topic, text in (('/known', b'std_msgs/Header header\nfloat64 x\n' + b'=' * 80 + b'\nMSG: std_msgs/Header\n'
                             b'builtin_interfaces/Time stamp\nstring frame_id\n' + b'=' * 80
                             + b'\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n'), ('/unknown', b'')):
            schema = writer.register_schema(f'lab_msgs/msg/{topic[1:].title()}', 'ros2msg' if text else '', text)
            channel = writer.register_channel(topic, 'cdr', schema)
            data = b'\x00\x01\x00\x00' + (5).to_bytes(4, 'little') + bytes(4) + (1).to_bytes(4, 'little') + bytes(16)
            writer.add_message(channel, 7 * SECOND, data, 7 * SECOND)
        writer.finish()
    report = inspect_bag(tmp_path / 'foreign.mcap', detail=NUMBERS)
    assert [(finding.code.name, finding.topic) for finding in report.findings] == [
        ('CONTRACT_UNKNOWN', ''), ('TYPE_FOREIGN', '/unknown'), ('STAMP_FAR', '/known')]


def test_words_marks_and_contract(tmp_path: Path) -> None:
    mute = [sample for sample in moving(COUNT) if sample[0] != '/instruction']
    marks = {'contract': CONTRACT.label}
    assert codes(record(tmp_path / 'mute', mute, marks=marks)) == [('NO_INSTRUCTION', '/instruction')]
    assert codes(record(tmp_path / 'free', mute, marks={}), None) == [('CONTRACT_UNKNOWN', '')]
    other = record(tmp_path / 'other', moving(COUNT), marks={**MARKS, 'contract': 'metaworld@00000000'})
    assert codes(other, None) == [('CONTRACT_UNKNOWN', '')]
    assert codes(other, SMALL) == [('CONTRACT_DIFFERS', '')]
    nobody = record(tmp_path / 'else', moving(COUNT), marks={**MARKS, 'contract': 'nobody@12345678'})
    assert codes(nobody, None) == [('CONTRACT_UNKNOWN', '')]
    large = record(tmp_path / 'large', steps(3))  # is held against the contract that its marks name
    assert inspect_bag(large).contract == CONTRACT


def test_an_episode_that_nobody_ended(tmp_path: Path) -> None:
    episode = make('flow_vla/Episode', header=message(POSE, START).header, id='bag', event=0, instruction='go',
                   task='', outcome=0, contract=CONTRACT.label)
    writer = EpisodeWriter(tmp_path / 'bag', [*(Topic(name, kind) for name, kind in TYPES.items()),
                                              Topic('/episode', 'flow_vla/msg/Episode')], MARKS)
    writer.write('/episode', bytes(typestore().serialize_cdr(episode, 'flow_vla/msg/Episode')), START, START)
    for name, time, built in moving(COUNT):
        writer.write(name, serialize(name, built), time, time)
    writer.close()
    assert codes(tmp_path / 'bag') == [('NOT_ENDED', '')]


def status(source: int) -> Any:
    """Build an ExecutionStatus of which only the source matters."""
    kind = typestore().types['flow_vla/msg/ExecutionStatus']
    zeros = {name: _zero(field) for name, field in typestore().fielddefs['flow_vla/msg/ExecutionStatus'][1]}
    return kind(**{**zeros, 'header': message(POSE, START).header, 'source': source,
                   'chunk_age': make('builtin_interfaces/Duration', sec=0, nanosec=0)})


def _zero(field: tuple) -> Any:
    number, detail = int(field[0]), field[1]
    if number == 4:
        return [] if detail[0][1][0] == 'string' else np.zeros(0, detail[0][1][0])
    return '' if detail[0] == 'string' else 0


def test_who_acted_and_what_was_lost(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / 'bag', [*(Topic(name, kind) for name, kind in TYPES.items()),
                                              Topic('/executor/status', 'flow_vla/msg/ExecutionStatus')], MARKS)
    for name, time, built in moving(COUNT):
        writer.write(name, serialize(name, built), time, time)
    for k, source in ((0, 1), (10, 1), (20, 2), (30, 1)):
        data = bytes(typestore().serialize_cdr(status(source), 'flow_vla/msg/ExecutionStatus'))
        writer.write('/executor/status', data, START + k * DT, START + k * DT)
    writer.close()
    spans = inspect_bag(tmp_path / 'bag', SMALL, NUMBERS).acting
    assert [(span.label, span.start, span.end) for span in spans] == [
        (Actor.POLICY.name.lower(), START, START + 20 * DT), (Actor.PERSON.name.lower(), START + 20 * DT,
                                                              START + 30 * DT),
        (Actor.POLICY.name.lower(), START + 30 * DT, START + (COUNT - 1) * DT)]


def test_a_bag_in_which_nothing_moves_is_idle(tmp_path: Path) -> None:
    samples = [(name, time, message(name, time, 0.0) if 'image' not in name else built)
               for name, time, built in moving(120)]
    report = inspect_bag(record(tmp_path / 'bag', samples), SMALL, NUMBERS)
    assert [finding.code.name for finding in report.findings] == ['IDLE']
    span, = report.idle
    assert (span.start, span.end) == (START, START + 119 * DT)


def test_losses_that_the_recorder_counted(tmp_path: Path) -> None:
    kind = 'flow_vla/msg/RecorderStatus'
    writer = EpisodeWriter(tmp_path / 'bag', [*(Topic(name, kind) for name, kind in TYPES.items()),
                                              Topic('/recorder/status', kind)], MARKS)
    for name, time, built in moving(COUNT):
        writer.write(name, serialize(name, built), time, time)
    zeros = {name: _zero(part) for name, part in typestore().fielddefs[kind][1]}
    for k, lost in ((0, 0), (20, 7)):
        told = typestore().types[kind](**{
            **zeros, 'header': message(POSE, START + k * DT).header, 'dropped': lost, 'topics': [FRONT, POSE],
            'drops': np.array([lost, 0], np.uint64)})
        writer.write('/recorder/status', bytes(typestore().serialize_cdr(told, kind)), START + k * DT, START + k * DT)
    writer.close()
    report = inspect_bag(tmp_path / 'bag', SMALL, NUMBERS)
    assert [str(finding.message) for finding in report.findings] == [f'the recorder lost 7 messages: {FRONT} 7']
    assert {topic.name: topic.lost for topic in report.topics if topic.lost} == {FRONT: 7}


def test_a_leap_is_wider_than_the_limits_allow(tmp_path: Path) -> None:
    part = SMALL.actions[0]
    slow = part.model_copy(update={'limits': part.limits.model_copy(update={'acceleration': (0.5, 0.5, 0.5)})})
    contract = SMALL.model_copy(update={'actions': (slow, *SMALL.actions[1:])})
    smooth = [(name, time, message(name, time, 0.001 * ((time - START) // DT)) if name == TWIST else built)
              for name, time, built in moving(COUNT)]
    assert codes(record(tmp_path / 'smooth', smooth), contract) == []
    leap = replaced(TWIST, lambda time: message(TWIST, time, 0.1 if time >= START + 20 * DT else -0.1))(smooth)
    finding, = inspect_bag(record(tmp_path / 'leap', leap), contract, NUMBERS).findings
    times = 0.2 / (0.5 * DT / SECOND)
    assert (finding.code.name, finding.topic) == ('JUMP', TWIST)
    assert finding.message == ('x: 1 steps are more than 2 times what the limits allow; the widest is '
                               f'{times:.1f} times that, from -0.100 to 0.100 m/s')


def test_commands_much_larger_than_in_other_bags(tmp_path: Path) -> None:
    for k in range(6):
        size = 1.2 if k == 3 else 0.3
        samples = [(name, time, message(name, time, size * value(built)) if name == TWIST else built)
                   for name, time, built in moving(20, phase=0.01 * k)]
        record(tmp_path / f'bag_{k}', samples)
    found = {(finding.code.name, Path(finding.bag).name, finding.topic)
             for finding in inspect_bags(find_bags(tmp_path), SMALL, NUMBERS).findings if finding.bag}
    assert found == {('OUTLIER_ACTION', 'bag_3', 'action ee.x')}


def test_stamps_from_anywhere_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    wild = [1, 2 ** 31 * SECOND - 1, 5 * SECOND, 10 ** 18]
    samples = [(name, time, message(name, wild[k % 4], 0.1) if name in (POSE, JOINTS, TWIST, GRIPPER) else built)
               for k, (name, time, built) in enumerate(moving(12))]
    samples.append(('/ee_pose', 2 ** 63 - 1, message('/ee_pose', START)))
    assert {name for name, _ in codes(record(tmp_path / 'bag', samples))} & {'STAMP_FUTURE', 'STAMP_FAR'}


def test_duplicates_are_found_whatever_their_names_and_words(tmp_path: Path) -> None:
    record(tmp_path / 'a', moving(10))
    record(tmp_path / 'b', moving(10, phase=0.2))
    record(tmp_path / 'c', list(reversed(moving(10))), marks={**MARKS, 'instruction': 'else'}, compression='lz4')
    survey = inspect_bags(find_bags(tmp_path), SMALL, NUMBERS)
    found = [finding for finding in survey.findings if finding.code == FindingCode.DUPLICATE]
    assert [(Path(finding.bag).name, finding.message) for finding in found] == [
        ('c', f'holds the same messages as {tmp_path / "a"}')]


def test_outliers_show_beside_others_of_the_same_words(tmp_path: Path) -> None:
    for k, count in enumerate((20, 21, 20, 22, 21, 90)):
        record(tmp_path / f'bag_{k}', moving(count, phase=0.1 * k))
    record(tmp_path / 'other', moving(60), marks={**MARKS, 'instruction': 'another task'})
    survey = inspect_bags(find_bags(tmp_path), SMALL, NUMBERS)
    found = {(finding.code.name, Path(finding.bag).name) for finding in survey.findings if finding.bag}
    assert ('OUTLIER_LENGTH', 'bag_5') in found and {name for _, name in found} == {'bag_5'}


def test_a_value_that_never_changes_is_told_once_for_all_bags(tmp_path: Path) -> None:
    for k in range(2):
        record(tmp_path / f'bag_{k}', replaced(GRIPPER, lambda time: message(GRIPPER, time, 0.5))(moving(12, phase=k)))
    found = [finding for finding in inspect_bags(find_bags(tmp_path), SMALL, NUMBERS).findings
             if finding.topic == 'action gripper.gripper']
    assert [(finding.code.name, finding.bag) for finding in found] == [('CONSTANT', '')]
    assert found[0].message == 'is 0.5 1 throughout all 2 bags'


def topic(stamps: np.ndarray, delay: int = 0) -> TopicScan:
    return TopicScan('/x', 'x', '', stamps + delay, stamps, 0, True)


def test_timing_of_a_known_train_of_stamps() -> None:
    stamps = START + np.arange(100) * 20_000_000
    kept = np.delete(stamps, [10, 30, 31, 50, 51, 52, 53, 54])
    timing = measure(topic(kept, delay=3_000_000))
    assert (timing.count, timing.period) == (92, pytest.approx(0.02))
    assert timing.rate == pytest.approx(91 / 1.98)
    assert [gap.length for gap in timing.gaps] == [pytest.approx(0.12)] and timing.gaps[0].start == stamps[49]
    assert timing.drops == 3  # one, and two in a row; five in a row are a gap
    assert timing.delay == pytest.approx((0.003,) * 4)


def test_timing_tells_overtaken_messages_from_a_clock_that_jumps() -> None:
    stamps = START + np.arange(60) * 20_000_000
    swapped_once = stamps.copy()
    swapped_once[[20, 21]] = swapped_once[[21, 20]]
    assert (measure(topic(swapped_once)).overtaken, measure(topic(swapped_once)).jumps) == (1, 0)
    jumped = np.r_[stamps[:30], stamps[:30]]
    assert (measure(topic(jumped)).overtaken, measure(topic(jumped)).jumps) == (0, 1)


def test_topics_without_a_period_have_no_gaps() -> None:
    for stamps in (START + np.array([0, 1, 50, 51, 900, 901, 5000, 5002, 9000]) * 10 ** 7, np.array([START]),
                   np.zeros(0, np.int64)):
        timing = measure(topic(stamps))
        assert (timing.period, timing.gaps, timing.drops) == (0, (), 0)


def test_stillness_of_a_ramp_between_two_rests() -> None:
    grid = START + np.arange(101) * 50_000_000
    values = np.clip(np.arange(101) - 30, 0, 40)[:, None] / 40.0
    spans = idle_spans(still(grid, values, grid), grid)
    ends = [((first - START) / 5e7, (last - START) / 5e7) for first, last in spans]
    assert len(ends) == 2 and ends[0][0] == 0 and ends[1][1] == 100
    assert 26 <= ends[0][1] <= 30 and 70 <= ends[1][0] <= 74


def test_a_distribution_counts_everything_once() -> None:
    values = np.array([-2.0, -1.0, 0.0, 0.5, 1.0, 9.0, np.nan])
    part = distribute('x', 'm', values, -1.0, 1.0)
    assert (part.count, part.smallest, part.largest, part.largest_step) == (6, -2.0, 9.0, 8.0)
    assert sum(part.bins) == 6 and part.bins[0] == 1 and part.bins[-1] == 1


def test_robust_scores_are_standard_deviations_of_a_normal_sample() -> None:
    sample = np.random.default_rng(0).normal(100.0, 20.0, 20_001)
    np.testing.assert_allclose(robust_scores(sample), (sample - 100.0) / 20.0, atol=0.15)
    assert abs(robust_scores([5.0] * 9 + [5.1])).max() < 1  # alike to a few per cent is alike


@pytest.mark.parametrize('length', [0, 1, 7, 16, 100, 1000])
def test_pictures_are_chosen_evenly(length: int) -> None:
    chooser, held = EvenlySpaced(8), 0
    for k in range(length):
        if chooser.wants():
            chooser.keep(k)
        held = max(held, len(chooser.kept))
    chosen = chooser.chosen()
    assert held <= 16 and len(chosen) == min(length, len(chosen), 8) and len(chosen) >= min(length, 7)
    assert chosen[:1] == [0][:length] and (length < 2 or chosen[-1] >= 0.85 * (length - 1))


def test_codes_are_unique_explained_and_read_back() -> None:
    assert set(MEANING) == set(FindingCode)
    assert read_codes(['gap', 'STAMP-ZERO', '570']) == {FindingCode.GAP, FindingCode.STAMP_ZERO, FindingCode.DUPLICATE}
    with pytest.raises(ConfigError, match="code 'gaap': did you mean 'GAP'"):
        read_codes(['gaap'])
    assert worst([]) is None and worst([Finding.of('GAP', 'a', 'b', 'c')]) == Severity.WARNING


def test_a_bag_of_another_writer_is_inspected_without_a_contract(tmp_path: Path) -> None:
    report = inspect_bag(record(tmp_path / 'bag', steps(12), marks={}), detail=Detail(4, 10, 10))
    assert report.contract is None and len(report.topics) == len(TYPES)
    assert [(finding.code.name, finding.message) for finding in report.findings] == [
        ('CONTRACT_UNKNOWN', 'the bag names none; give one with --contract')]
    assert len(report.pictures[FRONT]) == 4
    for second, picture in report.pictures[FRONT]:
        np.testing.assert_array_equal(picture, np.full((96, 96, 3), round(second * SECOND / DT), np.uint8))
