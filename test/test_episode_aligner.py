"""The one aligner of bags and topics: closed forms, late and lost samples, bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
import random
from typing import Any

from bag_tools import CONTRACT, DT, START, TYPES, make, message, serialize, steps
import numpy as np
import pytest

from flow_vla_core.data.alignment import STATUS_TOPIC, AlignedFrame, EpisodeAligner
from flow_vla_core.data.typestore import typestore
from flow_vla_core.errors import DataError
from flow_vla_core.messages import decode_state
from flow_vla_core.types import Actor

MS = 10 ** 6
FRONT, HAND, POSE, JOINTS = 'camera/front/image_raw', 'camera/gripper/image_raw', 'ee_pose', 'joint_states'
TWIST, GRIPPER = 'servo/twist_cmd', 'gripper/command'
Sample = tuple[str, int, int, bytes]


def samples_of(periods: dict[str, int], duration: int, delay: int = 0) -> list[Sample]:
    """List topic, log time, stamp and bytes; the k-th of a topic carries k, and arrives up to ``delay`` late (ms)."""
    source, found = random.Random(4), []
    for phase, (topic, period) in enumerate(periods.items()):
        for k, at in enumerate(range(3 * phase, duration, period)):
            stamp = START + at * MS
            data = serialize('/' + topic, message('/' + topic, stamp, float(k)))
            found.append((topic, stamp + source.randrange(delay * MS + 1), stamp, data))
    return sorted(found, key=lambda sample: sample[1])


PERIODS = {FRONT: 33, HAND: 47, POSE: 9, JOINTS: 21, TWIST: 17, GRIPPER: 70}


def feed(aligner: EpisodeAligner, samples: Iterable[Sample]) -> list[AlignedFrame]:
    return [frame for topic, log_time, _, data in samples for frame in aligner.push(topic, log_time, data)]


def everything(samples: list[Sample], **settings: Any) -> tuple[list[AlignedFrame], EpisodeAligner]:
    aligner = EpisodeAligner(CONTRACT, **settings)
    return feed(aligner, samples) + aligner.finish(), aligner


@pytest.mark.parametrize('delay', [0, 30, 400])
def test_frames_are_those_of_the_closed_form_however_samples_arrive(delay: int) -> None:
    samples = samples_of(PERIODS, 3000, delay)
    frames, aligner = everything(samples)
    stamps = {topic: np.sort([stamp for name, _, stamp, _ in samples if name == topic]) for topic in PERIODS}
    start = max(times[0] for times in stamps.values())
    end = min(*(stamps[topic][-1] for topic in (FRONT, HAND, POSE, JOINTS)),
              max(stamps[TWIST][-1], stamps[GRIPPER][-1]))
    assert [frame.stamp for frame in frames] == list(range(start, end + 1, DT)) and aligner.span == (start, end)
    for frame in frames:
        newest = {topic: int(np.searchsorted(stamps[topic], frame.stamp, 'right')) - 1 for topic in PERIODS}
        assert {name: stamp for name, (stamp, _) in frame.samples.items()} == {
            stream.name: stamps[stream.topic][newest[stream.topic]] for stream in CONTRACT.streams}
        np.testing.assert_array_equal(frame.action[[0, 3]], [newest[TWIST], newest[GRIPPER]])
    assert {frame.stretch for frame in frames} == {0}


def test_frames_come_while_samples_still_do() -> None:
    samples = samples_of(PERIODS, 3000)
    early = feed(EpisodeAligner(CONTRACT, patience=0.2), samples)
    whole, _ = everything(samples)
    assert len(whole) - 8 <= len(early) < len(whole)
    assert [frame.stamp for frame in early] == [frame.stamp for frame in whole[:len(early)]]
    late = feed(EpisodeAligner(CONTRACT, patience=2.0), samples)
    assert len(early) - len(late) == pytest.approx(1.8e9 / DT, abs=1)


def test_messages_and_their_bytes_give_the_same_frames() -> None:
    samples = samples_of(PERIODS, 500)
    as_bytes, _ = everything(samples)
    built = [(topic, log, stamp, typestore().deserialize_cdr(data, TYPES['/' + topic]))
             for topic, log, stamp, data in samples]
    as_messages, _ = everything(built)
    assert len(as_bytes) == len(as_messages) > 5
    stream = CONTRACT.state[0]
    for one, other in zip(as_bytes, as_messages):
        assert one.stamp == other.stamp
        np.testing.assert_array_equal(one.action, other.action)
        decoded = typestore().deserialize_cdr(one.samples[stream.name][1], TYPES['/' + stream.topic])
        expected = decode_state(other.samples[stream.name][1], stream)
        np.testing.assert_array_equal(decode_state(decoded, stream), expected)


def test_a_gap_begins_a_new_stretch() -> None:
    hole = (START + 1000 * MS, START + 1500 * MS)
    samples = [sample for sample in samples_of(PERIODS, 3000) if sample[0] != POSE or not hole[0] < sample[2] < hole[1]]
    frames, aligner = everything(samples)
    first = [frame.stamp for frame in frames if frame.stretch == frames[0].stretch]
    second = [frame.stamp for frame in frames if frame.stretch == frames[-1].stretch]
    skew = round(CONTRACT.state[0].max_skew * 1e9)
    last = max(stamp for name, _, stamp, _ in samples if name == POSE and stamp <= hole[0])
    assert first[-1] <= last + skew < first[-1] + DT
    assert hole[1] <= second[0] < hole[1] + DT + 9 * MS and len(first) + len(second) == len(frames)
    assert np.isin(np.diff([*first, *second]), [DT, second[0] - first[-1]]).all() and (second[0] - first[0]) % DT == 0
    assert 'ee_position: nearest sample lies' in aligner.problem


def test_a_jump_of_centuries_costs_nothing() -> None:
    """Every stream jumps to the end of 32-bit time, which is 10^9 steps away."""
    late = (2 ** 31 - 10) * 10 ** 9
    samples = [(topic[1:], stamp + shift, stamp + shift, serialize(topic, message(topic, stamp + shift, 1.0)))
               for shift in (0, late - START) for topic, stamp, _ in steps(5, ['/instruction'])]
    frames, _ = everything(samples)
    assert [frame.stamp - START for frame in frames[:5]] == [k * DT for k in range(5)]
    assert len({frame.stretch for frame in frames}) == 2 and frames[-1].stamp >= late


@pytest.mark.parametrize('wrong', [0, (2 ** 31 - 1) * 10 ** 9])
def test_one_wrong_stamp_costs_at_most_its_own_sample(wrong: int) -> None:
    samples = samples_of(PERIODS, 3000)
    place = next(k for k, sample in enumerate(samples) if sample[0] == POSE and sample[2] > START + 1000 * MS)
    topic, log_time, _, _ = samples[place]
    samples[place] = topic, log_time, wrong, serialize('/' + topic, message('/' + topic, wrong, 0.0))
    frames, _ = everything(samples)
    whole, _ = everything(samples_of(PERIODS, 3000))
    assert [frame.stamp for frame in frames] == [frame.stamp for frame in whole]
    differ = [one.samples['ee_position'][0] != other.samples['ee_position'][0] for one, other in zip(frames, whole)]
    assert sum(differ) <= 1


def test_a_stream_that_stops_does_not_fill_the_memory() -> None:
    samples = [sample for sample in samples_of({**PERIODS, FRONT: 50}, 20000)
               if sample[0] != POSE or not START + 3000 * MS < sample[2] < START + 16000 * MS]
    budget, most = 3_000_000, 0
    aligner = EpisodeAligner(CONTRACT, budget=budget)
    frames = []
    for topic, log_time, _, data in samples:
        frames += aligner.push(topic, log_time, data)
        most = max(most, aligner.held)
    frames += aligner.finish()
    assert most < budget + 100_000 < sum(len(sample[3]) for sample in samples) / 10
    stamps = np.array([frame.stamp for frame in frames])
    assert (stamps < START + 3100 * MS).sum() > 55 and (stamps > START + 16000 * MS).sum() > 70


def test_a_stream_that_never_comes_does_not_fill_the_memory() -> None:
    aligner = EpisodeAligner(CONTRACT, budget=1_000_000)
    for topic, log_time, _, data in samples_of({FRONT: 50, JOINTS: 21}, 5000):
        assert aligner.push(topic, log_time, data) == [] and aligner.held < 1_100_000
    assert aligner.finish() == [] and aligner.missing == [HAND, POSE, TWIST, GRIPPER]


def test_a_command_stays_in_force_while_none_comes() -> None:
    pause = (START + 500 * MS, START + 9000 * MS)
    samples = [sample for sample in samples_of({**PERIODS, FRONT: 50}, 10000)
               if sample[0] not in (TWIST, GRIPPER) or not pause[0] < sample[2] < pause[1]]
    unlimited, _ = everything(samples)
    tight, aligner = everything(samples, budget=1_000_000)
    assert [frame.stamp for frame in tight] == [frame.stamp for frame in unlimited]
    for one, other in zip(tight, unlimited):
        np.testing.assert_array_equal(one.action, other.action)
    assert aligner.last_command == max(sample[2] for sample in samples if sample[0] in (TWIST, GRIPPER))


def test_messages_that_are_missing_separate_two_stretches() -> None:
    """After a hole the grid begins when everything has been seen again, commands too."""
    samples = samples_of(PERIODS, 2000)
    aligner = EpisodeAligner(CONTRACT)
    before = [sample for sample in samples if sample[1] < START + 800 * MS]
    after = [sample for sample in samples if sample[1] > START + 850 * MS]
    frames = feed(aligner, before) + aligner.interrupt()
    count = len(frames)
    frames += feed(aligner, after) + aligner.finish()
    assert frames[count - 1].stretch < frames[count].stretch
    assert frames[count].stamp == max(min(s[2] for s in after if s[0] == topic) for topic in PERIODS)


def test_who_acts_is_known_from_the_executor() -> None:
    def status(stamp: int, source: int) -> Any:
        kind = typestore().types['flow_vla/msg/ExecutionStatus']
        values = {name: 0 for name in kind.__dataclass_fields__ if name != '__msgtype__'}
        zero = make('builtin_interfaces/Duration', sec=0, nanosec=0)
        return kind(**{**values, 'header': message('/ee_pose', stamp).header, 'source': source, 'message': '',
                       'chunk_age': zero, 'refusal_codes': np.zeros(0, np.uint16),
                       'refusal_counts': np.zeros(0, np.uint64)})

    changes = {START + 500 * MS: Actor.POLICY, START + 900 * MS: Actor.PERSON}
    aligner = EpisodeAligner(CONTRACT)
    samples = samples_of(PERIODS, 3000)
    frames = []
    for topic, log_time, _, data in samples:
        for stamp in list(changes):
            if log_time >= stamp:
                frames += aligner.push(STATUS_TOPIC, stamp, status(stamp, changes.pop(stamp)))
        frames += aligner.push(topic, log_time, data)
    for frame in frames + aligner.finish():
        time = (frame.stamp - START) / MS
        assert frame.actor == (Actor.NOBODY if time < 500 or time > 1900 else
                               Actor.POLICY if time < 900 else Actor.PERSON)


def test_damaged_messages_name_their_topic() -> None:
    aligner = EpisodeAligner(CONTRACT, {TWIST: '/arm/twist'})
    with pytest.raises(DataError, match='/arm/twist: a message of 3 bytes has no header'):
        aligner.push('/arm/twist', START, b'\x00\x01\x00')
    samples = [sample for sample in samples_of(PERIODS, 500) if sample[0] != TWIST]
    aligner = EpisodeAligner(CONTRACT)
    aligner.push(TWIST, START, serialize('/' + TWIST, message('/' + TWIST, START))[:20])
    with pytest.raises(DataError, match='servo/twist_cmd: damaged message'):
        feed(aligner, samples)
        aligner.finish()
