"""The cache of decoded bags: equal to reading them, never stale, never half, shared by processes."""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
from typing import Any

from bag_tools import CONTRACT, DT, START, record, steps
import numpy as np
import pytest

from flow_vla_core.contract import RobotContract
from flow_vla_core.data import Episode, EpisodeCache, ReadOptions, Windows, read_episodes
from flow_vla_core.data import cache as cache_module
from flow_vla_core.data.fingerprint import Fingerprints
from flow_vla_core.data.npy_rows import NpyRows, open_rows
from flow_vla_core.errors import DataError
from flow_vla_core.training.episodes import load_episodes


def assert_same(found: list[Episode], expected: list[Episode]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        for field in ('stamps', 'state', 'actions', 'actors'):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
            assert getattr(one, field).dtype == getattr(other, field).dtype
        assert one.images.keys() == other.images.keys()
        for name, pictures in other.images.items():
            np.testing.assert_array_equal(one.images[name], pictures)
        for field in ('instruction', 'task', 'outcome', 'source', 'complete'):
            assert getattr(one, field) == getattr(other, field)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return record(tmp_path / 'bag', steps(8))


@pytest.fixture
def cache(tmp_path: Path) -> EpisodeCache:
    return EpisodeCache(tmp_path / 'cache')


def refuse(*_: object) -> Any:
    raise AssertionError('a bag was read')


def entries(cache: EpisodeCache) -> list[Path]:
    return sorted(path.parent for path in cache.folder.glob('entries/*/*/episodes.json'))


def test_the_cache_gives_what_reading_gives(bag: Path, cache: EpisodeCache) -> None:
    expected = read_episodes(bag, CONTRACT)
    for _ in range(2):
        found = cache.episodes(bag, CONTRACT)
        assert_same(found, expected)
        assert all(isinstance(pictures, np.memmap) for pictures in found[0].images.values())
    windows = Windows(found, horizon=4, history=2).gather([3, 0])
    for one, other in zip(windows, Windows(expected, horizon=4, history=2).gather([3, 0])):
        if isinstance(one, dict):
            assert all((one[name] == other[name]).all() for name in one)
        else:
            assert (one == other).all()


def test_a_second_start_reads_nothing(bag: Path, cache: EpisodeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cache.episodes(bag, CONTRACT)
    monkeypatch.setattr(cache_module, 'open_bag', refuse)
    monkeypatch.setattr(Fingerprints, '_hash', refuse)
    assert_same(EpisodeCache(cache.folder).episodes(bag, CONTRACT), expected)


def test_other_bytes_are_another_bag(bag: Path, cache: EpisodeCache, tmp_path: Path) -> None:
    first = cache.episodes(bag, CONTRACT)
    other = record(tmp_path / 'other', steps(5))
    for file in bag.iterdir():
        source = other / file.name.replace('bag', 'other')
        file.write_bytes(source.read_bytes().replace(b'other_0', b'bag_0'))
    assert len(cache.episodes(bag, CONTRACT)[0]) == 5 and len(first[0]) == 8
    assert len(first[0].images['front']) == 8  # what is mapped stays
    moved = bag.rename(tmp_path / 'moved')
    assert cache.episodes(moved, CONTRACT)[0].source == moved and len(entries(cache)) == 2


def changed(**values: Any) -> RobotContract:
    return RobotContract.parse({**CONTRACT.model_dump(), **values})


def test_what_changes_the_frames_changes_the_entry_and_nothing_else_does(bag: Path, cache: EpisodeCache) -> None:
    cache.episodes(bag, CONTRACT)
    data = CONTRACT.model_dump()
    looser = [{**camera, 'max_age': 9.0} for camera in data['cameras']]
    for same in (changed(history=2), changed(cameras=looser), changed(rates={**data['rates'], 'control_hz': 100.0})):
        cache.episodes(bag, same)
    cache.episodes(bag, CONTRACT, ReadOptions(threads=3))
    assert len(entries(cache)) == 1
    smaller = [{**camera, 'size': (42, 42)} for camera in data['cameras']]
    assert cache.episodes(bag, changed(cameras=smaller))[0].images['front'].shape[1:] == (42, 42, 3)
    assert len(cache.episodes(bag, changed(rates={**data['rates'], 'policy_dt': 0.1}))[0]) == 4
    assert len(cache.episodes(bag, CONTRACT, ReadOptions(actions='state', lead=2))[0]) == 6
    assert len(cache.episodes(bag, CONTRACT, ReadOptions(actions='state', lead=3))[0]) == 5
    assert len(entries(cache)) == 5


def shorten(entry: Path) -> None:
    file = next(path for path in entry.iterdir() if path.name.endswith('_0.npy'))
    file.write_bytes(file.read_bytes()[:-1])


def damage_numbers(entry: Path) -> None:
    file = entry / '0_actions.npy'
    file.write_bytes(file.read_bytes()[:-1] + b'\x7f')


def remove_pictures(entry: Path) -> None:
    next(path for path in entry.iterdir() if path.name.endswith('_1.npy')).unlink()


def empty_description(entry: Path) -> None:
    (entry / 'episodes.json').write_text('{')


def other_format(entry: Path) -> None:
    file = entry / 'episodes.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'format': 0}))


@pytest.mark.parametrize('damage', [shorten, damage_numbers, remove_pictures, empty_description, other_format])
def test_a_damaged_entry_is_made_anew(bag: Path, cache: EpisodeCache, damage: Any) -> None:
    expected = read_episodes(bag, CONTRACT)
    cache.episodes(bag, CONTRACT)
    (entry,) = entries(cache)
    damage(entry)
    assert cache.find(bag, CONTRACT) is None
    assert_same(cache.episodes(bag, CONTRACT), expected)
    assert cache.find(bag, CONTRACT) is not None and entries(cache) == [entry]


def test_an_interruption_leaves_nothing_behind_that_counts(bag: Path, cache: EpisodeCache,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def append(self: NpyRows, row: np.ndarray) -> None:
        rows.append(row)
        if len(rows) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NpyRows, 'append', append)
        with pytest.raises(KeyboardInterrupt):
            cache.episodes(bag, CONTRACT)
    assert not entries(cache) and not list((cache.folder / 'new').iterdir())
    key = cache_module._key(cache._fingerprints.of(bag), CONTRACT, ReadOptions())
    left = cache.folder / 'new' / key  # as a process that was killed leaves it
    left.mkdir(parents=True)
    (left / 'rest.npy').write_bytes(b'half')
    assert_same(cache.episodes(bag, CONTRACT), read_episodes(bag, CONTRACT))
    assert not left.exists() and 'rest.npy' not in {path.name for path in entries(cache)[0].iterdir()}


def test_pictures_of_no_use_are_not_kept(cache: EpisodeCache, tmp_path: Path) -> None:
    """The longest stretch comes second, so that the first is written and given up."""
    gap = [sample for sample in steps(30) if not 8 * DT <= sample[1] - START < 14 * DT]
    bag = record(tmp_path / 'gap', gap)
    (episode,) = cache.episodes(bag, CONTRACT)
    assert len(episode) == 16 and not episode.complete
    (entry,) = entries(cache)
    assert len(list(entry.glob('*_*_*.npy'))) == len(CONTRACT.cameras)
    assert_same([episode], read_episodes(bag, CONTRACT))


def test_processes_share_a_cache(cache: EpisodeCache, tmp_path: Path, python: str) -> None:
    bags = [record(tmp_path / f'bag_{k}', steps(4 + k)) for k in range(3)]
    script = ('import sys; from pathlib import Path\n'
              'from flow_vla_core.contract import RobotContract, find_contract\n'
              'from flow_vla_core.data import EpisodeCache, cache\n'
              'made, write = [], cache.EpisodeCache._write\n'
              'cache.EpisodeCache._write = lambda *a: (made.append(1), write(*a))\n'
              'contract = RobotContract.load(find_contract("metaworld"))\n'
              'store = EpisodeCache(Path(sys.argv[1]))\n'
              'lengths = [len(store.episodes(Path(bag), contract)[0]) for bag in sys.argv[2:]]\n'
              'assert lengths == [4, 5, 6], lengths\n'
              'print(len(made))\n')
    command = [python, '-c', script, str(cache.folder), *map(str, bags)]
    crew = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [int(process.communicate(timeout=120)[0]) for process in crew]
    assert sum(made) == 3 == len(entries(cache)) and [process.returncode for process in crew] == [0, 0, 0]


def test_what_was_not_used_for_longest_goes_first(cache: EpisodeCache, tmp_path: Path) -> None:
    bags = [record(tmp_path / f'bag_{k}', steps(6)) for k in range(4)]
    for k, bag in enumerate(bags[:3]):
        cache.episodes(bag, CONTRACT, ReadOptions(instruction=str(k)))  # same bytes, other entries
    assert len(entries(cache)) == 3 and cache.size == sum(
        path.stat().st_size for entry in entries(cache) for path in entry.iterdir())
    for age, k in ((300, 0), (100, 1), (200, 2)):
        description = next(entry for entry in entries(cache) if entry.name == cache_module._key(
            cache._fingerprints.of(bags[k]), CONTRACT, ReadOptions(instruction=str(k)))) / 'episodes.json'
        os.utime(description, (description.stat().st_mtime - age,) * 2)
    limited = EpisodeCache(cache.folder, limit=round(cache.size * 0.75))
    limited.episodes(bags[3], CONTRACT, ReadOptions(instruction='3'))
    assert limited.size <= limited.limit
    left = [k for k in range(4) if limited.find(bags[k], CONTRACT, ReadOptions(instruction=str(k))) is not None]
    assert left == [1, 3]


@pytest.mark.parametrize('workers', [1, 2])
def test_training_reads_through_the_cache(cache: EpisodeCache, tmp_path: Path, workers: int) -> None:
    bags = [record(tmp_path / f'bag_{k}', steps(4 + k)) for k in range(8)]
    broken = record(tmp_path / 'broken', steps(4, ['/ee_pose']))
    expected = list(load_episodes(bags, CONTRACT))
    skipped: list[DataError] = []
    for _ in range(2):
        found = list(load_episodes([*bags, broken], CONTRACT, workers, skipped.append, cache=cache))
        assert_same(found, expected)
        assert all(isinstance(episode.images['front'], np.memmap) for episode in found)
    assert len(skipped) == 2 and all('/ee_pose: no messages' in str(error) for error in skipped)


def test_a_folder_that_cannot_be_written_is_named(bag: Path) -> None:
    with pytest.raises(DataError, match='/dev/null/cache: the cache can not be used: .*: Not a directory'):
        EpisodeCache(Path('/dev/null/cache')).episodes(bag, CONTRACT)


def test_a_hash_is_of_the_bytes(bag: Path, tmp_path: Path) -> None:
    prints = Fingerprints(tmp_path / 'hashes')
    assert prints.known(bag) is None
    first = prints.of(bag)
    assert prints.known(bag) == first == Fingerprints(tmp_path / 'elsewhere').of(bag)
    file = bag / 'bag_0.mcap'
    data = bytearray(file.read_bytes())
    data[50] ^= 1
    file.write_bytes(data)
    assert prints.known(bag) is None and prints.of(bag) != first
    data[50] ^= 1
    file.write_bytes(data)
    assert prints.of(bag) == first


def test_rows_on_disk_are_a_npy_file(tmp_path: Path) -> None:
    rows = NpyRows(tmp_path / 'a.npy', (3, 2), np.uint8)
    values = np.random.default_rng(0).integers(0, 256, (11, 3, 2), np.uint8)
    for row in values:
        rows.append(row)
    np.testing.assert_array_equal(rows.finish(9), values[:9])
    np.testing.assert_array_equal(np.load(tmp_path / 'a.npy'), values[:9])
    np.testing.assert_array_equal(open_rows(tmp_path / 'a.npy'), values[:9])
    gone = NpyRows(tmp_path / 'b.npy', (), np.uint8)
    gone.discard()
    assert not (tmp_path / 'b.npy').exists()
