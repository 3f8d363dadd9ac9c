"""The truth of an index: posts, their vectors, what was deleted and a journal of it all, in one SQLite file.

Whatever changes is one transaction with one row of the journal; its number, `seq`, is what keywords and
vectors follow. SQLite's write-ahead log lets others read meanwhile and survives a kill. Knows nothing of
ranking.
"""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.search.sets import Document

SCHEMA = 1
FILE = 'posts.sqlite'
_TABLES = """
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS journal(
  seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL,
  added INTEGER NOT NULL, deleted INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS posts(
  number INTEGER PRIMARY KEY AUTOINCREMENT, seq INTEGER NOT NULL, id TEXT UNIQUE NOT NULL,
  text TEXT NOT NULL, title TEXT NOT NULL, author TEXT NOT NULL, time REAL, language TEXT NOT NULL,
  likes REAL);
CREATE INDEX IF NOT EXISTS posts_seq ON posts(seq);
CREATE INDEX IF NOT EXISTS posts_time ON posts(time);
CREATE TABLE IF NOT EXISTS gone(number INTEGER PRIMARY KEY, seq INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS gone_seq ON gone(seq);
CREATE TABLE IF NOT EXISTS banned(id TEXT PRIMARY KEY);
"""
_FIELDS = 'id, text, title, author, time, language, likes'
Kind = Literal['add', 'delete']


class Entry(NamedTuple):
  """One row of the journal."""

  seq: int
  time: float
  kind: str
  added: int
  deleted: int


class Store:
  """The posts of an index; one process writes, any number read.

  Raises:
    UserError: there is none in `folder`, or it is of another version.
  """

  def __init__(self, folder: Path, *, create: bool = False) -> None:
    self.path = folder / FILE
    if not create and not self.path.is_file():
      raise UserError(
        f'{folder} holds no index: build one with --experiment=search_posts --index={folder}'
      )
    self._lock = threading.RLock()
    with explained(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._db = sqlite3.connect(
        self.path, timeout=60.0, isolation_level=None, check_same_thread=False
      )
    try:
      if create:
        self._create()
      self._check(folder)
    except BaseException:
      self._db.close()
      raise

  def close(self) -> None:
    self._db.close()

  def _create(self) -> None:
    self._db.execute('PRAGMA journal_mode=WAL')
    self._db.execute('PRAGMA secure_delete=ON')  # what is deleted is overwritten
    with self._changing():
      for statement in filter(str.strip, _TABLES.split(';')):
        self._db.execute(statement)
      self._db.execute('INSERT OR IGNORE INTO meta VALUES("schema", ?)', (json.dumps(SCHEMA),))

  def _check(self, folder: Path) -> None:
    try:
      found = self.said('schema')
    except sqlite3.DatabaseError as error:
      raise UserError(
        f'{folder} holds no index that can be read ({error}): build it again in another folder'
      ) from None
    if found != SCHEMA:
      raise UserError(
        f'{folder} is an index of version {found}, and this is lmjax with version {SCHEMA}: build it '
        'again in another folder'
      )

  def said(self, key: str, default: Any = None) -> Any:
    """What `say` kept under `key`."""
    rows = self._rows('SELECT value FROM meta WHERE key = ?', (key,))
    return json.loads(rows[0][0]) if rows else default

  def say(self, **said: Any) -> None:
    """Keeps values by name, all or none of them."""
    with self._changing():
      self._say(said)

  def _say(self, said: Mapping[str, Any]) -> None:
    pairs = [(key, json.dumps(value)) for key, value in said.items()]
    self._db.executemany('INSERT OR REPLACE INTO meta VALUES(?, ?)', pairs)

  def state(self) -> dict[str, Any]:
    """All that `say` kept, and `seq`, as of one moment."""
    found = self._rows(
      "SELECT key, value FROM meta UNION ALL SELECT 'seq', coalesce(max(seq), 0) FROM journal"
    )
    return {key: json.loads(str(value)) for key, value in found}

  @property
  def seq(self) -> int:
    return self._rows('SELECT coalesce(max(seq), 0) FROM journal')[0][0]

  @property
  def count(self) -> int:
    return self._rows('SELECT count(*) FROM posts')[0][0]

  def journal(self) -> list[Entry]:
    """Every change there was, the oldest first."""
    found = self._rows('SELECT seq, time, kind, added, deleted FROM journal ORDER BY seq')
    return [Entry(*row) for row in found]

  def known(self, ids: Sequence[str]) -> dict[str, tuple[int, Document]]:
    """Those of `ids` that are there: their numbers and what is kept."""
    found = self._among(f'SELECT number, {_FIELDS} FROM posts WHERE id IN', ids)
    return {row[1]: (row[0], Document(*row[1:])) for row in found}

  def documents(self, numbers: Iterable[int]) -> dict[int, Document]:
    """Those of `numbers` that are there."""
    found = self._among(f'SELECT number, {_FIELDS} FROM posts WHERE number IN', list(numbers))
    return {row[0]: Document(*row[1:]) for row in found}

  def banned(self, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that may never come in again."""
    return {row[0] for row in self._among('SELECT id FROM banned WHERE id IN', ids)}

  def numbers(self, after: int = 0, until: int = 2**62) -> np.ndarray:
    """i64, ascending: posts that came after `after` of the journal, up to `until`."""
    found = self._rows(
      'SELECT number FROM posts WHERE seq > ? AND seq <= ? ORDER BY number', (after, until)
    )
    return np.array([row[0] for row in found], np.int64)

  def gone(self, after: int = 0) -> np.ndarray:
    """i64: numbers of posts that went after `after` of the journal."""
    found = self._rows('SELECT number FROM gone WHERE seq > ?', (after,))
    return np.array([row[0] for row in found], np.int64)

  def vectors(self, numbers: np.ndarray, table: str) -> tuple[np.ndarray, np.ndarray]:
    """(i64 [S] those of `numbers` that are there, ascending; f32 [S, D] their vectors)."""
    found = self._among(f'SELECT number, vector FROM {table} WHERE number IN', numbers.tolist())
    found.sort()
    size = int(self.said('size', 0))
    if found:
      size = len(found[0][1]) // 4
    joined = np.frombuffer(b''.join(row[1] for row in found), np.float32)
    return np.array([row[0] for row in found], np.int64), joined.reshape(-1, size)

  def update(
    self,
    kind: Kind,
    *,
    add: Sequence[Document] = (),
    vectors: np.ndarray | None = None,
    delete: Sequence[int] = (),
    ban: Sequence[str] = (),
    table: str = '',
    **said: Any,
  ) -> int:
    """One change, whole or not at all; its place in the journal.

    Args:
      add: posts, none of which is there or all of whose older versions are in `delete`.
      vectors: f32 [add, D], for `table`.
      delete: numbers that go.
      ban: ids that may never come in again.
      said: see `say`.
    """
    with self._changing():
      cursor = self._db.execute(
        'INSERT INTO journal(time, kind, added, deleted) VALUES(?, ?, ?, ?)',
        (time.time(), kind, len(add), len(delete)),
      )
      seq = int(cursor.lastrowid or 0)
      gone = [(number,) for number in delete]
      self._db.executemany('DELETE FROM posts WHERE number = ?', gone)
      for other in self.tables():
        self._db.executemany(f'DELETE FROM {other} WHERE number = ?', gone)
      self._db.executemany('INSERT INTO gone VALUES(?, ?)', [(n, seq) for n in delete])
      self._db.executemany('INSERT OR IGNORE INTO banned VALUES(?)', [(one,) for one in ban])
      for row, document in enumerate(add):
        number = self._db.execute(
          f'INSERT INTO posts(seq, {_FIELDS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?)', (seq, *document)
        ).lastrowid
        if vectors is not None:
          self._put(table, [number], vectors[row : row + 1])
      self._say(said)
    return seq

  def tables(self) -> list[str]:
    """Tables of vectors: one, and a second while all posts are embedded again."""
    found = self._rows(
      "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'vectors%'"
    )
    return [row[0] for row in found]

  def add_table(self, table: str) -> None:
    with self._changing():
      self._db.execute(
        f'CREATE TABLE IF NOT EXISTS {table}(number INTEGER PRIMARY KEY, vector BLOB NOT NULL)'
      )

  def missing(self, table: str, count: int) -> np.ndarray:
    """i64: up to `count` numbers of posts without a vector in `table`."""
    found = self._rows(
      f'SELECT number FROM posts WHERE number NOT IN (SELECT number FROM {table}) LIMIT ?', (count,)
    )
    return np.array([row[0] for row in found], np.int64)

  def put_vectors(self, table: str, numbers: np.ndarray, vectors: np.ndarray) -> None:
    with self._changing():
      self._put(table, numbers.tolist(), vectors)

  def keep_table(self, table: str) -> None:
    """Drops the vectors of other encoders."""
    with self._changing():
      for other in self.tables():
        if other != table:
          self._db.execute(f'DROP TABLE {other}')

  def forget(self) -> None:
    """Has nothing of what was deleted stay in the write-ahead log."""
    with self._lock, explained(self.path.parent):
      self._db.execute('PRAGMA wal_checkpoint(TRUNCATE)')

  def _put(self, table: str, numbers: Sequence[Any], vectors: np.ndarray) -> None:
    rows = [
      (number, np.ascontiguousarray(vector, np.float32).tobytes())
      for number, vector in zip(numbers, vectors, strict=True)
    ]
    self._db.executemany(f'INSERT OR REPLACE INTO {table} VALUES(?, ?)', rows)

  def _among(self, select: str, values: Sequence[Any]) -> list[Any]:
    return self._rows(f'{select} (SELECT value FROM json_each(?))', (json.dumps(list(values)),))

  def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    with self._lock:
      return self._db.execute(statement, values).fetchall()

  @contextlib.contextmanager
  def _changing(self) -> Iterator[None]:
    """A transaction: what fails, or is killed, changes nothing."""
    with self._lock, explained(self.path.parent):
      self._db.execute('BEGIN IMMEDIATE')
      try:
        yield
        self._db.execute('COMMIT')
      except BaseException:
        with contextlib.suppress(sqlite3.Error):
          self._db.execute('ROLLBACK')
        raise


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
  """UserError where the disk will not take what is written."""
  try:
    yield
  except (sqlite3.OperationalError, OSError) as error:
    raise UserError(
      f'{folder} cannot be written ({error}): what was indexed before is kept; make room, or check the '
      'folder, and start again to go on'
    ) from None
