"""Bags, decoded once: the frames of their episodes as memory-mapped files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
from typing import Any
import zlib

import numpy as np

from flow_vla_core.contract import RobotContract
from flow_vla_core.data.bag_reader import open_bag
from flow_vla_core.data.episode import Episode
from flow_vla_core.data.fingerprint import Fingerprints
from flow_vla_core.data.frames import Frames
from flow_vla_core.data.npy_rows import NpyRows, open_rows
from flow_vla_core.data.options import ReadOptions
from flow_vla_core.data.reading import read_parts
from flow_vla_core.data.segment_reader import Grow, Part
from flow_vla_core.errors import DataError

__all__ = ['EpisodeCache', 'default_cache']

FORMAT = 2  # counts up when the files, what stands in them or the rules of reading change
DESCRIPTION = 'episodes.json'
VECTORS = ('stamps', 'state', 'actions', 'actors')


def default_cache() -> Path:
    """Return the folder that FLOW_VLA_CACHE names, or else one in the user's own cache."""
    if named := os.environ.get('FLOW_VLA_CACHE'):
        return Path(named)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'flow_vla' / 'episodes'


class EpisodeCache:
    """Keeps decoded bags in a folder, which any number of processes may use at once.

    An entry is named by the bytes of the bag and by what of the contract and the options changes the result, so it
    never grows stale; it is complete or not there. Images are memory-mapped, so many more episodes than fit into
    memory can be trained on. An entry that is damaged is made anew.

    Args:
        folder: of the cache; is made if needed.
        limit: bytes that it may take; the entries that were not used for longest go first. None for any.

    Example:
        >>> from flow_vla_core.contract import find_contract
        >>> contract = RobotContract.load(find_contract('metaworld'))
        >>> cache = EpisodeCache(Path('cache'), limit=10 ** 10)
        >>> episodes = cache.episodes(Path('bags/episode_000001'), contract)  # doctest: +SKIP
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(folder), limit
        self._entries, self._locks = self.folder / 'entries', self.folder / 'locks'
        self._fingerprints = Fingerprints(self.folder / 'hashes')

    @property
    def size(self) -> int:
        """Bytes that the entries take."""
        return sum(_size(entry) for entry in self._listed())

    def episodes(self, bag: Path, contract: RobotContract, options: ReadOptions | None = None) -> list[Episode]:
        """Return the episodes of a bag, from the cache if they are there, and put them there otherwise.

        Raises:
            DataError: as `read_episodes`, or if the cache can't be written.
        """
        found = self.find(bag, contract, options)
        return self._make(Path(bag), contract, options or ReadOptions()) if found is None else found

    def find(self, bag: Path, contract: RobotContract, options: ReadOptions | None = None) -> list[Episode] | None:
        """Return the episodes of a bag that is in the cache and has not changed since; None otherwise."""
        content = self._fingerprints.known(Path(bag))
        return None if content is None else self._load(_key(content, contract, options or ReadOptions()), Path(bag))

    def _make(self, bag: Path, contract: RobotContract, options: ReadOptions) -> list[Episode]:
        try:
            key = _key(self._fingerprints.of(bag), contract, options)
            with self._locked(key):
                found = self._load(key, bag)
                if found is not None:  # by another process, in the meantime
                    return found
                self._write(key, bag, contract, options)
                found = self._load(key, bag, tell=True)
            self._shrink(key)
        except OSError as error:
            raise DataError(f'{self.folder}: the cache can not be used: {error.filename}: {error.strerror}') from error
        if found is None:
            raise DataError(f'{self.folder}: the cache does not keep what is written to it')
        return found

    def _write(self, key: str, bag: Path, contract: RobotContract, options: ReadOptions) -> None:
        """Decode a bag into a temporary folder, and put it into its place when it is whole."""
        temporary, place = self.folder / 'new' / key, self._entry(key)
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was ended
        shutil.rmtree(place, ignore_errors=True)  # damaged
        temporary.mkdir(parents=True)
        try:
            parts, problems = read_parts(open_bag(bag), contract, options, lambda number: _grower(temporary, number))
            saved = [_save(temporary, number, part) for number, part in enumerate(parts)]
            _delete_unused(temporary, saved)
            (temporary / DESCRIPTION).write_text(json.dumps({'format': FORMAT, 'bag': str(bag), 'problems': problems,
                                                             'parts': saved}))
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, place)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _load(self, key: str, bag: Path, tell: bool = False) -> list[Episode] | None:
        """Open an entry; None if it is not there or damaged."""
        entry = self._entry(key)
        try:
            description = json.loads((entry / DESCRIPTION).read_text())
            if description['format'] != FORMAT:
                return None
            episodes = [episode for values in description['parts'] for episode in _open(entry, values).episodes(bag)]
            os.utime(entry / DESCRIPTION)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
        for problem in description['problems']:
            logging.getLogger(__name__).log(logging.WARNING if tell else logging.INFO, '%s', problem)
        return episodes

    def _entry(self, key: str) -> Path:
        return self._entries / key[:2] / key

    def _listed(self) -> list[Path]:
        return [path.parent for path in self._entries.glob(f'*/*/{DESCRIPTION}')]

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Let one process at a time make an entry."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / key).open('a') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _shrink(self, keep: str) -> None:
        """Delete entries, those that were not used for longest first, until the rest is below the limit."""
        if self.limit is None:
            return
        entries = sorted(self._listed(), key=_used)
        total = sum(map(_size, entries))
        for entry in entries:
            if total <= self.limit or entry.name == keep:
                continue
            total -= _size(entry)
            shutil.rmtree(entry, ignore_errors=True)


def _key(content: str, contract: RobotContract, options: ReadOptions) -> str:
    """Name an entry by all that changes what is in it."""
    shown = {'name', 'topic', 'message', 'encoding', 'resolution', 'size', 'max_skew', 'field', 'names'}
    told = {'name', 'topic', 'message', 'kind', 'names', 'position_from'}
    values = {
        'format': FORMAT, 'content': content, 'policy_dt': contract.rates.policy_dt,
        'streams': [stream.model_dump(mode='json', include=shown) for stream in contract.streams],
        'actions': [part.model_dump(mode='json', include=told) for part in contract.actions],
        'instruction': contract.instruction.topic,
        'options': [options.cut, options.instruction, options.actions, options.lead],
    }
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _grower(folder: Path, part: int) -> Grow:
    """Return what makes the files of one part's cameras, numbered by stretch."""
    made: dict[str, int] = {}

    def grow(name: str, shape: tuple[int, ...], kind: type) -> NpyRows:
        made[name] = made.get(name, 0) + 1
        return NpyRows(folder / f'{part}_{made[name]}_{list(made).index(name)}.npy', shape, kind)

    return grow


def _save(folder: Path, number: int, part: Part) -> dict[str, Any]:
    """Write the vectors of a part; its images lie there already. Return what finds them again."""
    frames = part.frames
    vectors = {name: f'{number}_{name}.npy' for name in VECTORS}
    for name, file in vectors.items():
        np.save(folder / file, getattr(frames, name), allow_pickle=False)
    return {'vectors': vectors, 'checks': {name: _check(folder / file) for name, file in vectors.items()},
            'images': {name: Path(images.filename).name for name, images in frames.images.items()},
            'pieces': part.pieces, 'task': part.task, 'outcome': part.outcome, 'complete': part.complete}


def _delete_unused(folder: Path, saved: list[dict[str, Any]]) -> None:
    """Delete the pictures of parts that turned out to be of no use."""
    used = {file for values in saved for group in ('vectors', 'images') for file in values[group].values()}
    for path in folder.iterdir():
        if path.name not in used:
            path.unlink()


def _open(entry: Path, values: dict[str, Any]) -> Part:
    """Return a part. Raise `ValueError` or `OSError` if a file is missing or damaged."""
    for name, file in values['vectors'].items():
        if _check(entry / file) != values['checks'][name]:
            raise ValueError(f'{entry / file}: damaged')
    vectors = {name: np.load(entry / file, allow_pickle=False) for name, file in values['vectors'].items()}
    images = {name: open_rows(entry / file) for name, file in values['images'].items()}
    if any(len(rows) < len(vectors['stamps']) for rows in images.values()):
        raise ValueError(f'{entry}: fewer images than frames')
    pieces = tuple((int(begin), int(end), str(words)) for begin, end, words in values['pieces'])
    frames = Frames(images=images, instructions=[''] * len(vectors['stamps']), **vectors)
    return Part(frames, pieces, str(values['task']), str(values['outcome']), bool(values['complete']))


def _check(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _size(entry: Path) -> int:
    try:
        return sum(path.stat().st_size for path in entry.iterdir())
    except OSError:
        return 0  # deleted by another process


def _used(entry: Path) -> float:
    try:
        return (entry / DESCRIPTION).stat().st_mtime
    except OSError:
        return 0.0
