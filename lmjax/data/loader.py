"""Batches as a pure function of the step: row i of a run is computed, not remembered.

    row i -> (source, counter) -> (epoch, place) -> (window, row) -> posts -> arrays

Each epoch of a source visits its windows in an order of its own and the rows of each window in
another, so every row once an epoch, and reads stay in one window for about a thousand rows. The
state of a run's data is one integer, the step; how many hosts read it changes nothing. Knows
nothing about devices: NumPy arrays out.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lmjax.core.types import Batch
from lmjax.data import packing
from lmjax.data.mixture import Mixture, Schedule
from lmjax.data.packing import Pieces
from lmjax.data.shards import Shards
from lmjax.data.shuffle import permutation
from lmjax.data.split import Part

_THREADS, _AHEAD = 2, 8  # that prepare batches, and batches that wait ready
_EPOCHS, _WINDOWS = 8, 64  # orders kept in memory


class Batches:
  """Batches of `batch_rows` rows, each computed from its number by `_read`.

  Attributes:
    batch_rows: rows of a batch, over all hosts.
    length: positions of a row; None of rows that have no positions.
    bytes_read: of records, by this process.
  """

  batch_rows: int
  length: int | None
  bytes_read: int = 0

  def batch(self, step: int, rows: Sequence[int] | None = None) -> Any:
    """Rows `step` x batch and on; of them those numbered `rows` from 0 alone, reading no other."""
    wanted = range(self.batch_rows) if rows is None else rows
    return self._read([step * self.batch_rows + row for row in wanted])

  def iterate(self, start: int, stop: int, rows: Sequence[int] | None = None) -> Iterator[Any]:
    """`batch` of steps `start` to `stop` - 1, prepared ahead in background threads.

    Close the iterator (or use it up) to end the threads.
    """
    import grain  # here: it takes 0.4 s, which --help need not wait

    steps = grain.MapDataset.range(start, stop).map(lambda step: self.batch(step, rows))
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    batches = iter(steps.to_iter_dataset(options))
    try:
      yield from batches
    finally:
      batches.close()

  def _read(self, rows: Sequence[int]) -> Any:
    """A pytree of arrays whose first dimension is that of `rows`, numbers of global rows."""
    raise NotImplementedError


class Rows(Batches):
  """Batches of rows that are in memory: each of `count` once an epoch, in an order of the epoch's own.

  Args:
    read: numbers of rows, below `count`, -> a pytree of arrays with a first dimension for them.
    length: positions of a row, the second dimension of the arrays that have them; or None.
  """

  def __init__(
    self,
    read: Callable[[Sequence[int]], Any],
    count: int,
    *,
    batch: int,
    length: int | None,
    seed: int,
  ) -> None:
    self.batch_rows, self.length = batch, length
    self._rows, self._count = read, count
    self._order = functools.lru_cache(_EPOCHS)(
      lambda epoch: permutation(count, 'rows', seed, epoch)
    )

  def _read(self, rows: Sequence[int]) -> Any:
    places = [divmod(row, self._count) for row in rows]
    return self._rows([int(self._order(epoch)[place]) for epoch, place in places])


class Loader(Batches):
  """The batches of posts.

  Attributes:
    rows: rows in one epoch of each source.
    fill: share of the positions of each source that are not padding.
  """

  length: int

  def __init__(
    self,
    shards: Sequence[Shards],
    *,
    batch: int,
    length: int,
    seed: int,
    method: packing.Method = 'best_fit',
    mixture: Mixture | None = None,
    part: Part = 'train',
  ) -> None:
    """Opens the packing index of every source, or computes it the first time.

    Args:
      shards: the sources, all with one tokenizer; as many as `mixture` has, else one.
      batch: rows of a batch, over all hosts.
      length: positions of a row.
      seed: of the order of rows and sources.
      method: how posts are packed into rows.
      mixture: which source each row comes from.
      part: which part of the posts.
    """
    assert len(shards) == (len(mixture.sources) if mixture else 1)
    assert len({one.manifest['tokenizer_sha256'] for one in shards}) == 1
    self.batch_rows, self.length = batch, length
    self._shards, self._part, self._seed = shards, part, seed
    self._packings = [packing.Packing(one, part, length, method) for one in shards]
    self._schedule = Schedule(mixture.phases, batch, seed) if mixture else None
    self._epoch = functools.lru_cache(_EPOCHS * len(shards))(self._shuffled_windows)
    self._window = functools.lru_cache(_WINDOWS)(self._shuffled_rows)
    self.rows = [packed.rows for packed in self._packings]
    self.fill = [packed.fill for packed in self._packings]

  @property
  def bytes_read(self) -> int:  # type: ignore[override]
    return sum(shards.bytes_read for shards in self._shards)

  def row(self, row: int) -> Batch:
    """Global row `row` of the run, as a batch of one."""
    return self._read([row])

  def _read(self, rows: Sequence[int]) -> Batch:
    """The given global rows, with one read of each source."""
    located = [self.locate(row) for row in rows]
    pieces = packing.join([found for *_, found in located])
    source = np.array([source for source, *_ in located], np.int64)[pieces.row]
    posts: list[np.ndarray] = [np.empty(0)] * len(source)
    for one in np.unique(source).tolist():
      places = np.flatnonzero(source == one)
      read = self._shards[one].read(self._part, pieces.post[places])
      for place, tokens in zip(places, read, strict=True):
        posts[place] = tokens
    tokenizer = self._shards[0].tokenizer
    return packing.fill(
      pieces, posts, len(rows), self.length, start=tokenizer.start, end=tokenizer.end
    )

  def locate(self, row: int) -> tuple[int, int, Pieces]:
    """(source, epoch of that source, pieces of its posts) of a global row."""
    source, counter = self._schedule.locate(row) if self._schedule else (0, row)
    epoch, place = divmod(counter, self._packings[source].rows)
    windows, starts = self._epoch(source, epoch)
    visit = int(np.searchsorted(starts, place, 'right')) - 1
    window = int(windows[visit])
    order = self._window(source, epoch, window)
    return source, epoch, self._packings[source].row(window, int(order[place - starts[visit]]))

  def _shuffled_windows(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a source in the order of an epoch, and the epoch's rows before each."""
    counts = np.diff(self._packings[source].starts)
    windows = permutation(len(counts), 'windows', self._seed, source, epoch)
    counts = counts[windows]
    return windows, np.cumsum(counts) - counts

  def _shuffled_rows(self, source: int, epoch: int, window: int) -> np.ndarray:
    """The rows of a window in the order of an epoch."""
    starts = self._packings[source].starts
    rows = int(starts[window + 1] - starts[window])
    return permutation(rows, 'rows', self._seed, source, epoch, window)
