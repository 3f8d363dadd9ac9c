"""How sure a difference of two measurements on the same items is: the paired bootstrap.

Efron & Tibshirani 1993, chapter 16; for language, Koehn 2004. Items are drawn with replacement, the same
for both sides, and the difference is computed anew.
"""

from typing import NamedTuple

import numpy as np

_AT_ONCE = 1 << 22  # drawn items in memory


class Items(NamedTuple):
  """A value and a weight for each item; the measurement is sum(values) / sum(weights).

  For accuracy weights are ones, for bits per byte bits and bytes.
  """

  values: np.ndarray
  weights: np.ndarray

  @property
  def mean(self) -> float:
    return float(self.values.sum() / self.weights.sum())


def of_values(values: np.ndarray) -> Items:
  return Items(np.asarray(values, np.float64), np.ones(len(values)))


class Difference(NamedTuple):
  """after - before, its 95% interval, and the two-sided p-value of there being none."""

  difference: float
  low: float
  high: float
  p: float


def paired_bootstrap(before: Items, after: Items, *, rounds: int, seed: int) -> Difference:
  """The difference on the same items.

  Args:
    before, after: as many items, each the same in both.
    rounds: draws; a p-value is no smaller than 2 / (rounds + 1).
  """
  count = len(before.values)
  assert count == len(after.values), 'items are paired'
  rng = np.random.default_rng(seed)
  drawn = np.empty(rounds)
  size = max(1, _AT_ONCE // max(1, count))
  for first in range(0, rounds, size):
    items = rng.integers(0, count, (min(size, rounds - first), count))
    drawn[first : first + len(items)] = _means(after, items) - _means(before, items)
  low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
  rare = min((drawn <= 0).sum(), (drawn >= 0).sum())
  p = min(1.0, 2 * (int(rare) + 1) / (rounds + 1))
  return Difference(after.mean - before.mean, low, high, p)


def _means(side: Items, items: np.ndarray) -> np.ndarray:
  return side.values[items].sum(-1) / side.weights[items].sum(-1)
