"""Vectors like those of real posts, and what is measured of a search among them."""

import time

import numpy as np
import pytest

from lmjax.bench.search import BenchSearch, grown, keep_asking
from lmjax.core.errors import UserError


def unit(count, size=16):
  made = np.random.default_rng(0).normal(size=(count, size)).astype(np.float32)
  return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_more_vectors_are_as_near_to_posts_as_these_to_each_other():
  real = unit(300)
  made = np.concatenate(list(grown(real, 1000, 0, 128)))
  np.testing.assert_array_equal(made[:300], real)
  np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, rtol=1e-5)
  near = np.sort(real @ real.T, axis=1)  # the last is the post itself
  nearest = (made[300:] @ real.T).max(axis=1)
  assert nearest.min() >= near[:, -11].min() - 1e-5
  assert abs(np.median(nearest) - np.median(near[:, -2])) < 0.1


def test_what_a_flat_index_finds_is_all_of_it():
  vectors, task = unit(120), BenchSearch(real=100, vectors=500, queries=20, seconds=0.05)
  told = task._search(vectors, lambda number: vectors[number])
  assert (told['vectors'], told['kind'], told['recall_at_10']) == (500, 'FlatIP', 1.0)
  for name in ('', '_embedding'):
    assert 0 < told[f'query_ms{name}']['p50'] <= told[f'query_ms{name}']['p99']
    assert told[f'queries_per_second{name}'] > 1


def test_questions_come_in_turn_until_the_time_is_over():
  asked = []
  rate = keep_asking(lambda number: (asked.append(number), time.sleep(0.01)), 3, 0.1)
  assert set(asked) <= {0, 1, 2}
  assert 0 < rate <= len(asked) / 0.1


def test_vectors_that_are_no_more_than_posts_are_refused(tmp_path):
  with pytest.raises(UserError, match='vectors=100 are no more than .*100: pass more, or 0'):
    BenchSearch(real=100, vectors=100, peers=False).run(tmp_path)
