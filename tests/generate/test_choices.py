"""Continuations of shared contexts against each pair alone."""

import dataclasses

import numpy as np
import pytest
from small_models import random_params
from test_score import MODEL, alone

from lmjax.core.errors import UserError
from lmjax.generate.choices import Pair, padded, score_continuations


def make_pairs(sizes):
  rng = np.random.default_rng(0)
  draw = lambda size: rng.integers(0, 97, size).astype(np.int32)
  contexts = {size: draw(size) for size, _ in sizes}
  return [Pair(contexts[context], draw(continuation)) for context, continuation in sizes]


@pytest.mark.parametrize('layout', ['scan', pytest.param('list', marks=pytest.mark.slow)])
def test_continuations_of_a_shared_context_score_as_each_alone(layout):
  model = dataclasses.replace(MODEL, layout=layout)
  params = random_params(model)
  sizes = [(30, 1), (7, 1), (30, 12), (30, 3), (1, 5), (7, 1)]
  pairs = make_pairs(sizes)
  found = score_continuations(model, params, pairs).logprob
  for pair, logprob in zip(pairs, found, strict=True):
    whole = np.concatenate(pair)
    expected = alone(model, params, whole)
    if len(pair.context) > 1:
      expected -= alone(model, params, pair.context)
    np.testing.assert_allclose(logprob, expected, rtol=1e-4)


def test_greedy_is_what_greedy_decoding_gives():
  params = random_params(MODEL)
  context = np.array([3, 5, 8], np.int32)
  ids = context
  for _ in range(3):
    one, places = ids[None], np.arange(len(ids), dtype=np.int32)[None]
    hidden = MODEL.apply(params, one, np.ones_like(one), places).hidden_BLD
    ids = np.append(ids, np.argmax(MODEL.logits(params, hidden)[0, -1])).astype(np.int32)
  likely = ids[3:]
  others = [np.where(np.arange(3) == place, (likely + 1) % 97, likely) for place in range(3)]
  pairs = [Pair(context, each.astype(np.int32)) for each in [likely, *others]]
  assert score_continuations(MODEL, params, pairs).greedy.tolist() == [True, False, False, False]


def test_no_pairs_score_nothing_and_progress_counts_all():
  assert score_continuations(MODEL, {}, []).logprob.shape == (0,)
  seen = []
  score_continuations(MODEL, random_params(MODEL), make_pairs([(7, 1), (7, 2)]), seen.append)
  assert seen == [2]


def test_a_pair_longer_than_learnt_positions_is_refused_and_one_that_fits_is_not():
  model = dataclasses.replace(MODEL, positions=8)
  params = random_params(model)
  with pytest.raises(UserError, match='a text of 10 tokens is longer than the 8 positions'):
    score_continuations(model, params, make_pairs([(7, 3)]))
  found = score_continuations(model, params, make_pairs([(7, 2)])).logprob
  assert np.isfinite(found).all()


@pytest.mark.parametrize(('length', 'expected'), [(1, 32), (33, 64), (250, 256), (520, 640)])
def test_lengths_are_padded_to_few(length, expected):
  assert padded(length, 32) == expected
