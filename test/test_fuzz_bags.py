"""Bags damaged in hundreds of ways: none crashes or hangs the reader, or takes memory without bound."""

from __future__ import annotations

from collections import Counter
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope='module')
def fuzzing(root: Path) -> ModuleType:
    """Load the benchmark that damages bags."""
    import sys
    spec = importlib.util.spec_from_file_location('fuzz_bags', root / 'benchmarks' / 'fuzz_bags.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['fuzz_bags'] = module
    spec.loader.exec_module(module)
    return module


def test_good_bags_are_read_whole(fuzzing: ModuleType, tmp_path: Path) -> None:
    for kind, bag in fuzzing.make_bags(tmp_path).items():
        opened = fuzzing.open_bag(bag)
        (episode,) = fuzzing.read_episodes(opened, fuzzing.fuzz_contract())
        assert len(episode) == fuzzing.STEPS and opened.complete, kind
        assert episode.state[:, 0].tolist() == list(range(fuzzing.STEPS))


def test_damaged_bags_never_crash_the_reader(fuzzing: ModuleType, tmp_path: Path) -> None:
    bags = fuzzing.make_bags(tmp_path)
    contract = fuzzing.fuzz_contract()
    results = [fuzzing.read(bags, number, contract) for number in range(300)]
    assert not [result for result in results if result.outcome in ('crashed', 'hung')]
    outcomes = Counter(result.outcome for result in results)
    assert min(outcomes['whole'], outcomes['in part'], outcomes['refused']) > 20
    assert {result.mutation for result in results} == {*fuzzing.MUTATIONS, 'metadata'}


def test_a_crash_a_hang_and_the_end_of_a_process_would_be_seen(fuzzing: ModuleType, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    bags = fuzzing.make_bags(tmp_path)
    monkeypatch.setattr(fuzzing, 'read_episodes', lambda *_: 1 / 0)
    results = [fuzzing.read(bags, number, fuzzing.fuzz_contract()) for number in range(20)]
    assert 'crashed' in {result.outcome for result in results}
    assert any('ZeroDivisionError' in result.detail for result in results)
