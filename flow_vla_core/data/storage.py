"""What every storage of a bag offers; and the one for sqlite3."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Set
from contextlib import closing
from pathlib import Path
import shutil
import sqlite3
import tempfile
from typing import NamedTuple

from flow_vla_core.data.compression import SIZE_LIMIT
from flow_vla_core.errors import DataError, in_one_line

__all__ = ['LATEST', 'BagMessage', 'SqliteStorage', 'Storage']

LATEST = 2 ** 63 - 1  # ns; a log time above it can only come from a damaged file
MOST_STEPS = 2 * 10 ** 9  # of sqlite's machine without a message, above which a file is taken for a trap
STEPS = 10 ** 6


class BagMessage(NamedTuple):
    """Holds one recorded message.

    Args:
        topic: as recorded.
        log_time: of its receipt, ns.
        data: serialized, CDR.
    """

    topic: str
    log_time: int
    data: bytes


class Storage(ABC):
    """Is one file of a bag.

    Attributes:
        path: of the file.
        types: topic -> ``package/msg/Type``.
        definitions: type -> language and text of its definition, as far as the file holds them.
        start: smallest log time, ns.
        problems: what is damaged, as far as it was come upon.
        metadata: what the file says about itself: name -> pairs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.types: dict[str, str] = {}
        self.definitions: dict[str, tuple[str, str]] = {}
        self.start = LATEST
        self.problems: list[str] = []
        self.metadata: dict[str, dict[str, str]] = {}
        self.keep: object = None  # lives as long as this does

    @abstractmethod
    def read(self, topics: Set[str] | None, on_hole: Callable[[], None]) -> Iterator[BagMessage]:
        """Yield the messages of some topics, or of all, in order of log time.

        Args:
            topics: as recorded; None for all.
            on_hole: is called where messages may be missing between two of them.
        """

    def damaged(self, what: str) -> None:
        """Keep in mind what is damaged, once."""
        problem = f'{self.path.name}: {what}'
        if problem not in self.problems and len(self.problems) < 100:
            self.problems.append(problem)


class SqliteStorage(Storage):
    """Reads one sqlite3 file.

    Args:
        path: of the file, for messages.
        place: where it lies, if that is somewhere else.

    Raises:
        DataError: if it is no sqlite3 file of rosbag2.
    """

    def __init__(self, path: Path, place: Path | None = None) -> None:
        super().__init__(path)
        self._place = place or path
        try:
            if not self._place.exists():
                raise DataError('No such file or directory')
            self._recover()
            with closing(self._connect()) as connection:
                self._topics = {number: (str(name), str(kind)) for number, name, kind in
                                connection.execute('SELECT id, name, type FROM topics ORDER BY id')}
                (start,), = connection.execute('SELECT min(timestamp) FROM messages')
                self._read_definitions(connection)
        except (sqlite3.Error, ValueError, OSError, DataError, OverflowError, MemoryError) as error:
            raise DataError(f'{path.name}: {in_one_line(error)}') from error
        self.start = start if isinstance(start, int) else LATEST
        for name, kind in self._topics.values():
            self.types.setdefault(name, kind)

    def read(self, topics: Set[str] | None, on_hole: Callable[[], None]) -> Iterator[BagMessage]:
        """Yield messages in order of log time, up to the first that is damaged."""
        wanted = {number: name for number, (name, _) in self._topics.items() if topics is None or name in topics}
        numbers = ','.join(str(int(number)) for number in wanted)
        query = f'SELECT topic_id, timestamp, data FROM messages WHERE topic_id IN ({numbers}) ORDER BY timestamp'
        try:
            with closing(self._connect()) as connection:
                for number, time, data in connection.execute(query):
                    self._steps = 0
                    if not isinstance(time, int) or not isinstance(data, bytes) or not 0 <= time <= LATEST:
                        self.damaged(f'{wanted[number]}: a message without a log time or without data')
                        on_hole()
                        continue
                    yield BagMessage(wanted[number], time, data)
        except (sqlite3.Error, ValueError, OverflowError, MemoryError) as error:
            self.damaged(in_one_line(error) or type(error).__name__)
            on_hole()

    def _recover(self) -> None:
        """Let sqlite finish, on a copy, what a recorder that was killed had not yet put into the file."""
        rests = [rest for end in ('-wal', '-journal') if (rest := Path(f'{self._place}{end}')).exists()
                 and rest.stat().st_size]
        if not rests:
            return
        self.damaged(f'the recording was not ended; what stands in {rests[0].name} is read too')
        self.keep = folder = tempfile.TemporaryDirectory(prefix='flow_vla_')
        for path in (self._place, *rests):
            shutil.copy(path, folder.name)
        self._place = Path(folder.name) / self._place.name
        with closing(sqlite3.connect(self._place)) as connection:
            connection.execute('PRAGMA journal_mode = DELETE').fetchall()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(f'{self._place.absolute().as_uri()}?mode=ro&immutable=1', uri=True,
                                     check_same_thread=False)
        connection.text_factory = lambda text: text.decode('utf-8', 'replace')
        connection.execute('PRAGMA trusted_schema = OFF')
        connection.execute('PRAGMA cell_size_check = ON')
        if hasattr(connection, 'setlimit'):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, SIZE_LIMIT)
        self._steps = 0
        connection.set_progress_handler(self._count, STEPS)
        return connection

    def _count(self) -> bool:
        """Interrupt a query that gives nothing for too long."""
        self._steps += STEPS
        return self._steps > MOST_STEPS

    def _read_definitions(self, connection: sqlite3.Connection) -> None:
        query = 'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
        try:
            for kind, encoding, text in connection.execute(query):
                self.definitions.setdefault(str(kind), (str(encoding), str(text)))
        except sqlite3.Error:
            pass  # an older bag, which has no such table
