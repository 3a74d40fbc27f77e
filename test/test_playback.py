"""Playing without ROS: the schedule in closed form, pauses, offsets, loops, and memory that stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
import itertools
from pathlib import Path
import threading
import time

from bag_tools import DT, START, record, steps
from hypothesis import given
from hypothesis import strategies as st
import pytest
import yaml

from flow_vla_core.data.bag_reader import BagMessage
from flow_vla_core.data.offers import Offer, read_offers
from flow_vla_core.data.playback import Begin, End, Lateness, PlayClock, Player, Playlist
from flow_vla_core.data.read_ahead import ReadAhead
from flow_vla_core.errors import ConfigError, DataError

SECOND = 10 ** 9


class Watch:
    """Is a clock that is set by hand, ns."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """A bag of ten steps."""
    return record(tmp_path / 'episode_000001', steps(10))


@given(rate=st.floats(0.01, 100), first=st.integers(0, 10 ** 18), offset=st.integers(0, 10 ** 12),
       pauses=st.lists(st.tuples(st.integers(0, 10 ** 9), st.integers(0, 10 ** 9)), max_size=5))
def test_a_log_time_is_due_at_its_offset_over_the_rate_and_all_pauses_later(
        rate: float, first: int, offset: int, pauses: list[tuple[int, int]]) -> None:
    watch = Watch()
    clock = PlayClock(rate, watch)
    clock.start(first)
    for run, pause in pauses:
        watch.now += run
        clock.pause()
        stood = clock.time()
        watch.now += pause
        assert clock.time() == stood
        clock.resume()
    assert clock.due(first + offset) == pytest.approx(offset / rate + sum(pause for _, pause in pauses), abs=2)


def test_time_and_due_are_inverse_and_a_delay_shifts_both() -> None:
    watch = Watch()
    clock = PlayClock(4.0, watch)
    clock.start(1000, delay=1.0)
    assert clock.due(1000) == SECOND
    watch.now = SECOND + 500
    assert clock.time() == 3000


def test_a_clock_that_starts_paused_stands_until_it_is_resumed() -> None:
    watch = Watch()
    clock = PlayClock(now=watch)
    clock.pause()
    watch.now = 50
    clock.start(7)
    watch.now = 90
    assert clock.paused and clock.time() == 7
    clock.resume()
    assert clock.due(7) == 90


@pytest.mark.parametrize('rate', [0.0, -1.0, float('nan')])
def test_a_rate_that_does_not_go_forward_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match='above 0'):
        PlayClock(rate)


def test_a_playlist_holds_every_message_as_recorded(bag: Path, tmp_path: Path) -> None:
    other = record(tmp_path / 'episode_000002', steps(3))
    items = list(Playlist([bag, other]))
    assert [type(item) for item in items].count(Begin) == 2
    first, last = items[0], items[-1]
    assert isinstance(first, Begin) and isinstance(last, End)
    assert (first.time, last.time, last.bag.path) == (START, START + 2 * DT, other)
    from mcap.reader import make_reader
    with (bag / 'episode_000001_0.mcap').open('rb') as file:
        recorded = [(channel.topic, message.log_time, message.data)
                    for _, channel, message in make_reader(file).iter_messages()]
    end = next(index for index, item in enumerate(items) if isinstance(item, End))
    assert sorted(map(tuple, items[1:end])) == sorted(recorded)


def test_only_the_topics_that_are_named(bag: Path) -> None:
    items = list(Playlist([bag], ['/joint_states']))
    assert {item.topic for item in items if isinstance(item, BagMessage)} == {'/joint_states'}


def test_an_offset_leaves_out_the_beginning_but_not_the_words_in_force(bag: Path) -> None:
    information = yaml.safe_load((bag / 'metadata.yaml').read_text())
    for topic in information['rosbag2_bagfile_information']['topics_with_message_count']:
        if topic['topic_metadata']['name'] == '/instruction':
            topic['topic_metadata']['offered_qos_profiles'] = [{'durability': 'transient_local'}]
    (bag / 'metadata.yaml').write_text(yaml.safe_dump(information))
    begin, *rest = Playlist([bag], start_offset=5 * DT / SECOND)
    assert begin.time == START + 5 * DT
    assert [message.topic for message in begin.latched] == ['/instruction']
    assert min(item.log_time for item in rest if isinstance(item, BagMessage)) == START + 5 * DT


def test_a_loop_begins_again_and_a_loop_of_nothing_ends(bag: Path) -> None:
    begins = (item for item in Playlist([bag], loop=True) if isinstance(item, Begin))
    assert len(list(itertools.islice(begins, 3))) == 3
    assert list(Playlist([bag], ['/nothing'], loop=True)) == []


@pytest.mark.parametrize(('profiles', 'offer'), [
    ([], Offer()),
    ([{'reliability': 'best_effort', 'durability': 'volatile', 'depth': 5}], Offer(False, False, 5)),
    ([{'reliability': 'best_effort', 'depth': 5}, {'reliability': 'reliable', 'depth': 9}], Offer(True, False, 9)),
    ([{'reliability': 'reliable', 'durability': 'transient_local', 'depth': 1}], Offer(True, True, 1)),
    ('- history: 3\n  depth: 7\n  reliability: 2\n  durability: 2\n', Offer(False, False, 7)),
    ('- history: 3\n  depth: 1\n  reliability: 1\n  durability: 1\n', Offer(True, True, 1)),
    ('nonsense: [', Offer()), (7, Offer())])
def test_offers_of_all_versions_of_rosbag2(tmp_path: Path, profiles: object, offer: Offer) -> None:
    topic = {'topic_metadata': {'name': '/x', 'offered_qos_profiles': profiles}}
    (tmp_path / 'metadata.yaml').write_text(yaml.safe_dump(
        {'rosbag2_bagfile_information': {'topics_with_message_count': [topic]}}))
    assert read_offers(tmp_path) == {'/x': offer}


def play(items: list[Begin | BagMessage | End], **settings: float) -> tuple[list[object], list[int], Player]:
    """Play to the end; return what came out and the times that were told."""
    out, times = [], []
    player = Player(items, PlayClock(settings.pop('rate', 1.0)), out.append, times.append, **settings)
    player.run()
    return out, times, player


def messages(*offsets: int) -> list[Begin | BagMessage | End]:
    """List the items of a bag with messages so many ms after its beginning."""
    times = [START + offset * 10 ** 6 for offset in offsets]
    return [Begin(None, START), *(BagMessage('/x', time, b'data') for time in times), End(None, times[-1])]


def test_everything_comes_out_in_order_and_none_before_it_is_due() -> None:
    items = messages(0, 5, 5, 3, 20)
    began, arrived, out = time.monotonic_ns(), [], []

    def emit(item: object) -> None:
        out.append(item)
        arrived.append(time.monotonic_ns() - began)

    Player(items, PlayClock(0.5), emit).run()
    assert out == items
    for item, when in zip(out, arrived):
        if isinstance(item, BagMessage):
            assert when >= 2 * (item.log_time - START)


def test_time_is_told_from_the_beginning_and_never_goes_back() -> None:
    _, times, player = play(messages(0, 10, 40), clock_hz=500.0, gap=0.01)
    assert times[0] == START
    assert times == sorted(times)
    assert START < times[-1] <= START + 40 * 10 ** 6
    assert player.messages == 3


def test_a_player_that_lags_behind_still_tells_the_time() -> None:
    times: list[int] = []

    def dawdle(_: object) -> None:
        end = time.monotonic_ns() + 2 * 10 ** 6
        while time.monotonic_ns() < end:
            pass

    Player(messages(0, 1, 2, 3, 4), PlayClock(1e6), dawdle, times.append, clock_hz=1000.0).run()
    assert len(times) >= 6
    assert times == sorted(times)


def test_a_pause_holds_everything_and_a_stop_ends_it() -> None:
    out, told = [], threading.Event()
    player = Player(messages(0, 1, 2), PlayClock(), out.append, lambda _: told.set(), clock_hz=200.0)
    player.pause(True)
    thread = threading.Thread(target=player.run)
    thread.start()
    assert told.wait(20), 'the time is told while paused'
    assert out == []
    player.pause(False)
    thread.join(20)
    assert len(out) == 5
    player = Player(messages(0, 10 ** 6), PlayClock(), out.append)
    thread = threading.Thread(target=player.run)
    thread.start()
    player.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_reading_ahead_is_bounded_by_bytes_and_hands_errors_on() -> None:
    read: list[int] = []

    def items() -> Iterator[BagMessage]:
        for number in range(100):
            read.append(number)
            yield BagMessage('/x', number, bytes(10))
        raise DataError('damaged')

    ahead = ReadAhead(items(), room=50)
    iterator = iter(ahead)
    found = [next(iterator).log_time for _ in range(20)]
    assert found == list(range(20))
    assert len(read) <= 20 + 6
    with pytest.raises(DataError, match='damaged'):
        list(iterator)


def test_reading_ahead_ends_when_it_is_closed() -> None:
    ahead = ReadAhead((BagMessage('/x', number, bytes(10)) for number in itertools.count()), room=50)
    iterator = iter(ahead)
    next(iterator)
    ahead.close()
    assert len(list(iterator)) <= 6


def test_lateness_is_that_of_the_last_messages() -> None:
    late = Lateness(100)
    for value in range(200):
        late.add(value * 10 ** 6)
    assert late.quantile(0.0) == pytest.approx(0.100)
    assert late.quantile(0.5) == pytest.approx(0.150)
    assert late.quantile(1.0) == pytest.approx(0.199)
