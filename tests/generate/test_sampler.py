"""Drawn tokens are those that a naive NumPy filter keeps, as often as its probabilities say."""

import itertools

import jax
import numpy as np
import pytest
from small_models import QUICK

from lmjax.core.errors import UserError
from lmjax.generate.sampler import Sampler, row_keys

VOCAB = 40
DRAWS = 4000
FILTERS = {
  'none': {},
  'top_k': {'top_k': 5},
  'top_k of all': {'top_k': VOCAB + 1},
  'top_p': {'top_p': 0.7},
  'top_p of all': {'top_p': 1.0},
  'min_p': {'min_p': 0.1},
  'top_k, top_p': {'top_k': 12, 'top_p': 0.6},
  'top_k, top_p, min_p': {'top_k': 20, 'top_p': 0.9, 'min_p': 0.05},
}

each_filter = pytest.mark.parametrize('settings', FILTERS.values(), ids=FILTERS)


def make_logits(rows: int = 32) -> np.ndarray:
  return np.random.default_rng(0).normal(size=(rows, VOCAB), scale=2.0).astype(np.float32)


def filtered(sampler: Sampler, logits_BV: np.ndarray) -> np.ndarray:
  return np.asarray(jax.jit(sampler.filter, compiler_options=QUICK)(logits_BV))


def draw(sampler: Sampler, logits_BV: np.ndarray, seed: int = 0) -> np.ndarray:
  def drawn(logits_BV):
    rows_B = np.arange(len(logits_BV))
    return sampler(logits_BV, row_keys(jax.random.key(seed), rows_B, rows_B * 0))

  return np.asarray(jax.jit(drawn, compiler_options=QUICK)(logits_BV))


def naive_probs(logits_V: np.ndarray, top_k=None, top_p=None, min_p=None) -> np.ndarray:
  """What may be drawn and how likely, a token at a time."""
  probs = np.exp(logits_V.astype(np.float64) - logits_V.max())
  order = [int(token) for token in np.argsort(-probs)]
  kept = order[:top_k]
  if top_p is not None:
    total, reached, nucleus = probs[kept].sum(), 0.0, []
    for token in kept:
      if reached / total >= top_p:
        break
      nucleus.append(token)
      reached += probs[token]
    kept = nucleus
  if min_p is not None:
    kept = [token for token in kept if probs[token] >= min_p * probs[order[0]]]
  out = np.zeros(len(probs))
  out[kept] = probs[kept] / probs[kept].sum()
  return out


@each_filter
def test_the_tokens_kept_are_those_of_a_naive_filter(settings):
  logits = make_logits()
  kept = np.isfinite(filtered(Sampler(**settings), logits))
  expected = np.array([naive_probs(row, **settings) > 0 for row in logits])
  np.testing.assert_array_equal(kept, expected)


@each_filter
def test_tokens_are_drawn_as_often_as_their_probability(settings):
  temperature = 1.5
  logits = make_logits(1)
  drawn = draw(Sampler(temperature=temperature, **settings), np.repeat(logits, DRAWS, axis=0))
  expected = naive_probs(logits[0] / temperature, **settings)
  found = np.bincount(drawn, minlength=VOCAB) / DRAWS
  assert not found[expected == 0].any()
  # Five standard deviations, and a draw or two for tokens that are hardly ever drawn.
  bound = 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 2 / DRAWS
  assert np.all(np.abs(found - expected) <= bound)


def test_draws_from_many_tokens_reach_all_that_may_come_and_no_other():
  probs = {3: 0.1, 255: 0.4, 256: 0.2, 700: 0.25, 999: 0.05}
  logits = np.full((DRAWS, 1000), -np.inf, np.float32)
  logits[:, list(probs)] = np.log(list(probs.values()))
  found = dict(
    zip(*np.unique(draw(Sampler(temperature=1.0), logits), return_counts=True), strict=True)
  )
  assert found.keys() == probs.keys()
  for token, p in probs.items():
    assert abs(found[token] / DRAWS - p) <= 5 * np.sqrt(p * (1 - p) / DRAWS)


def test_temperature_zero_takes_the_likeliest_whatever_the_key_and_filters():
  logits = make_logits()
  for seed, settings in itertools.product((0, 1), ({}, {'top_k': 3, 'top_p': 0.1, 'min_p': 0.5})):
    found = draw(Sampler(temperature=0.0, **settings), logits, seed)
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))


@pytest.mark.parametrize('settings', [{'top_k': 1}, {'top_p': 1e-9}, {'min_p': 1.0}], ids=str)
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e4])
def test_the_likeliest_token_always_survives(settings, scale):
  logits = scale * make_logits()
  kept = np.isfinite(filtered(Sampler(**settings), logits))
  assert kept[np.arange(len(logits)), logits.argmax(axis=-1)].all()


def test_equally_likely_tokens_stay_or_go_together():
  logits = np.zeros((1, VOCAB), np.float32)
  logits[0, :4] = 3.0
  for settings in ({'top_k': 2}, {'top_p': 0.1}, {'min_p': 0.5}):
    kept = np.isfinite(filtered(Sampler(**settings), logits))[0]
    np.testing.assert_array_equal(np.flatnonzero(kept), np.arange(4))


def test_keys_differ_by_row_and_by_position_and_by_nothing_else():
  rows, positions = np.array([0, 0, 1, 0]), np.array([5, 6, 5, 5])
  data = jax.random.key_data(row_keys(jax.random.key(1), rows, positions))
  keys = [tuple(key) for key in np.asarray(data).tolist()]
  assert keys[0] == keys[3]
  assert len(set(keys)) == 3


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'temperature': -1.0}, 'temperature=-1.0: expected a number of 0.0 or more'),
    ({'top_k': 0}, 'top_k=0: expected none or an integer of 1 or more'),
    ({'top_p': 1.5}, 'top_p=1.5: expected none or a number above 0.0 and at most 1.0'),
    ({'min_p': 0.0}, 'min_p=0.0: expected none or a number above 0.0 and at most 1.0'),
  ],
)
def test_settings_out_of_range_are_refused(settings, message):
  with pytest.raises(UserError, match=message):
    Sampler(**settings)
