"""Deals a folder of bags out for training and validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
import hashlib
import os
from pathlib import Path
import shutil

from flow_vla_core.data.bags import try_information
from flow_vla_core.errors import ConfigError, DataError

__all__ = ['deal_out']


def deal_out(bags: Sequence[Path], root: Path, out: Path, share: float, seed: int,
             link: bool = False) -> dict[str, list[Path]]:
    """Copy bags below ``out/train`` and ``out/validation``, a share of those with each instruction into the latter.

    Which bags are chosen depends only on their names and the seed; it changes little when bags are added.

    Args:
        bags: their folders.
        root: that they lie below; their place below it stays.
        out: folder of the two new ones; must be empty or not exist.
        share: of validation, above 0 and below 1.
        seed: of the choice.
        link: hard links in place of copies; the files are the same ones then.

    Returns:
        ``train`` and ``validation`` -> the new bags.

    Raises:
        ConfigError: if the share is out of range.
        DataError: if there are fewer than two bags, or the folder is not empty.
    """
    if not 0 < share < 1:
        raise ConfigError(f'share {100 * share:g} %: above 0 and below 100')
    if len(bags) < 2:
        raise DataError(f'{root}: {len(bags)} bags; at least two are needed to deal out')
    if out.exists() and any(out.iterdir()):
        raise DataError(f'{out}: is not empty; nothing is overwritten')
    chosen = _choose(bags, root, share, seed)
    places = {bag: Path('validation' if bag in chosen else 'train') / bag.relative_to(root) for bag in bags}
    _deal(places, out, link)
    return {side: [out / place for place in places.values() if place.parts[0] == side]
            for side in ('train', 'validation')}


def _deal(places: Mapping[Path, Path], out: Path, link: bool) -> None:
    """Copy bags to their places below a folder, which gets its name when all of them are there."""
    part = out.with_name(f'.{out.name}.part')
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was killed
    try:
        for bag, place in places.items():
            _copy(bag, part / place, link)
        part.replace(out)
    except OSError as error:
        told = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise DataError(f'{out}: {told}') from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _choose(bags: Sequence[Path], root: Path, share: float, seed: int) -> set[Path]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for bag in bags:
        information, _ = try_information(bag)
        groups[str((information.get('custom_data') or {}).get('instruction', ''))].append(bag)
    chosen: set[Path] = set()
    for group in groups.values():
        count = min(max(round(share * len(group)), 1), len(group) - 1)
        chosen.update(sorted(group, key=lambda bag: _rank(bag, root, seed))[:count])
    if not chosen:  # every bag has words of its own
        chosen.update(sorted(bags, key=lambda bag: _rank(bag, root, seed))[:max(round(share * len(bags)), 1)])
    return chosen


def _rank(bag: Path, root: Path, seed: int) -> str:
    return hashlib.sha256(f'{seed} {bag.relative_to(root).as_posix()}'.encode()).hexdigest()


def _copy(bag: Path, target: Path, link: bool) -> None:
    copy = os.link if link else shutil.copy2
    if bag.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(bag, target)
    else:
        shutil.copytree(bag, target, copy_function=copy)
