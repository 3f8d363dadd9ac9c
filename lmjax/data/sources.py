"""Where posts come from: an asset or the user's own files, with every row accounted for.

Rows in, posts out. Knows nothing about tokens, held-out posts or order.
"""

import datetime
import email.utils
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from lmjax.core import assets
from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError, nearest
from lmjax.data import files, formats

T = TypeVar('T')

# What people call each field, likeliest first; letter case does not matter.
_NAMES = {
  'text': formats.TEXT_NAMES,
  'id': ('id_str', 'id', 'tweet_id', 'post_id', 'status_id', 'source_id'),
  'time': ('created_at', 'time', 'timestamp', 'date', 'datetime', 'published', 'created_utc'),
  'author': ('author_id', 'author', 'username', 'user_name', 'screen_name', 'user', 'account'),
}
# What else search filters and ranks by, where posts say it; prepared corpora know nothing of it.
_EXTRA_NAMES = {
  'language': ('lang', 'language'),
  'likes': ('favorite_count', 'like_count', 'likes', 'favourites_count', 'reaction_count'),
  'title': ('url_title', 'link_title', 'card_title', 'title'),
}
# Why a row is not used (or, of a time, what is missing from it), in words.
_REASONS = {
  'duplicate': 'the same text as another post',
  'empty': 'no text but white space',
  'undecodable': 'characters that are broken or in another encoding than UTF-8 or UTF-16',
  'malformed': 'not a valid row of its format',
  'no_text': 'no text in the text field',
  'boost': "somebody else's post, boosted",
  'not_a_post': 'an activity that is no post',
  'seen_in_training': 'held out by time, but its text is also a training post',
}
_BAD = ('undecodable', 'malformed', 'no_text')
_EXAMPLES = 5
_THREADS = 8  # files opened at a time: for stores that are slow to answer


class Post(NamedTuple):
  """One post, as every source gives it."""

  text: str  # as it was, without the white space around it; never empty
  id: str = ''
  time: float | None = None  # unix seconds
  author: str = ''
  language: str = ''  # a code, as in the row
  likes: float | None = None
  title: str = ''  # its own, or that of what it links to


class Rows:
  """The accounting of one reading: every row is a post that is used or dropped for a reason.

  Attributes:
    total: rows read.
    dropped: rows by the reason why they are not used.
    untimed: rows used without their time, which could not be read.
    examples: where the first five of each reason are, as file:line, or what the post said.
    notes: how the files were read, a sentence each.
  """

  def __init__(self) -> None:
    self.total = 0
    self.dropped: dict[str, int] = {}
    self.untimed = 0
    self.examples: dict[str, list[str]] = {}
    self.notes: list[str] = []

  def count(self, items: Iterable[T]) -> Iterator[T]:
    """Passes `items` on and adds them to `total`."""
    for item in items:
      self.total += 1
      yield item

  def drop(self, reason: str, example: str) -> None:
    """Counts a row as dropped for `reason`; `example` is its place or its text."""
    self.dropped[reason] = self.dropped.get(reason, 0) + 1
    self._keep_example(reason, example)

  def lose_time(self, example: str) -> None:
    """Counts a row that is used although its time could not be read."""
    self.untimed += 1
    self._keep_example('untimed', example)

  def sentences(self) -> list[str]:
    """How the files were read, and a sentence for each reason with its first examples."""
    told = [*self.notes]
    for reason, number in sorted(self.dropped.items()):
      meaning = _REASONS.get(reason, reason)
      share = f'{number:,} of {self.total:,} rows dropped as {reason} ({meaning})'
      told.append(f'{share}: {self._shown(reason, number)}')
    if self.untimed:
      share = f'{self.untimed:,} of {self.total:,} rows used without their time, which is no date'
      told.append(f'{share}: {self._shown("untimed", self.untimed)}')
    return told

  def _keep_example(self, reason: str, example: str) -> None:
    kept = self.examples.setdefault(reason, [])
    if len(kept) < _EXAMPLES:
      kept.append(example)

  def _shown(self, reason: str, number: int) -> str:
    return ', '.join(self.examples[reason]) + (', ...' if number > _EXAMPLES else '')


class _Source(NamedTuple):
  """A file, how it looks, and the columns that hold each field ('' = none does)."""

  path: str
  look: formats.Look
  text: str
  id: str
  time: str
  author: str
  language: str
  likes: str
  title: str

  @property
  def columns(self) -> set[str]:
    return set(self[2:]) - {''}


class Posts(Config):
  """The posts to read and how."""

  posts: str = leaf(
    'healthtweets',
    "What to read: an asset, GLOB[,GLOB]... of files, a prepared corpus's manifest.json (s3:// too).",
  )
  posts_format: formats.Format = leaf(
    'auto', 'Format of the files; auto = seen from their content.'
  )
  text_field: str = leaf('', 'Column or field with the text; empty = found by its name.')
  id_field: str = leaf('', 'Column or field with the id; empty = found by its name.')
  time_field: str = leaf('', 'Column or field with the time; empty = found by its name.')
  author_field: str = leaf('', 'Column or field with the author; empty = found by its name.')
  bad_rows: float = leaf(0.1, 'Fraction of rows that may be broken or lack text.', low=0, high=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not self._items():
      raise UserError(
        f'posts={self.posts!r}: expected an asset ({", ".join(assets.of_kind("posts"))}) or files'
      )

  @property
  def corpus(self) -> str:
    """The folder of the prepared corpus that this is, by its manifest.json; '' of other posts."""
    folder, _, name = self.posts.strip().rpartition('/')
    return (folder or '.') if name == 'manifest.json' else ''

  def files(self) -> list[str]:
    """The files to read, each once, sorted; an asset is downloaded if it is not there yet.

    Raises:
      UserError: nothing matches, or an asset or a place cannot be reached.
    """
    found = set()
    for item in self._items():
      if item in assets.of_kind('posts'):
        found.add(str(assets.fetch(item)))
      else:
        found |= _matches(item)
    return sorted(found)

  def fingerprint(self) -> dict[str, Any]:
    """What is read, as JSON: it changes with the content, not with names, folders or order.

    Reads every file once to hash it; an asset is neither read nor downloaded.
    """
    items = self._items()
    named = assets.of_kind('posts')
    known = {named[item].sha256 for item in items if item in named}
    paths = sorted({path for item in items if item not in named for path in _matches(item)})
    with ThreadPoolExecutor(_THREADS) as pool:
      hashes = sorted([*known, *pool.map(files.sha256, paths)])
    fields = {f'{field}_field': getattr(self, f'{field}_field') for field in _NAMES}
    return {'sha256': hashes, 'posts_format': self.posts_format, **fields}

  def read(self, rows: Rows) -> Iterator[Post]:
    """The posts of all files, in the order of the files; what is not one is counted in `rows`.

    The beginning of every file is looked at before this returns, so a missing file or field is told
    at once.

    Raises:
      UserError: a file cannot be read; at the end, more than `bad_rows` of the rows were bad.
    """
    paths = self.files()
    with ThreadPoolExecutor(_THREADS) as pool:
      sources = list(pool.map(self._source, paths))
    rows.notes += _notes(sources)
    return self._posts(sources, rows)

  def _items(self) -> list[str]:
    return [item.strip() for item in self.posts.split(',') if item.strip()]

  def _source(self, path: str) -> _Source:
    seen = formats.look(path, self.posts_format)
    named = [self._column(field, path, seen) for field in _NAMES]
    extra = [_find(names, seen) for names in _EXTRA_NAMES.values()]
    return _Source(path, seen, *named, *('' if one in named else one for one in extra))

  def _column(self, field: str, path: str, seen: formats.Look) -> str:
    """The column of `path` that holds `field`; '' if none does or there is no row to tell from."""
    columns = seen.columns
    wanted = getattr(self, f'{field}_field')
    listed = ', '.join(columns)
    if wanted and columns and wanted not in columns:
      hint = nearest(wanted, columns)
      hint = f' ({hint})' if hint.startswith('did you mean') else ''
      raise UserError(
        f'--{field}_field={wanted} is not in {path}, read as {seen.format}{hint}: '
        f'pass one of {listed}'
      )
    found = wanted or _find(_NAMES[field], seen)
    if field == 'text' and not found and len(columns) == 1:
      return columns[0]
    if field == 'text' and not found and columns:
      raise UserError(
        f'{path}, read as {seen.format}, has no column named like a text: '
        f'pass --text_field with one of {listed}, or another --posts_format'
      )
    return found

  def _posts(self, sources: list[_Source], rows: Rows) -> Iterator[Post]:
    for source in sources:
      for row in rows.count(formats.read_rows(source.path, source.look, source.columns)):
        post = _post(row, source, rows)
        if post is not None:
          yield post
    bad = {reason: rows.dropped[reason] for reason in _BAD if reason in rows.dropped}
    if sum(bad.values()) > self.bad_rows * rows.total:
      shown = '; '.join(
        f'{number:,} {reason} ({", ".join(rows.examples[reason])})'
        for reason, number in bad.items()
      )
      raise UserError(
        f'{sum(bad.values()):,} of {rows.total:,} rows are bad, more than '
        f'--bad_rows={self.bad_rows} allows: {shown}: '
        'mend them, check --posts_format and --text_field, or raise --bad_rows'
      )


def _find(names: Iterable[str], seen: formats.Look) -> str:
  """The column that has the first of `names` that any has, whatever its case; '' if none does."""
  by_name = {column.lower(): column for column in reversed(seen.columns)}
  return next((by_name[name] for name in names if name in by_name), '')


def _matches(item: str) -> set[str]:
  found = set(files.matches(item))
  if not found:
    raise UserError(
      f'no file matches --posts={item} and no asset is called that: {_asset_hint(item)}'
    )
  return found


def _asset_hint(item: str) -> str:
  return f'check the path, or pass an asset ({nearest(item, assets.of_kind("posts"))})'


def _notes(sources: list[_Source]) -> list[str]:
  """One sentence for all files that are read alike."""
  alike: dict[str, list[str]] = {}
  for source in sources:
    fields = [
      f'{field} from {getattr(source, field)!r}' for field in _NAMES if getattr(source, field)
    ]
    how = f'read as {source.look.format}' + (f', {", ".join(fields)}' if fields else ', no rows')
    alike.setdefault(how, []).append(source.path)
  return [
    f'{paths[0]}{f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""} {how}'
    for how, paths in alike.items()
  ]


def _post(row: formats.Row, source: _Source, rows: Rows) -> Post | None:
  """The post in `row`, or None and its reason counted in `rows`."""
  values, place, problem = row
  if problem:
    return rows.drop(problem, place)
  text = values.get(source.text)
  try:
    text = text.decode() if isinstance(text, bytes) else text
    if not isinstance(text, str):
      return rows.drop('no_text', place)
    text = text.strip()
    if not text:
      return rows.drop('empty', place)
    id, author = _label(values, source.id), _label(values, source.author)
    language, title = _label(values, source.language), _label(values, source.title).strip()
    f'{text}{id}{author}{language}{title}'.encode()  # lone surrogates stand for bytes that were not UTF-8
  except UnicodeError:
    return rows.drop('undecodable', place)
  try:
    time = _seconds(values.get(source.time))
  except (ValueError, OverflowError):
    rows.lose_time(place)
    time = None
  return Post(text, id, time, author, language, _number(values.get(source.likes)), title)


def _label(values: Mapping[str, Any], column: str) -> str:
  value = values.get(column)
  return str(value) if isinstance(value, str | int) else ''


def _number(value: Any) -> float | None:
  """A finite number, or None."""
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if math.isfinite(number) else None


def _seconds(value: Any) -> float | None:
  """Unix seconds of a number (seconds or finer) or an ISO 8601, RFC 2822 or Twitter date, or None.

  Raises:
    ValueError, OverflowError: it is none of these.
  """
  if value is None or value == '':
    return None
  try:
    number = float(value)
  except (TypeError, ValueError):
    return _date_seconds(str(value).strip())
  if not math.isfinite(number):
    raise ValueError(value)
  while abs(number) >= 1e11:  # the year 5138 in seconds, 1973 in milliseconds
    number /= 1000
  return number


def _date_seconds(text: str) -> float:
  try:
    date = datetime.datetime.fromisoformat(text.removesuffix(' UTC'))
  except ValueError:
    date = email.utils.parsedate_to_datetime(text)
  if date.tzinfo is None:
    date = date.replace(tzinfo=datetime.UTC)
  return date.timestamp()
