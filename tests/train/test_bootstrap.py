"""The paired bootstrap against what is known of differences."""

import numpy as np

from lmjax.train.bootstrap import Items, of_values, paired_bootstrap


def test_the_same_numbers_do_not_differ():
  items = of_values(np.arange(50.0))
  found = paired_bootstrap(items, items, rounds=200, seed=0)
  assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_shift_of_every_item_is_certain_and_exact():
  before = np.random.default_rng(0).normal(size=40)
  found = paired_bootstrap(of_values(before), of_values(before + 1), rounds=400, seed=0)
  np.testing.assert_allclose([found.difference, found.low, found.high], 1.0, rtol=1e-6)
  assert found.p == 2 / 401


def test_the_interval_is_that_of_the_normal_law_for_many_items():
  rng = np.random.default_rng(1)
  before, after = rng.normal(size=(2, 2000))
  found = paired_bootstrap(of_values(before), of_values(after), rounds=4000, seed=2)
  difference = after - before
  half = 1.96 * difference.std() / np.sqrt(2000)
  np.testing.assert_allclose(found.low, difference.mean() - half, atol=0.1 * half)
  np.testing.assert_allclose(found.high, difference.mean() + half, atol=0.1 * half)


def test_weights_make_a_ratio_of_sums():
  before = Items(np.array([8.0, 2.0]), np.array([1.0, 9.0]))
  after = Items(np.array([4.0, 1.0]), np.array([1.0, 9.0]))
  assert before.mean == 1.0
  found = paired_bootstrap(before, after, rounds=200, seed=0)
  assert found.difference == -0.5
