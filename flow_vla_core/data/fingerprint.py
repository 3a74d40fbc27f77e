"""Names a bag by its content, and remembers the name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from flow_vla_core.data.bags import METADATA, storage_files, try_information
from flow_vla_core.errors import DataError

__all__ = ['Fingerprints']

PIECE = 2 ** 20


class Fingerprints:
    """Hashes the bytes of bags; a file whose path, size, time of change and inode are the same is not read again.

    Args:
        folder: in which hashes are remembered.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def known(self, bag: Path) -> str | None:
        """Return the hash of a bag if it is remembered."""
        try:
            files = _files(bag)
            parts = [self._recall(path) for path in files]
        except (OSError, DataError):
            return None
        return None if None in parts else _join(files, parts)

    def of(self, bag: Path) -> str:
        """Return the hash of a bag, and remember it. Raise `DataError` or `OSError` if that is not possible."""
        files = _files(bag)
        return _join(files, [self._recall(path) or self._hash(path) for path in files])

    def _place(self, path: Path) -> Path:
        return self._folder / f'{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json'

    def _recall(self, path: Path) -> str | None:
        try:
            known = json.loads(self._place(path).read_text())
            return str(known['hash']) if known['identity'] == _identity(path) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _hash(self, path: Path) -> str:
        identity, digest = _identity(path), hashlib.sha256()
        with path.open('rb') as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        self._folder.mkdir(parents=True, exist_ok=True)
        place = self._place(path)
        temporary = place.with_suffix(f'.{os.getpid()}')
        temporary.write_text(json.dumps({'path': str(path.absolute()), 'identity': identity,
                                         'hash': digest.hexdigest()}))
        os.replace(temporary, place)
        return digest.hexdigest()


def _files(bag: Path) -> list[Path]:
    """Return the files of a bag that are there."""
    information, _ = try_information(bag)
    named = [Path(f'{path}{end}') for path in storage_files(bag, information) for end in ('', '-wal', '-journal')]
    files = [path for path in named if path.exists()]
    described = bag / METADATA
    return [described, *files] if described.is_file() else files


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _join(files: list[Path], parts: list[str]) -> str:
    """Return one hash for all; a damaged bag without a file is another bag than the whole one."""
    text = json.dumps([[path.name, part] for path, part in zip(files, parts)])
    return hashlib.sha256(text.encode()).hexdigest()
