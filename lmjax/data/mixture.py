"""Which source each row of a run comes from, when several are mixed by weights that may change.

    [{"posts": "news/*.jsonl", "weight": 3},
     {"posts": "healthtweets", "weight": [[0, 1], [2000, 0]]}]

A source is what `Posts` takes plus its weight, one number or [step, weight] pairs, each good from
its step on. Random access: source and place of row i are computed, not remembered. Knows nothing
about what a row holds.
"""

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmjax.core.config import from_json, to_json
from lmjax.core.errors import UserError, nearest
from lmjax.data.shuffle import permutation
from lmjax.data.sources import Posts

BLOCK = 4096
"""Rows within which every source gets exactly its share."""

_ORDERS = 16  # blocks kept in memory


class Source(NamedTuple):
  """One source of a mixture."""

  posts: Posts
  weights: tuple[tuple[int, float], ...]  # (from this step on, weight); the first step is 0


class Phase(NamedTuple):
  """A stretch of steps with constant weights, as rows of each source in a block."""

  step: int  # its first
  quotas: np.ndarray  # i64[sources], BLOCK in all


class Mixture:
  """Sources and their weights over the steps.

  Raises:
    UserError: in some phase no source has a weight, or one is too small for a row in each block.
  """

  def __init__(self, sources: Sequence[Source]) -> None:
    self.sources = tuple(sources)
    steps = sorted({step for source in sources for step, _ in source.weights})
    self.phases = tuple(Phase(step, _quotas(self.sources, step)) for step in steps)

  @classmethod
  def load(cls, path: str | Path) -> 'Mixture':
    """The mixture in a JSON file; every mistake in it is one sentence."""
    try:
      entries = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
      raise UserError(f'mixture {path} cannot be read: {error.strerror}') from None
    except ValueError as error:
      raise UserError(f'mixture {path} is no JSON: {error}') from None
    if not (isinstance(entries, list) and entries):
      raise UserError(f'mixture {path}: expected a list of sources, each with "posts" and "weight"')
    try:
      return cls([_source(number, entry) for number, entry in enumerate(entries, 1)])
    except UserError as error:
      raise UserError(f'mixture {path}: {error}') from None


class Schedule:
  """Source and counter of every row of a run: row i is its source's row number `counter`.

  Each phase is a sequence of blocks of `BLOCK` rows from its first row on; in a block every source
  has its quota of rows, in a shuffled order of their own.
  """

  def __init__(self, phases: Sequence[Phase], batch: int, seed: int) -> None:
    self._quotas = [phase.quotas for phase in phases]
    self._first = [phase.step * batch for phase in phases]  # row of each phase
    self._seed = seed
    self._order = functools.lru_cache(_ORDERS)(self._ordered)
    self._before = [np.zeros_like(self._quotas[0])]  # rows of each source before each phase
    for phase, stop in enumerate(self._first[1:]):
      blocks, rest = divmod(stop - self._first[phase], BLOCK)
      partial = np.bincount(self._order(phase, blocks)[0][:rest], minlength=len(self._quotas[0]))
      self._before.append(self._before[-1] + blocks * self._quotas[phase] + partial)

  def locate(self, row: int) -> tuple[int, int]:
    """(source, counter) of global row `row`; the counters of a source run 0, 1, 2, ..."""
    phase = int(np.searchsorted(self._first, row, 'right')) - 1
    block, place = divmod(row - self._first[phase], BLOCK)
    sources, ranks = self._order(phase, block)
    source = int(sources[place])
    before = self._before[phase][source] + block * self._quotas[phase][source]
    return source, int(before + ranks[place])

  def _ordered(self, phase: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of a block, and how many rows of that source stand before it there."""
    quotas = self._quotas[phase]
    shuffled = permutation(BLOCK, 'mixture', self._seed, phase, block)
    sources = np.repeat(np.arange(len(quotas)), quotas)[shuffled]
    ranks = np.empty_like(sources)
    for source, quota in enumerate(quotas):
      ranks[sources == source] = np.arange(quota)
    return sources, ranks


def _quotas(sources: Sequence[Source], step: int) -> np.ndarray:
  """Rows of each source in a block from `step` on, by largest remainder."""
  weights = np.array([[w for s, w in source.weights if s <= step][-1] for source in sources])
  if not weights.any():
    raise UserError(f'no source has a weight from step {step} on: give one a weight above 0')
  exact = weights * (BLOCK / weights.sum())
  quotas = np.floor(exact).astype(np.int64)
  largest = np.argsort(quotas - exact, kind='stable')
  quotas[largest[: BLOCK - quotas.sum()]] += 1
  for source, weight, quota in zip(sources, weights, quotas, strict=True):
    if weight and not quota:
      raise UserError(
        f'weight {weight:g} of {source.posts.posts} is too small beside the others from step '
        f'{step} on (less than a row in {BLOCK}): give it {weights.sum() / BLOCK:.3g} or more, or 0'
      )
  return quotas


def _source(number: int, entry: Any) -> Source:
  if not isinstance(entry, dict):
    raise UserError(f'source {number} is {entry!r}: expected {{"posts": ..., "weight": ...}}')
  known = [*to_json(Posts()), 'weight']
  for key in entry:
    if key not in known:
      raise UserError(f'source {number} has an unknown key {key!r}: {nearest(key, known)}')
  for key in ('posts', 'weight'):
    if key not in entry:
      raise UserError(f'source {number} has no {key!r}: add one')
  posts = from_json(Posts(), {key: value for key, value in entry.items() if key != 'weight'})
  assert isinstance(posts, Posts)
  return Source(posts, _weights(number, entry['weight']))


def _weights(number: int, value: Any) -> tuple[tuple[int, float], ...]:
  pairs = value if isinstance(value, list) else [[0, value]]
  for pair in pairs:
    if not (isinstance(pair, list) and len(pair) == 2 and _is_number(pair[1]) and pair[1] >= 0):
      raise UserError(
        f'source {number} has weight {value!r}: expected a number of 0 or more, '
        'or a list of [step, weight]'
      )
  steps = [step for step, _ in pairs]
  whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
  if not whole or steps[:1] != [0] or sorted(set(steps)) != steps:
    raise UserError(
      f'source {number} has weights at steps {steps}: '
      'expected whole numbers that begin at 0 and rise'
    )
  return tuple((step, float(weight)) for step, weight in pairs)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
