"""Posts in any order into two parts, training and held out: distinct texts in one fixed order.

An external shuffle: what comes out depends on the set of posts alone, and memory does not grow with
their number. Knows nothing about where posts come from or about tokens.
"""

import contextlib
import hashlib
import json
import math
import re
import shutil
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.core.config import Config, leaf
from lmjax.core.errors import UserError
from lmjax.data.sources import Post, Rows

Part = Literal['train', 'held_out']
PARTS: tuple[Part, ...] = ('train', 'held_out')

_URL = re.compile(r'https?://\S+')
_URL_AND_GAP = re.compile(r'\s*https?://\S+', re.IGNORECASE)
_BUFFER_BYTES = 1 << 24  # of records that wait to be written to their buckets
_BUCKET_BYTES = 1 << 26  # a larger bucket is split again before it is sorted in memory
_DEEPEST = 8  # levels of 16 buckets; beyond them a bucket is large because of one repeated text
_CHUNK = 1 << 24  # keys compared at a time
_encode = json.JSONEncoder(ensure_ascii=False, separators=(',', ':')).encode


class Split(Config):
  """Which posts are held out from training."""

  held_out: float = leaf(0.05, 'Fraction of the posts that is held out.', above=0, high=0.5)
  by: Literal['text', 'time'] = leaf('text', 'Hold out by hash of the text, or the latest posts.')
  salt: str = leaf('', 'Any text; another one holds out other posts (by=text).')


@dataclass(frozen=True)
class Corpus:
  """The texts of both parts, on disk.

  Attributes:
    folder: where they are; whoever called `collect` owns it.
    counts: rows `in`, `used`, `held_out` and `dropped` by reason; in = used + held_out + dropped.
    sizes: UTF-8 bytes of the texts of each part.
  """

  folder: Path
  counts: dict[str, Any]
  sizes: dict[str, int]

  def texts(self, part: Part) -> Iterator[str]:
    """The texts of `part` in their order, streamed from disk anew at each call."""
    with _part_file(self.folder, part).open(encoding='utf-8', newline='\n') as lines:
      yield from map(json.loads, lines)

  def bytes(self, part: Part) -> int:
    """UTF-8 bytes of all texts of `part` together."""
    return self.sizes[part]


class _Record(NamedTuple):
  """A post as it lies in a bucket; records sort by their fields, in this order."""

  order: str  # hash of the exact text, in hex: the global order
  text: str
  untimed: bool
  time: float
  id: str
  author: str


def strip_urls(text: str) -> str:
  """`text` without its http(s) URLs and the white space before each."""
  return _URL_AND_GAP.sub('', text).strip()


def normalise(text: str) -> str:
  """What near-identical posts share: without URLs, NFKC, case folded, white space collapsed."""
  if text.isascii():
    folded = text.lower()
  else:
    folded = unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', text).casefold())
  return ' '.join(_URL.sub(' ', folded).split())


def collect(posts: Iterable[Post], split: Split, rows: Rows, folder: Path) -> Corpus:
  """Drops repeated texts, holds some out, and writes both parts to `folder` in a fixed order.

  A post's place in the order comes from a hash of its text, and its part from a hash of the
  normalised text and the salt (or from the times): posts that differ only in case, spacing or URLs
  are in one part, near-identical posts are not neighbours, and the order of files and rows is
  irrelevant.

  Args:
    posts: in any order; texts must be valid Unicode.
    split: what to hold out.
    rows: the accounting that `posts` are counted in as they come: that of `Posts.read`, or of
      `rows.count(posts)` for others. Repeated texts are added to it.
    folder: created if need be; two to three times the size of the posts is needed while this runs.

  Raises:
    UserError: a part would be empty, or by='time' and no post has a time.
  """
  scratch = folder / 'scratch'
  shutil.rmtree(scratch, ignore_errors=True)
  buckets = scratch / 'buckets'
  buckets.mkdir(parents=True)
  try:
    if not _scatter(map(_record, posts), buckets, 0):
      raise UserError(f'no post to use in {rows.total:,} rows: {_told(rows)}')
    place = _place_by_text(split) if split.by == 'text' else _place_by_time(split, scratch)
    written, sizes = _write_parts(buckets, place, rows, folder)
  finally:
    shutil.rmtree(scratch)
  counts = {
    'in': rows.total,
    'used': written['train'],
    'held_out': written['held_out'],
    'dropped': dict(sorted(rows.dropped.items())),
  }
  if rows.total != written.total() + sum(rows.dropped.values()):
    raise RuntimeError(f'rows do not add up: {counts}; were all counted with Rows.count?')
  _check_parts(split, written)
  return Corpus(folder, counts, dict(sizes))


def _told(rows: Rows) -> str:
  reasons = ', '.join(f'{number:,} {reason}' for reason, number in sorted(rows.dropped.items()))
  return f'{reasons or "nothing was dropped"}: check --posts and --text_field'


def _record(post: Post) -> _Record:
  order = hashlib.blake2b(post.text.encode(), digest_size=16).hexdigest()
  return _Record(order, post.text, post.time is None, post.time or 0.0, post.id, post.author)


def _scatter(records: Iterable[_Record], folder: Path, level: int) -> int:
  """Appends each record to the file in `folder` named by a digit of its order; their number."""
  waiting: dict[str, list[str]] = {}
  number = waiting_bytes = 0
  for record in records:
    line = _encode(record)
    waiting.setdefault(record.order[level], []).append(line)
    number += 1
    waiting_bytes += len(line)
    if waiting_bytes > _BUFFER_BYTES:
      _flush(waiting, folder)
      waiting_bytes = 0
  _flush(waiting, folder)
  return number


def _flush(waiting: dict[str, list[str]], folder: Path) -> None:
  for name, lines in waiting.items():
    with (folder / name).open('a', encoding='utf-8', newline='\n') as file:
      file.write('\n'.join(lines) + '\n')
  waiting.clear()


def _distinct(folder: Path, dropped: Callable[[str], None], level: int = 0) -> Iterator[_Record]:
  """The records of all buckets in order, the first of each text; repeated texts go to `dropped`."""
  for bucket in sorted(folder.iterdir()):
    if bucket.stat().st_size > _BUCKET_BYTES and level < _DEEPEST:
      finer = bucket.with_suffix('.split')
      finer.mkdir()
      _scatter(_read(bucket), finer, level + 1)
      yield from _distinct(finer, dropped, level + 1)
      shutil.rmtree(finer)
    else:
      yield from _distinct_in(bucket, dropped)


def _distinct_in(bucket: Path, dropped: Callable[[str], None]) -> Iterator[_Record]:
  first: dict[str, _Record] = {}
  for record in _read(bucket):
    other = first.setdefault(record.text, record)
    if other is not record:
      first[record.text] = min(other, record)
      dropped(record.text)
  yield from sorted(first.values())


def _read(bucket: Path) -> Iterator[_Record]:
  with bucket.open(encoding='utf-8', newline='\n') as lines:
    for line in lines:
      yield _Record(*json.loads(line))


def _key(text: str, salt: str) -> int:
  """64 bits that near-identical texts share."""
  message = f'{salt}\0{normalise(text)}'.encode()
  return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), 'little')


def _place_by_text(split: Split) -> Callable[[_Record], str]:
  limit = int(split.held_out * 2**64)
  return lambda record: 'held_out' if _key(record.text, split.salt) < limit else 'train'


def _place_by_time(split: Split, scratch: Path) -> Callable[[_Record], str]:
  """The latest posts are held out, less those whose normalised text is a training post's too."""
  timed = _spill_times(scratch, split.salt)
  if not timed:
    raise UserError('no post has a time to split by: pass --time_field=NAME, or --split.by=text')
  times = np.memmap(scratch / 'times', np.float64, 'r')
  keys = np.memmap(scratch / 'keys', np.uint64, 'r')
  cut = _nth_latest(scratch / 'times', max(1, round(split.held_out * timed)))
  held = np.unique(keys[times >= cut])
  seen: set[int] = set()
  for start in range(0, len(keys), _CHUNK):
    chunk = slice(start, start + _CHUNK)
    seen.update(np.intersect1d(held, keys[chunk][times[chunk] < cut]).tolist())

  def place(record: _Record) -> str:
    if record.untimed or record.time < cut:
      return 'train'
    return 'seen_in_training' if _key(record.text, split.salt) in seen else 'held_out'

  return place


def _spill_times(scratch: Path, salt: str) -> int:
  """Writes the time (-inf for none) and the key of each distinct text; how many have a time."""
  timed = 0
  with (scratch / 'times').open('wb') as times, (scratch / 'keys').open('wb') as keys:
    for record in _distinct(scratch / 'buckets', lambda text: None):
      times.write(struct.pack('=d', -math.inf if record.untimed else record.time))
      keys.write(struct.pack('=Q', _key(record.text, salt)))
      timed += not record.untimed
  return timed


def _nth_latest(times: Path, nth: int) -> float:
  copy = shutil.copy(times, times.with_suffix('.sorted'))
  ordered = np.memmap(copy, np.float64, 'r+')
  ordered.partition(len(ordered) - nth)
  return float(ordered[len(ordered) - nth])


def _write_parts(
  buckets: Path, place: Callable[[_Record], str], rows: Rows, folder: Path
) -> tuple[Counter[str], Counter[str]]:
  """Writes every distinct text to its part; the texts and the bytes in each."""
  written, sizes = Counter[str](), Counter[str]()
  with contextlib.ExitStack() as stack:
    outputs = {
      part: stack.enter_context(_part_file(folder, part).open('w', encoding='utf-8', newline='\n'))
      for part in PARTS
    }
    for record in _distinct(buckets, lambda text: rows.drop('duplicate', repr(text[:40]))):
      part = place(record)
      if part in outputs:
        outputs[part].write(_encode(record.text) + '\n')
        written[part] += 1
        sizes[part] += len(record.text.encode())
      else:
        rows.drop(part, record.id or repr(record.text[:40]))
  return written, sizes


def _part_file(folder: Path, part: Part) -> Path:
  return folder / f'{part}.jsonl'


def _check_parts(split: Split, written: Counter[str]) -> None:
  posts = written.total()
  if not written['train']:
    raise UserError(
      f'all {posts:,} distinct posts are held out (--split.held_out={split.held_out} by {split.by}): '
      'give more posts, a smaller --split.held_out or the other --split.by'
    )
  if not written['held_out']:
    raise UserError(
      f'none of {posts:,} distinct posts is held out (--split.held_out={split.held_out} by {split.by}): '
      'give more posts, a larger --split.held_out or the other --split.by'
    )
