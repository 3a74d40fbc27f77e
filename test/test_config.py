"""Settings from nested values: tagged unions, tuples, values that may be None, and errors that name the place."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from flow_vla_core.config import from_values, to_values
from flow_vla_core.errors import ConfigError


@dataclass(frozen=True)
class Cat:
    """Is one member of a union."""

    family: str = field(default='cat', init=False)
    lives: int = 9


@dataclass(frozen=True)
class Dog:
    """Is the other member."""

    family: str = field(default='dog', init=False)
    weight: float | None = None
    toys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Is an item of a tuple."""

    kind: str
    size: int = 1


@dataclass(frozen=True)
class House:
    """Has a field of every kind."""

    pet: Cat | Dog = field(default_factory=Cat)
    second: Cat | Dog | None = None
    only: Dog = field(default_factory=Dog)
    parts: tuple[Part, ...] = ()
    size: tuple[int, float] = (1, 2.0)
    rent: float | None = 3.0
    name: str | None = None


WHOLE = House(Dog(2.5, ('ball',)), Cat(7), Dog(None), (Part('a'), Part('b', 3)), (4, 5.0), None, 'x')


@pytest.mark.parametrize('config', [House(), WHOLE])
def test_what_is_written_can_be_read(config: House) -> None:
    assert from_values(House, to_values(config)) == config


def test_the_tag_chooses_and_the_first_is_meant_without_one() -> None:
    assert from_values(House, {'pet': {'lives': 3}}).pet == Cat(3)
    assert from_values(House, {'pet': {'family': 'dog', 'weight': 3}}).pet == Dog(3.0)
    assert from_values(House, {'second': {'family': 'dog'}}).second == Dog()
    assert from_values(House, {'only': {'family': 'dog', 'weight': None}}).only == Dog()


def test_numbers_take_their_type() -> None:
    read = from_values(House, {'rent': 4, 'size': [1, 2]})
    assert isinstance(read.rent, float) and isinstance(read.size[1], float) and isinstance(read.size[0], int)


@pytest.mark.parametrize('values, message', [
    ({'pet': {'family': 'dg'}}, r"pet.family: 'dg'; did you mean 'dog'"),
    ({'pet': {'family': ['dog']}}, r"pet.family: \['dog'\]; .*'cat', 'dog'"),
    ({'pet': {'family': 'dog', 'lives': 3}}, 'pet.lives: unknown key'),
    ({'only': {'family': 'cat'}}, "only.family: 'cat'; allowed: 'dog'"),
    ({'pet': None}, 'pet: None is no group'), ({'pet': 'dog'}, "pet: 'dog' is no group"),
    ({'rent': 'much'}, "rent: 'much' is no float"), ({'rent': True}, 'rent: True is no float'),
    ({'name': 3}, 'name: 3 is no str'), ({'parts': {'kind': 'a'}}, 'parts: .* is no list'),
    ({'parts': [{'kind': 'a'}, {'kind': 'b', 'sise': 3}]}, 'parts.1.sise: unknown key.*size'),
    ({'parts': ['a']}, "parts.0: 'a' is no group"), ({'size': [1]}, 'size: .* has 1 items; allowed: 2'),
    ({'size': [1.5, 2]}, 'size.0: 1.5 is no int'), ({'only': {'toys': ['a', 3]}}, 'only.toys.1: 3 is no str')])
def test_wrong_values_are_named_with_their_place(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_values(House, values)
