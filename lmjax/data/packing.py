"""Posts into rows of one length, at random access: which part of which post stands where in row r.

A post of n tokens is n + 1 predictions: inputs [start, t1 .. tn], targets [t1 .. tn, end]. Its
pieces share these among rows so that each is made exactly once; a piece is a segment of its own, so
attention and positions never cross posts. Each window of `WINDOW` consecutive posts is packed by
itself, so that row r needs the lengths of one window and the row counts of all. Knows nothing about
text, order of rows or batches: lengths and token ids in, rows out.

Dimensions: B rows, L length, T predictions of all rows one after another.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.core.errors import UserError
from lmjax.core.types import Batch
from lmjax.data.shards import Shards
from lmjax.data.split import Part

Method = Literal['best_fit', 'split']
"""best_fit: whole posts, each in the fullest row that has room (best-fit decreasing; only a post
longer than a row is cut). split: posts one after another, cut where a row ends; no room is lost."""

# Of 1,024 / 4,096 / 16,384 posts (31 tokens on average) best fit fills .978 / .979 / .979 of rows
# of 128 and .987 / .990 / .991 of rows of 256. A plan of 4,096 takes about 2 ms.
WINDOW = 4096
_PLANS = 32  # kept in memory


class Pieces(NamedTuple):
  """Parts of posts in the order in which they fill rows; i64[P] each."""

  row: np.ndarray  # never falls
  post: np.ndarray
  start: np.ndarray  # first of the post's n + 1 predictions
  size: np.ndarray  # predictions

  def take(self, places: slice | np.ndarray) -> 'Pieces':
    return Pieces(*(field[places] for field in self))


class Packing:
  """The rows that the posts of a part make.

  Row counts of the windows are computed once, in one pass over the lengths (about 0.4 s a million
  posts), and kept beside the shards.

  Attributes:
    starts: i64[W + 1] first row of each window of posts, then the number of all rows.
    rows: number of rows.
    fill: share of positions that are not padding.
  """

  def __init__(self, shards: Shards, part: Part, length: int, method: Method) -> None:
    self._lengths = shards.lengths(part)
    self._length = length
    self._method: Method = method
    self._index = shards.folder / f'{part}.packing-{method}-{length}-{WINDOW}.npy'
    self.starts = _cached_starts(self._index, self._lengths, length, method)
    self.rows = int(self.starts[-1])
    entry = shards.manifest['parts'][part]
    self.fill = (entry['tokens'] + entry['posts']) / max(1, self.rows * length)
    self._plan = functools.lru_cache(_PLANS)(self._planned)

  def row(self, window: int, row: int) -> Pieces:
    """The pieces in one row of a window, counted from the window's first."""
    pieces = self._plan(window)
    return pieces.take(slice(*np.searchsorted(pieces.row, [row, row + 1])))

  def _planned(self, window: int) -> Pieces:
    first = window * WINDOW
    pieces = plan(self._lengths[first : first + WINDOW], self._length, self._method)
    if pieces.row[-1] + 1 != self.starts[window + 1] - self.starts[window]:
      raise UserError(f'{self._index} is damaged: delete it to have it written again')
    return pieces._replace(post=pieces.post + first)


def join(rows: Sequence[Pieces]) -> Pieces:
  """Rows of any windows, each given by its pieces, as rows 0, 1, 2, ..."""
  none = Pieces(*np.zeros((4, 0), np.int64))
  pieces = Pieces(*map(np.concatenate, zip(none, *rows, strict=True)))
  sizes = np.array([len(row.row) for row in rows], np.int64)
  return pieces._replace(row=np.repeat(np.arange(len(rows)), sizes))


def plan(lengths: np.ndarray, length: int, method: Method) -> Pieces:
  """Packs posts of `lengths` tokens into rows of `length` positions."""
  sizes = np.asarray(lengths, np.int64) + 1
  return _best_fit(sizes, length) if method == 'best_fit' else _split(sizes, length)


def fill(
  pieces: Pieces, posts: Sequence[np.ndarray], rows: int, length: int, *, start: int, end: int
) -> Batch:
  """The `rows` x `length` arrays that `pieces` describe.

  Args:
    pieces: their rows count from 0.
    posts: token ids of the post of each piece, without start and end.
    rows, length: B and L.
    start, end: the tokens before and after a post.
  """
  starts, ends = np.array([start]), np.array([end])
  stream = np.concatenate([part for post in posts for part in (starts, post, ends)] or [starts])
  inputs = np.array([len(post) + 2 for post in posts], np.int64)
  positions_T = _within(pieces.size)
  source_T = np.repeat(np.cumsum(inputs) - inputs + pieces.start, pieces.size) + positions_T
  # Places in the flat B x L batch: pieces follow each other from the left edge of their row.
  before = np.cumsum(pieces.size) - pieces.size
  first = np.searchsorted(pieces.row, pieces.row)  # each piece's place among all of its row's first
  place_T = np.repeat(pieces.row * length + before - before[first], pieces.size) + positions_T
  segments_T = np.repeat(np.arange(len(first)) - first + 1, pieces.size)

  def spread(values_T: np.ndarray | int, dtype: type) -> Any:  # a host's array in a Batch
    flat = np.zeros(rows * length, dtype)
    flat[place_T] = values_T
    return flat.reshape(rows, length)

  return Batch(
    tokens_BL=spread(stream[source_T], np.int32),
    targets_BL=spread(stream[source_T + 1], np.int32),
    weights_BL=spread(1, np.float32),
    segments_BL=spread(segments_T, np.int32),
    positions_BL=spread(positions_T, np.int32),
  )


def _best_fit(sizes: np.ndarray, length: int) -> Pieces:
  """Pieces of `length` and a rest of each post, largest first into the fullest row with room."""
  number = -(-sizes // length)
  post = np.repeat(np.arange(len(sizes)), number)
  start = _within(number) * length
  size = np.minimum(sizes[post] - start, length)
  largest_first = np.argsort(-size, kind='stable')
  row = np.empty_like(size)
  row[largest_first] = _fit(size[largest_first].tolist(), length)
  order = np.argsort(row, kind='stable')
  return Pieces(row, post, start, size).take(order)


def _fit(sizes: list[int], length: int) -> list[int]:
  """The row of each piece, largest first. Bit r of `fits` says that a row with r free is open."""
  open_rows: list[list[int]] = [[] for _ in range(length + 1)]
  free = rows = 0
  chosen = []
  for size in sizes:
    fits = free >> size
    if fits:
      room = size + (fits & -fits).bit_length() - 1
      row = open_rows[room].pop()
      if not open_rows[room]:
        free ^= 1 << room
    else:
      room, row, rows = length, rows, rows + 1
    if room > size:
      open_rows[room - size].append(row)
      free |= 1 << (room - size)
    chosen.append(row)
  return chosen


def _split(sizes: np.ndarray, length: int) -> Pieces:
  """Posts one after another, cut at every multiple of `length`."""
  ends = np.cumsum(sizes)
  total = int(ends[-1])
  cuts = np.union1d(ends - sizes, np.arange(0, total, length))
  post = np.searchsorted(ends, cuts, 'right')
  size = np.diff(cuts, append=total)
  return Pieces(cuts // length, post, cuts - (ends - sizes)[post], size)


def _cached_starts(index: Path, lengths: np.ndarray, length: int, method: Method) -> np.ndarray:
  """The first row of each window and the number of all: from `index`, or computed and kept."""
  windows = -(-len(lengths) // WINDOW)
  try:
    starts = np.load(index, mmap_mode='r')
    if starts.shape == (windows + 1,):
      return starts
  except (OSError, ValueError):
    pass  # not there yet, or cut short: both are mended by writing it
  starts = np.zeros(windows + 1, np.int64)
  for window in range(windows):
    pieces = plan(lengths[window * WINDOW : (window + 1) * WINDOW], length, method)
    starts[window + 1] = starts[window] + pieces.row[-1] + 1
  if os.access(index.parent, os.W_OK):
    draft = index.with_name(f'.{os.getpid()}.{index.name}')
    np.save(draft, starts)
    os.replace(draft, index)
  return starts


def _within(sizes: np.ndarray) -> np.ndarray:
  """0 .. size - 1 for each size, one after another."""
  return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
