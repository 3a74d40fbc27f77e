"""What the recorder does besides start and stop: marks, recording again, checks before a start, status, repair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
import re
from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from ros_graph import RosGraph
from std_msgs.msg import String
from std_srvs.srv import Trigger
from test_bag_repair import killed
from test_recorder_node import CONTRACT, PARTS, SUCCESS, Rig, Robot

from flow_vla.msg import ActionChunk, Episode, ExecutionStatus, RecorderStatus
from flow_vla.srv import MarkEpisode
from flow_vla_core.data import bag_writer, read_metadata
from flow_vla_core.data.bag_reader import open_bag, read_bag
from flow_vla_core.data.bag_repair import complaint
from flow_vla_core.errors import Code, ConfigError
from flow_vla_ros import preflight
from flow_vla_ros.codecs import encode_action, encode_image, encode_state, from_time
from flow_vla_ros.preflight import least_rates
from flow_vla_ros.qos import LATCHED, LATCHED_STATE, RECORD, STATUS
from flow_vla_ros.words import Words

KEEP = MarkEpisode.Request.KEEP_OUTCOME
SMALL = np.zeros((168, 168, 3), np.uint8)


def mark(rig: Rig, outcome: int = KEEP, instruction: str = '') -> MarkEpisode.Response:
    return rig.graph.call(MarkEpisode, 'recorder/mark', MarkEpisode.Request(outcome=outcome, instruction=instruction))


def ask(rig: Rig, name: str) -> Trigger.Response:
    return rig.graph.call(Trigger, f'recorder/{name}')


def events(bag: Path) -> list[tuple[int, str, int]]:
    recorded = read_bag(bag)
    decoded = [recorded.decode('/episode', data) for _, data in recorded.messages['/episode']]
    return [(item.event, item.instruction, item.outcome) for item in decoded]


def test_marks_and_other_words_are_told_and_recorded(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    told = graph.inbox(Episode, 'episode', LATCHED_STATE)
    rig.begin()
    rig.robot.step(0)
    assert mark(rig, Episode.FAILURE).id == 'episode_000001'
    assert mark(rig, instruction='close the faucet').success
    assert mark(rig, Episode.SUCCESS).success
    stopped = rig.stop(outcome=Episode.UNKNOWN)
    expected = [(Episode.STARTED, 'open the faucet', 0), (Episode.MARKED, 'open the faucet', 2),
                (Episode.INSTRUCTED, 'close the faucet', 2), (Episode.MARKED, 'close the faucet', 1),
                (Episode.ENDED, 'close the faucet', 1)]
    assert events(Path(stopped.path)) == expected
    graph.spin_until(lambda: len(told) == 5)
    assert [(item.event, item.instruction, item.outcome) for item in told] == expected
    bag = read_bag(Path(stopped.path))
    assert [bag.decode('/instruction', data).data for _, data in bag.messages['/instruction']] == [
        'open the faucet', 'close the faucet']
    marks = read_metadata(Path(stopped.path))
    assert (marks['outcome'], marks['instruction']) == ('success', 'open the faucet')


def test_words_on_the_topic_are_followed(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    words = graph.outbox(String, CONTRACT.instruction.topic, RECORD)
    rig.begin()
    for text in ('open the faucet', 'close the faucet', 'close the faucet'):
        words.publish(String(data=text))
    graph.spin_until(lambda: rig.taken() == 6)
    assert [event[:2] for event in events(Path(rig.stop().path))] == [
        (Episode.STARTED, 'open the faucet'), (Episode.INSTRUCTED, 'close the faucet'),
        (Episode.ENDED, 'close the faucet')]


def test_words_of_a_mark_are_in_force_for_the_policy_that_follows_others(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    heard = graph.inbox(String, CONTRACT.instruction.topic, LATCHED)
    words = Words(graph.probe, CONTRACT.instruction.topic)
    words.say('turn the faucet')
    graph.spin_until(lambda: rig.node._episodes.words.in_force == 'turn the faucet')
    assert "others: 'turn the faucet'" in rig.begin().message
    assert mark(rig, instruction='close the faucet').success
    graph.spin_until(lambda: words.in_force == 'close the faucet')
    bag = Path(rig.stop().path)
    assert [message.data for message in heard] == ['turn the faucet', 'close the faucet']
    assert [event[:2] for event in events(bag)] == [
        (Episode.STARTED, 'open the faucet'), (Episode.INSTRUCTED, 'close the faucet'),
        (Episode.ENDED, 'close the faucet')]
    late = graph.inbox(String, CONTRACT.instruction.topic, LATCHED_STATE)
    graph.spin_until(lambda: late)
    words.say('the end')
    graph.spin_until(lambda: late[-1].data == 'the end')
    assert [message.data for message in late] == ['close the faucet', 'the end'], 'words that hold no more are heard'


def test_words_of_a_mark_set_no_policy_going_that_rests(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    words = Words(graph.probe, CONTRACT.instruction.topic)
    words.say('turn the faucet')
    graph.spin_until(lambda: rig.node._episodes.words.in_force)
    words.say('')
    graph.spin_until(lambda: not rig.node._episodes.words.in_force)
    rig.begin()
    assert mark(rig, instruction='close the faucet').success
    assert events(Path(rig.stop().path))[1][:2] == (Episode.INSTRUCTED, 'close the faucet')
    heard = graph.inbox(String, CONTRACT.instruction.topic, LATCHED)
    words.say('the end')
    graph.spin_until(lambda: heard and heard[-1].data == 'the end')
    assert 'close the faucet' not in [message.data for message in heard]


def test_words_said_twice_in_a_row_are_not_taken_for_those_of_another(graph: RosGraph) -> None:
    first, second = (Words(graph.probe, 'words') for _ in range(2))
    for text in ('one', 'two', 'three'):
        first.say(text)
    graph.spin_until(lambda: second.in_force == 'three' and first._said is None)
    assert first.in_force == 'three'
    late = graph.inbox(String, 'words', LATCHED)
    graph.spin_until(lambda: late)
    assert late[0].data == 'three', 'the words are taken back'


def test_marks_that_cannot_be_are_refused(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    assert (mark(rig, Episode.SUCCESS).code, mark(rig).success) == (Code.NOT_RECORDING, False)
    rig.begin()
    refused = mark(rig, 77)
    assert not refused.success and 'outcome 77 is none; allowed: 0 unknown, 1 success, 2 failure' in refused.message


def test_recording_again_deletes_the_running_episode(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    told = graph.inbox(Episode, 'episode', LATCHED_STATE)
    rig.begin()
    rig.robot.step(0)
    mark(rig, instruction='close the faucet')
    again = ask(rig, 'rerecord')
    assert again.success, again.message
    assert [path.name for path in tmp_path.iterdir()] == [again.message]
    graph.spin_until(lambda: told and told[-1].event == Episode.STARTED and len(told) >= 4)
    assert [item.event for item in told] == [Episode.STARTED, Episode.INSTRUCTED, Episode.DISCARDED, Episode.STARTED]
    assert (told[-1].instruction, told[-1].task) == ('open the faucet', 'faucet-open')
    rig.robot.step(1)
    assert read_metadata(Path(rig.stop().path))['task'] == 'faucet-open'


def test_recording_again_deletes_the_last_one_that_was_kept_and_no_other(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    for _ in range(2):
        rig.begin()
        rig.stop()
    assert ask(rig, 'rerecord').success
    assert sorted(path.name for path in tmp_path.iterdir()) == ['episode_000001', 'episode_000002']
    assert read_metadata(tmp_path / 'episode_000002')['outcome'] == 'unknown', 'the second one is a new one'
    assert rig.stop(keep=False).success
    assert ask(rig, 'rerecord').success, 'after one that was discarded nothing more is deleted'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['episode_000001', 'episode_000002']


def test_recording_again_goes_on_where_the_last_episode_was_moved_away(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path / 'bags')
    rig.begin()
    Path(rig.stop().path).rename(tmp_path / 'elsewhere')
    assert ask(rig, 'rerecord').success
    assert [path.name for path in (tmp_path / 'bags').iterdir()] == ['episode_000001']


def test_an_episode_that_cannot_be_deleted_is_told(graph: RosGraph, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(graph, tmp_path)

    def refuse(folder: Path) -> None:
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(bag_writer.shutil, 'rmtree', refuse)
    rig.begin()
    refused = rig.stop(keep=False)
    assert (refused.success, refused.code) == (False, Code.WRITE_FAILED)
    assert 'episode_000001: cannot be deleted: Permission denied' in refused.message
    assert not list(tmp_path.rglob('*.mcap')), 'nothing is left that a repair would bring back'
    rig.begin()
    assert rig.stop().success


def test_what_was_kept_before_the_activation_is_never_deleted(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    assert ask(rig, 'rerecord').message == 'no episode was recorded yet'
    rig.begin()
    rig.stop()
    assert rig.node.trigger_deactivate() == rig.node.trigger_activate() == SUCCESS
    assert not ask(rig, 'rerecord').success
    assert [path.name for path in tmp_path.iterdir()] == ['episode_000001']


def test_a_refused_start_deletes_nothing(graph: RosGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(graph, tmp_path)
    rig.begin()
    rig.stop()
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda _: SimpleNamespace(free=0))
    refused = ask(rig, 'rerecord')
    assert not refused.success and '0 MB free' in refused.message
    assert [path.name for path in tmp_path.iterdir()] == ['episode_000001']


class LiveRobot(Robot):
    """Publishes at a rate, with stamps of now.

    Args:
        graph: to publish on.
        rate: of every topic, Hz.
        slow: stream -> only every n-th time.
        shift: stream -> ns that are added to its stamps.
    """

    def __init__(self, graph: RosGraph, rate: float, slow: dict[str, int] | None = None,
                 shift: dict[str, int] | None = None) -> None:
        super().__init__(graph)
        self._graph, self._slow, self._shift, self._numbers = graph, slow or {}, shift or {}, count()
        graph.probe.create_timer(1 / rate, self._tick)

    def _tick(self) -> None:
        k, now = next(self._numbers), self._graph.probe.get_clock().now().nanoseconds
        for stream in CONTRACT.streams:
            if k % self._slow.get(stream.name, 1):
                continue
            stamp = now + self._shift.get(stream.name, 0)
            if stream in CONTRACT.cameras:
                message = encode_image(SMALL, stream, stamp)
            else:
                message = encode_state(stream, np.zeros(len(stream.names)), stamp)
            self.publishers[stream.name].publish(message)
        for part in CONTRACT.actions:
            self.commands[part.name].publish(encode_action(part, np.zeros(part.dim), now))


def check_until(rig: Rig, code: Code, said: str) -> str:
    """Check until this speaks against a start, then try to start."""
    rig.graph.spin_until(lambda: said in ask(rig, 'check').message)
    answer = rig.start()
    assert (answer.success, answer.code) == (False, code)
    return answer.message


def test_a_robot_in_order_may_be_recorded(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, check=True, clock_tolerance=60.0, skew_tolerance=60.0, least_rates=['ee_pose 5',
              'gripper/command 5', 'joint_states 5', 'camera/front/image_raw 5', 'camera/gripper/image_raw 5'])
    LiveRobot(graph, 10)
    answers: list[Trigger.Response] = []
    graph.spin_until(lambda: answers.append(ask(rig, 'check')) or answers[-1].success)
    assert answers[-1].message == 'ready'
    assert not list(tmp_path.iterdir()), 'a check leaves nothing'
    assert rig.start().success


def test_silent_and_slow_topics_refuse_the_start(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, check=True, clock_tolerance=60.0, skew_tolerance=60.0)
    check_until(rig, Code.TOPIC_MISSING, 'nothing has come yet on /camera/front/image_raw, /camera/gripper/image_raw')
    LiveRobot(graph, 5)
    slow = check_until(rig, Code.TOPIC_SLOW, '/joint_states comes at')
    assert 'expected: 20 or more' in slow
    assert not list(tmp_path.iterdir())


def test_a_topic_that_has_gone_silent_is_named(graph: RosGraph, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, 'SILENT_SECONDS', 0.1)
    rig = Rig(graph, tmp_path, check=True, clock_tolerance=1e12, skew_tolerance=1e12)
    for k in range(3):
        rig.robot.step(k)
    assert '/ee_pose has been silent for' in check_until(rig, Code.TOPIC_SLOW, 'silent')


@pytest.mark.parametrize(('shift', 'clock', 'skew', 'said'), [
    (-10 ** 10, 1.0, 1e9, r'/joint_states is stamped 1[0-9]\.[0-9]{3} s behind the clock of this machine'),
    (10 ** 10, 1.0, 1e9, r'/joint_states is stamped [0-9.]+ s ahead of the clock of this machine'),
    (-10 ** 10, 1e9, 1.0, r'/joint_states comes [0-9.]+ s later after its stamp than /\S+, allowed: 1$')])
def test_clocks_that_differ_refuse_the_start(graph: RosGraph, tmp_path: Path, shift: int, clock: float, skew: float,
                                             said: str) -> None:
    slow = [f'{stream.topic} 0' for stream in CONTRACT.streams]
    rig = Rig(graph, tmp_path, check=True, clock_tolerance=clock, skew_tolerance=skew, least_rates=slow)
    name, = (stream.name for stream in CONTRACT.state if stream.topic == 'joint_states')
    LiveRobot(graph, 10, shift={name: shift})
    assert re.search(said, check_until(rig, Code.CLOCK_SKEWED, '/joint_states'))


def test_room_for_less_than_a_minute_refuses_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000 * 2 ** 20))
    disk = preflight.Disk(tmp_path, 500)
    assert list(disk.complaints(8 * 2 ** 20)) == []
    (refusal,) = disk.complaints(9 * 2 ** 20)
    assert refusal.code == Code.DISK_FULL and '1000 MB free, allowed: 1040 or more, for a minute at' in str(refusal)
    assert (disk.seconds_left(2 ** 20), disk.seconds_left(0)) == (1000.0, -1.0)


def test_a_folder_that_cannot_be_written_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    (refusal,) = preflight.Disk(tmp_path / 'file' / 'bags', 0).complaints(0.0)
    assert refusal.code == Code.WRITE_FAILED and 'Not a directory' in str(refusal)


@pytest.mark.parametrize('line', ['joint_states', 'joint_states fast', 'joint_states -1', ' 20'])
def test_rates_that_are_none_are_refused(line: str) -> None:
    with pytest.raises(ConfigError, match='write "topic Hz"'):
        least_rates([line], str)


def test_the_status_tells_what_is_recorded(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, status_hz=20.0)
    statuses = graph.inbox(RecorderStatus, 'recorder/status', STATUS)
    graph.spin_until(lambda: statuses)
    assert (statuses[-1].state, statuses[-1].id, statuses[-1].kept) == (RecorderStatus.IDLE, '', 0)
    rig.begin()
    rig.robot.step(0)
    rig.robot.step(1)
    mark(rig, Episode.SUCCESS)
    graph.spin_until(lambda: statuses[-1].messages == 2 * len(PARTS) + 3)
    status = statuses[-1]
    assert (status.state, status.id, status.instruction, status.outcome) == (
        RecorderStatus.RECORDING, 'episode_000001', 'open the faucet', Episode.SUCCESS)
    counts = dict(zip(status.topics, status.counts))
    assert {f'/{part.topic}': counts[f'/{part.topic}'] for part in PARTS} == {f'/{part.topic}': 2 for part in PARTS}
    assert status.dropped == 0 and set(status.drops) == {0} and status.free_mb > 0
    ages = dict(zip(status.topics, status.ages))
    assert ages['/ee_pose'] >= 0 and ages['/teleop/action_chunk'] == -1
    rig.stop()
    graph.spin_until(lambda: statuses[-1].kept == 1 and statuses[-1].state == RecorderStatus.IDLE)


def test_messages_that_the_middleware_lost_are_told(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    lines = graph.inbox(DiagnosticArray, '/diagnostics')
    rig.begin()
    rig.node._taps.meters['/ee_pose'].number(b'publisher', 1)
    rig.node._taps.meters['/ee_pose'].number(b'publisher', 5)
    graph.spin_until(lambda: any(value.key == 'lost' and value.value == '3' for line in lines
                                 for value in line.status[0].values))
    stopped = rig.stop()
    assert stopped.message == '3 messages were lost: /ee_pose 3'
    assert read_metadata(Path(stopped.path))['lost'] == '3'


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from flow_vla_ros import qos
    monkeypatch.setattr(qos, 'RECORD', qos._profile(5))
    yield


def test_a_history_that_overflows_is_counted_by_the_gap(graph: RosGraph, tmp_path: Path, shallow: None) -> None:
    rig = Rig(graph, tmp_path)
    rig.begin()
    rig.robot.step(0)
    rig.graph.spin_until(lambda: rig.taken() == len(PARTS) + 2)
    for k in range(1, 21):  # nobody polls meanwhile
        rig.robot.step(k)
    stopped = rig.stop()
    kept = [from_time(read_bag(Path(stopped.path)).decode('/ee_pose', data).header.stamp)
            for _, data in read_bag(Path(stopped.path)).messages['/ee_pose']]
    assert len(kept) == 1 + 5
    assert '/ee_pose 15' in stopped.message


def test_who_acts_is_recorded_when_it_is_published(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path)
    acts = graph.outbox(ExecutionStatus, 'executor/status', STATUS)
    chunks = graph.outbox(ActionChunk, 'teleop/action_chunk')
    rig.begin()
    acts.publish(ExecutionStatus(source=ExecutionStatus.PERSON))
    chunks.publish(ActionChunk(id=7))
    graph.spin_until(lambda: rig.taken() == 4)
    bag = open_bag(Path(rig.stop().path))
    found = {message.topic: bag.decode(message.topic, message.data) for message in bag.read()}
    assert found['/executor/status'].source == ExecutionStatus.PERSON and found['/teleop/action_chunk'].id == 7


def test_who_acts_and_what_is_latched_holds_from_the_first_message_of_each_episode(graph: RosGraph,
                                                                                   tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, extra_topics=['map std_msgs/msg/String'])
    publishers = [graph.probe.create_publisher(String, 'map', LATCHED) for _ in range(2)]
    for publisher, text in zip(publishers, ('of yesterday', 'of today')):
        publisher.publish(String(data=text))
    graph.spin_until(lambda: len(rig.node._taps.standing()) >= 2)
    acts = graph.outbox(ExecutionStatus, 'executor/status', STATUS)
    graph.probe.destroy_publisher(publishers[0])
    graph.spin_until(lambda: graph.probe.count_publishers('map') == 1)

    def told() -> dict[str, list]:
        acts.publish(ExecutionStatus(source=ExecutionStatus.PERSON))
        graph.spin_until(lambda: len(rig.node._taps.standing()) >= 2)
        rig.begin()
        bag = open_bag(Path(rig.stop().path))
        assert [message.topic for message in bag.read()][0] == '/episode'
        return {topic: [bag.decode(topic, message.data) for message in bag.read({topic})] for topic in bag.types}

    for _ in range(2):
        found = told()
        assert [item.data for item in found['/map']] == ['of today']
        assert {item.source for item in found['/executor/status']} == {ExecutionStatus.PERSON}
        assert [item.data for item in found['/instruction']] == ['open the faucet']


def test_bags_that_were_left_are_repaired_at_the_set_up(graph: RosGraph, tmp_path: Path) -> None:
    bag = killed(tmp_path / 'episode_000003')
    assert complaint(bag)
    rig = Rig(graph, tmp_path)
    assert complaint(bag) == ''
    assert rig.begin().id == 'episode_000004'


def test_images_may_be_recorded_as_jpeg(graph: RosGraph, tmp_path: Path) -> None:
    rig = Rig(graph, tmp_path, jpeg=90)
    rig.begin()
    for k in range(3):
        rig.robot.step(k)
    bag = open_bag(Path(rig.stop().path))
    types = [message.topic for message in bag.read()]
    assert types.count('/camera/front/image_raw/compressed') == 3 and '/camera/front/image_raw' not in bag.types
