"""Files into rows: the formats that people have posts in, told apart by what is in the file.

Rows are mappings of a file's own names; which of them is the text is not known here. Everything is
streamed except the formats that are one JSON document. Broken rows are rows with a `problem`.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TextIO
from zipfile import BadZipFile

from lmjax.core.errors import UserError
from lmjax.data import files, platforms

if TYPE_CHECKING:
  import pyarrow as pa

Format = Literal[
  'auto',
  'jsonl',
  'json',
  'csv',
  'tsv',
  'parquet',
  'text',
  'twitter_archive',
  'x_api',
  'activitypub',
]

# What the text of a post is called, likeliest first.
TEXT_NAMES = (
  'full_text',
  'text',
  'content',
  'body',
  'message',
  'tweet',
  'post',
  'status',
  'comment',
)

_HEAD_BYTES = 1 << 16  # enough to tell a format
_DETECT_LINES = 20
_SAMPLE_ROWS = 1000  # enough to meet every name that the rows use
_LONGEST_FIELD = 1 << 24  # characters; a CSV field beyond it is an open quote, not a post
_PAGE_KEYS = {'data', 'includes', 'meta', 'errors'}
_PAGE_START = re.compile(r'\{\s*"(data|includes|meta|errors)"\s*:\s*[\[{]')
_COLUMN_NAME = re.compile(r'[\w .:/#$%&()*+\[\]-]{0,64}')
_ITEMS = {
  'json': platforms.json_items,
  'twitter_archive': platforms.archive_items,
  'x_api': platforms.page_items,
  'activitypub': platforms.outbox_items,
}


class Row(NamedTuple):
  """One row of a file: its values by name, or the problem that makes it no post."""

  values: Mapping[str, Any]
  place: str  # file:line, or file:n for the nth item of a format without lines
  problem: str = ''


class Look(NamedTuple):
  """What the beginning of a file shows."""

  format: Format
  encoding: str  # of the formats that are text
  columns: tuple[str, ...]  # the names in its first rows


def look(path: str, format: Format = 'auto') -> Look:
  """How to read `path`: its format (unless given), encoding and columns."""
  with _explained(path, format), contextlib.closing(files.streams(path)) as opened:
    _, stream = next(opened)
    head = stream.read(_HEAD_BYTES)
  encoding = 'utf-16' if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else 'utf-8-sig'
  if format == 'auto':
    format = _detect(head, encoding, path)
  with contextlib.closing(read_rows(path, Look(format, encoding, ()))) as rows:
    sample = itertools.islice(rows, _SAMPLE_ROWS)
    columns = dict.fromkeys(name for row in sample for name in row.values)
  return Look(format, encoding, tuple(columns))


def read_rows(path: str, seen: Look, columns: Collection[str] = ()) -> Generator[Row]:
  """Every row of `path`, as `look` saw it; of Parquet only `columns` if any are named.

  Raises:
    UserError: the file is damaged or not of that format; a bad row alone raises nothing.
  """
  with _explained(path, seen.format):
    for name, stream in files.streams(path):
      yield from _rows(stream, name, seen, columns)


@contextlib.contextmanager
def _explained(path: str, format: Format) -> Iterator[None]:
  try:
    yield
  except _damage() as error:
    how = '' if format == 'auto' else f' as {format}'
    raise UserError(
      f'{path} cannot be read{how} ({error}): it may be cut off or of another format, '
      'so get it again, leave it out or pass --posts_format'
    ) from error


def _damage() -> tuple[type[Exception], ...]:
  """What readers raise on files that are not what they should be."""
  import pyarrow as pa

  return OSError, EOFError, zlib.error, BadZipFile, pa.ArrowException, csv.Error


def _rows(stream: BinaryIO, name: str, seen: Look, columns: Collection[str]) -> Iterator[Row]:
  if seen.format == 'parquet':
    yield from _parquet_rows(stream, name, columns)
    return
  codecs.register_error('lmjax.undecodable', _undecodable)
  # CSV takes its line ends itself, as quoted fields hold some; for the others only \n ends a line.
  newline = '' if seen.format in ('csv', 'tsv') else '\n'
  with io.TextIOWrapper(
    stream, seen.encoding, errors='lmjax.undecodable', newline=newline
  ) as lines:
    match seen.format:
      case 'text':
        yield from (Row({'text': line}, f'{name}:{at}') for at, line in enumerate(lines, 1))
      case 'jsonl':
        yield from _jsonl_rows(lines, name)
      case 'csv' | 'tsv':
        yield from _csv_rows(lines, name, '\t' if seen.format == 'tsv' else '')
      case _:
        yield from _document_rows(lines, name, _ITEMS[seen.format])


def _undecodable(error: UnicodeError) -> tuple[str, int]:
  """A lone surrogate for each bad sequence: like those in JSON, no valid text can hold it."""
  if not isinstance(error, UnicodeDecodeError):
    raise error
  return '\udcff', error.end


def _detect(head: bytes, encoding: str, path: str) -> Format:
  if head.startswith(b'PAR1'):
    return 'parquet'
  text = head.decode(encoding, 'replace').lstrip()
  if text.count('\0') > len(text) // 4:
    raise UserError(
      f'{path} is neither UTF-8 text nor a format that is known: '
      'save it as UTF-8, or name its --posts_format'
    )
  if text.startswith('window.YTD.'):
    return 'twitter_archive'
  if re.match(r'\[\s*[{\]]', text):
    return 'json'
  lines = text.splitlines()[:_DETECT_LINES]
  if re.match(r'\{\s*["}]', text) or 2 * sum(_parsed(line) is not None for line in lines) > len(
    lines
  ):
    return _detect_objects(text)
  if _is_table(text, '\t'):
    return 'tsv'
  return 'csv' if _is_table(text, ',') or _is_table(text, ';') else 'text'


def _detect_objects(text: str) -> Format:
  """Of a text that begins with an object, perhaps one longer than what is seen of it."""
  first = _parsed(text.partition('\n')[0])
  if first is None:
    if '"orderedItems"' in text and '"OrderedCollection' in text:
      return 'activitypub'
    return 'x_api' if _PAGE_START.match(text) else 'jsonl'
  if isinstance(first.get('orderedItems'), list):
    return 'activitypub'
  is_page = first.keys() <= _PAGE_KEYS and isinstance(first.get('data', []), list)
  return 'x_api' if first and is_page else 'jsonl'


def _is_table(text: str, delimiter: str) -> bool:
  """Whether `text` begins with a header of names and goes on in as many cells."""
  records = []
  try:
    for record in csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True):
      records.append(record)
  except csv.Error:
    pass  # What came before the broken record decides.
  if not records:
    return False
  header, *body = records
  has_text = any(name.strip().lower() in TEXT_NAMES for name in header)
  if len(header) == 1 or not body:
    return has_text
  fitting = sum(len(record) == len(header) for record in body)
  return all(map(_COLUMN_NAME.fullmatch, header)) and 2 * fitting >= len(body)


def _jsonl_rows(lines: TextIO, name: str) -> Iterator[Row]:
  for at, line in enumerate(lines, 1):
    if line.isspace():
      continue
    values = _parsed(line)
    place = f'{name}:{at}'
    yield Row({}, place, 'malformed') if values is None else Row(values, place)


def _parsed(line: str) -> dict[str, Any] | None:
  """The JSON object in `line`, or None."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def _csv_rows(lines: TextIO, name: str, delimiter: str) -> Iterator[Row]:
  csv.field_size_limit(_LONGEST_FIELD)
  first = lines.readline()
  source = _RecordLines(itertools.chain([first], lines) if first else lines)
  delimiter = delimiter or max(',;', key=first.count)
  records = csv.reader(source, delimiter=delimiter, strict=True)
  header = [column.strip() for column in next(records, [])]
  source.end_record()
  while True:
    try:
      cells = next(records)
    except StopIteration:
      return
    except csv.Error:
      cells = None
    is_broken = cells is None or len(cells) not in (0, len(header))
    at = source.end_record(reread=is_broken)
    if is_broken:
      yield Row({}, f'{name}:{at}', 'malformed')
    elif cells:  # an empty line is no row
      yield Row(dict(zip(header, cells)), f'{name}:{at}')


class _RecordLines:
  """The lines of a CSV file, kept until their record ends.

  A stray quote swallows the lines that follow it. Reading them again after a broken record costs
  that record's first line only.
  """

  def __init__(self, lines: Iterator[str]) -> None:
    self._lines = lines
    self._again: list[str] = []  # the next line last
    self._record: list[str] = []
    self._at = 1

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    line = self._again.pop() if self._again else next(self._lines)
    self._record.append(line)
    return line

  def end_record(self, reread: bool = False) -> int:
    """Starts the next record, behind the first line of this one if `reread`; its line number."""
    if reread:
      self._again.extend(reversed(self._record[1:]))
      del self._record[1:]
    at = self._at
    self._at += len(self._record)
    self._record.clear()
    return at


def _parquet_rows(stream: BinaryIO, name: str, columns: Collection[str]) -> Iterator[Row]:
  import pyarrow.parquet as pq

  file = pq.ParquetFile(stream)
  names = [column for column in file.schema_arrow.names if not columns or column in columns]
  at = itertools.count(1)
  for batch in file.iter_batches(batch_size=1024, columns=names):
    for values in _with_unix_times(batch).to_pylist():
      yield Row(values, f'{name}:{next(at)}')


def _with_unix_times(batch: 'pa.RecordBatch') -> 'pa.RecordBatch':
  """Timestamps as unix microseconds: for nanoseconds and for some time zones Python has no type."""
  import pyarrow as pa

  for index, field in enumerate(batch.schema):
    if pa.types.is_timestamp(field.type):
      micros = batch.column(index).cast(pa.timestamp('us', field.type.tz), safe=False)
      batch = batch.set_column(index, field.name, micros.cast(pa.int64()))
  return batch


def _document_rows(
  lines: TextIO, name: str, items: Callable[[Any], Iterator[platforms.Item]]
) -> Iterator[Row]:
  at = itertools.count(1)
  for document in _documents(lines, name):
    for values, problem in items(document):
      if not problem and not isinstance(values, dict):
        problem = 'malformed'
      yield Row({} if problem else values, f'{name}:{next(at)}', problem)


def _documents(lines: TextIO, name: str) -> Iterator[Any]:
  """The JSON values of a file: one a line if the first line is one, else one in all."""
  first = next((line for line in lines if not line.isspace()), '')
  try:
    value = json.loads(first)
  except (ValueError, RecursionError):
    text = first + lines.read()
    if text:
      yield _whole_document(text, name)
    return
  yield value
  for line in lines:
    if not line.isspace():
      yield _parsed(line)


def _whole_document(text: str, name: str) -> Any:
  start = text.index('=') + 1 if text.startswith('window.') and '=' in text else 0
  try:
    return json.loads(text[start:])
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{name} is not valid JSON ({error}): '
      'get it again, leave it out or choose another --posts_format'
    ) from None
