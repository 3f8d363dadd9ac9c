"""Scores of many texts at a time against one text at a time, in NumPy."""

import dataclasses

import numpy as np
import pytest
from small_models import random_params

from lmjax.core.errors import UserError
from lmjax.generate.score import score
from lmjax.models.transformer import Decoder

MODEL = Decoder(vocab=97, width=32, layers=1, heads=2, kv_heads=1, head_dim=8, mlp=48)


def alone(model, params, ids):
  one = np.array(ids[:-1], np.int32)[None]
  places = np.arange(one.shape[1], dtype=np.int32)[None]
  hidden = model.apply(params, one, np.ones_like(one), places).hidden_BLD
  logits = np.asarray(model.logits(params, hidden), np.float64)[0]
  logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return logprobs[np.arange(len(ids) - 1), ids[1:]].sum()


def test_packed_texts_score_as_each_alone():
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, 97, size).astype(np.int32) for size in (5, 0, 40, 1, 2, 300, 17)]
  params = random_params(MODEL)
  found = score(MODEL, params, texts)
  assert found[1] == found[3] == 0
  expected = [alone(MODEL, params, text) if len(text) > 1 else 0 for text in texts]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_texts_score_nothing():
  assert score(MODEL, {}, []).shape == (0,)


def test_a_text_longer_than_learnt_positions_is_refused():
  model = dataclasses.replace(MODEL, positions=8)
  with pytest.raises(UserError, match='a text of 10 tokens is longer than the 8 positions'):
    score(model, {}, [np.zeros(10, np.int32)])
