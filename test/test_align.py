"""Alignment: the newest sample at or before one reference time, the limits on age and skew, and nothing filled in."""

from __future__ import annotations

from hypothesis import given, strategies
import pytest

from flow_vla_core.align import Aligned, StreamBuffer, StreamSpec, Synchroniser
from flow_vla_core.contract import RobotContract, find_contract
from flow_vla_core.errors import ConfigError, StreamMissing, StreamSkewed, StreamStale

STAMPS = strategies.lists(strategies.integers(0, 1000), min_size=1, max_size=40)


def filled(streams: dict[str, list[int]], **arguments: int) -> Synchroniser:
    """Return a synchroniser whose samples carry their own stamp as value."""
    synchroniser = Synchroniser([StreamSpec(name) for name in streams], **arguments)
    for name, stamps in streams.items():
        for stamp in stamps:
            synchroniser.push(name, stamp, stamp)
    return synchroniser


@given(STAMPS, strategies.integers(-10, 1010))
def test_buffer_finds_the_newest_at_or_before(stamps: list[int], time: int) -> None:
    buffer = StreamBuffer()
    for stamp in stamps:
        buffer.push(stamp, str(stamp))
    before = [stamp for stamp in stamps if stamp <= time]
    assert buffer.at_or_before(time) == ((max(before), str(max(before))) if before else None)
    assert (buffer.oldest, buffer.newest, len(buffer)) == (min(stamps), max(stamps), len(set(stamps)))


@given(STAMPS, strategies.integers(1, 5))
def test_buffer_keeps_the_newest_when_it_is_full(stamps: list[int], capacity: int) -> None:
    buffer = StreamBuffer(capacity)
    for stamp in sorted(set(stamps)):
        buffer.push(stamp, None)
    assert len(buffer) == min(capacity, len(set(stamps)))
    assert buffer.newest == max(stamps)
    assert buffer.oldest == sorted(set(stamps))[-len(buffer)]


def test_buffer_replaces_a_sample_of_the_same_stamp_and_forgets() -> None:
    buffer = StreamBuffer()
    buffer.push(5, 'first')
    buffer.push(5, 'second')
    assert (len(buffer), buffer.at_or_before(9)) == (1, (5, 'second'))
    buffer.clear()
    assert (len(buffer), buffer.newest, buffer.at_or_before(9)) == (0, None, None)


def test_rate_counts_intervals() -> None:
    buffer = StreamBuffer()
    assert buffer.rate() == 0.0
    for k in range(30):
        buffer.push(k * 20_000_000, None)
    assert buffer.rate() == pytest.approx(50.0)


@given(strategies.dictionaries(strategies.sampled_from('abc'), STAMPS, min_size=1))
def test_reference_time_is_the_oldest_of_the_newest(streams: dict[str, list[int]]) -> None:
    synchroniser = filled(streams)
    assert synchroniser.reference_time() == min(max(stamps) for stamps in streams.values())
    assert synchroniser.start_time() == max(min(stamps) for stamps in streams.values())


@given(STAMPS, STAMPS, STAMPS)
def test_selection_does_not_change_with_what_comes_later(first: list[int], second: list[int], more: list[int]) -> None:
    synchroniser = filled({'a': first, 'b': second})
    reference = synchroniser.reference_time()
    try:
        before = synchroniser.select()
    except StreamMissing:
        assert reference < max(min(first), min(second))
        return
    for stamp in more:
        synchroniser.push('a', max(first) + 1 + stamp, None)
        synchroniser.push('b', max(second) + 1 + stamp, None)
    assert synchroniser.select(reference) == before
    assert all(stamp <= reference for samples in before.samples.values() for stamp, _ in samples)


def test_history_lies_on_the_grid_behind_the_reference() -> None:
    synchroniser = filled({'a': [0, 9, 21, 30, 40], 'b': [3, 13, 23, 33]}, history=3, step=10)
    assert synchroniser.select() == Aligned(33, {
        'a': ((9, 9), (21, 21), (30, 30)), 'b': ((13, 13), (23, 23), (33, 33))})


def test_short_history_is_missing_and_never_filled() -> None:
    with pytest.raises(StreamMissing, match='b: no sample at or before'):
        filled({'a': [0, 10, 20], 'b': [15, 20]}, history=2, step=10).select()


def test_empty_streams_are_named() -> None:
    synchroniser = Synchroniser([StreamSpec('a'), StreamSpec('b'), StreamSpec('c')])
    synchroniser.push('b', 1, None)
    with pytest.raises(StreamMissing, match='nothing received on a, c'):
        synchroniser.select()
    with pytest.raises(StreamMissing):
        synchroniser.select(reference=5, now=5)


def test_age_is_held_against_the_clock() -> None:
    synchroniser = Synchroniser([StreamSpec('a', max_age=100), StreamSpec('b')])
    synchroniser.push('a', 1000, None)
    synchroniser.push('b', 200, None)
    with pytest.raises(StreamMissing):
        synchroniser.select(now=1100)  # nothing of a at b's time
    synchroniser.push('b', 1000, None)
    assert synchroniser.select(now=1100).stamp == 1000
    with pytest.raises(StreamStale, match='a: newest sample'):
        synchroniser.select(now=1101)
    assert synchroniser.select().stamp == 1000


def test_skew_is_held_against_the_reference() -> None:
    synchroniser = Synchroniser([StreamSpec('a'), StreamSpec('b', max_skew=50)])
    for stamp in (0, 100):
        synchroniser.push('a', stamp, None)
    synchroniser.push('b', 50, None)
    synchroniser.push('b', 160, None)
    assert synchroniser.select(100).samples['b'][0][0] == 50
    with pytest.raises(StreamSkewed, match='b: nearest sample'):
        synchroniser.select(101)


def test_ages_and_rates() -> None:
    synchroniser = filled({'a': [0, 10 ** 9], 'b': [10 ** 9]})
    assert synchroniser.ages(3 * 10 ** 9) == {'a': 2.0, 'b': 2.0}
    assert synchroniser.rates() == {'a': 1.0, 'b': 0.0}
    synchroniser.clear()
    assert synchroniser.ages(5) == {'a': float('inf'), 'b': float('inf')}


def test_contract_gives_the_limits() -> None:
    contract = RobotContract.load(find_contract('metaworld'))
    synchroniser = Synchroniser.for_contract(contract)
    for stream in contract.streams:
        synchroniser.push(stream.name, 10 ** 9, stream.name)
    aligned = synchroniser.select(now=10 ** 9 + 300_000_000)
    assert {name: value for name, ((_, value),) in aligned.samples.items()} == {n: n for n in aligned.samples}
    with pytest.raises(StreamStale):
        synchroniser.select(now=10 ** 9 + 300_000_001)
    with pytest.raises(StreamSkewed):
        synchroniser.select(10 ** 9 + 60_000_001)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match='history 2, step 0'):
        Synchroniser([StreamSpec('a')], history=2)
    with pytest.raises(ConfigError, match='streams 0'):
        Synchroniser([])
    with pytest.raises(ConfigError, match="no stream 'fronts'; did you mean 'front'"):
        Synchroniser([StreamSpec('front')]).push('fronts', 0, None)
