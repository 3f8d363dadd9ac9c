"""Orders, features and what queries teach about their weights."""

import numpy as np
import pytest

from lmjax.core.errors import UserError
from lmjax.search.ranking import (
  CROSS,
  FEATURES,
  READ,
  Candidates,
  candidates,
  learn_weights,
  load_ranking,
  top,
)


def test_the_largest_come_first_and_equal_ones_not_in_their_files_order():
  assert top(np.array([0.1, 0.9, 0.5], np.float32), 2).tolist() == [1, 2]
  equal = top(np.zeros(50, np.float32), 50).tolist()
  assert sorted(equal) == list(range(50))
  assert equal != list(range(50))
  assert equal == top(np.zeros(50, np.float32), 50).tolist()


def test_equal_scores_have_equal_features_and_no_words_no_place():
  words = np.array([2.0, 0.0, 2.0, 1.0], np.float32)
  found = candidates(words, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
  assert found.documents.tolist() == [0, 1, 2, 3]
  by_words = found.features[:, :2]
  np.testing.assert_array_equal(by_words[0], by_words[2])
  np.testing.assert_array_equal(by_words[0], [1.0, 1.0])
  np.testing.assert_array_equal(by_words[1], [0.0, 0.0])


def test_the_feature_that_tells_answers_weighs_most():
  rng = np.random.default_rng(0)
  found, relevant = [], []
  for _ in range(40):
    features = rng.normal(size=(8, 4)).astype(np.float32)
    found.append(Candidates(np.arange(8), features))
    relevant.append({int(np.argmax(features[:, 2]))})
  weights = learn_weights(FEATURES, found, relevant)
  assert max(weights, key=lambda name: weights[name]) == FEATURES[2]
  assert weights[FEATURES[2]] > 5 * max(abs(weights[FEATURES[n]]) for n in (0, 1, 3))


def test_what_is_shipped_weighs_every_feature_and_says_what_taught_it():
  shipped = load_ranking()
  assert tuple(shipped.hybrid) == FEATURES
  assert tuple(shipped.reranked) == (*FEATURES, *READ)
  assert tuple(shipped.cross) == (*FEATURES, *READ, CROSS)
  assert 'training queries' in shipped.trained_on


def test_weights_of_another_version_are_refused(tmp_path):
  old = load_ranking()._replace(reranked={'words': 1.0})
  old.save(tmp_path / 'ranking.json')
  with pytest.raises(UserError, match=r'another version\): run search_tune again'):
    load_ranking(tmp_path / 'ranking.json')
